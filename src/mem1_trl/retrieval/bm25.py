"""BM25 over a corpus of titled passages: what the `search` action of a question-answering environment looks in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..words import WORD, fold, words_of_passage, words_of_query
from .bm25_files import VERSION, WordFile, build_files, load_files
from .checksum import checksum_of
from .passages import Passage, PassageFile, check_search, read_corpus
from .postings import Postings


class Bm25Index:
    """
    A BM25 index (the variant of Lucene) over the titles and texts of a corpus, held in memory and computed by bm25s.
    For a corpus that does not fit, [`~Bm25Index.build`] writes the same index to disk and [`~Bm25Index.load`] maps it.

    Words are compared in one case and one Unicode form and not stemmed; text of scripts without spaces between words is found by pairs of
    its characters, see [`mem1_trl.words`]. The index never changes once built, so any number of threads may
    search at once.

    Args:
        corpus (`datasets.Dataset` or iterable of mappings or of pairs):
            Passages, each a mapping with the keys `title` and `text`, or a pair `(title, text)`, or a mapping with
            `contents`, whose first line is the title. The title may be missing or `None`.
        title (`str`, *optional*, defaults to `"title"`):
            Key of the title in a mapping.
        text (`str`, *optional*, defaults to `"text"`):
            Key of the text in a mapping.
        stopwords (`str` or `Iterable[str]`, *optional*):
            Words to ignore: `None` for none, `"en"` for the common English ones, or the words themselves. BM25 gives
            common words little weight anyhow; leaving them out makes the index of a large corpus smaller, but loses
            the country code IN and the symbol As.
        k1 (`float`, *optional*, defaults to `1.5`):
            How slowly further occurrences of a word in a passage stop to count.
        b (`float`, *optional*, defaults to `0.75`):
            How much long passages are held back, from 0 (not at all) to 1.

    Raises:
        `ValueError`: if the corpus is empty, holds no word, or a passage lacks its text, or `k1` or `b` is out of its range.

    Example:

    ```python
    >>> index = Bm25Index([("Iron", "Iron has the symbol Fe."), ("Gold", "Gold has the symbol Au.")])
    >>> [passage.title for passage in index.search(["symbol of gold"], top_k=1)[0]]
    ['Gold']
    ```
    """

    def __init__(
        self,
        corpus: Iterable[Mapping[str, Any]] | Iterable[tuple[str, str]],
        title: str = "title",
        text: str = "text",
        stopwords: str | Iterable[str] | None = None,
        k1: float = 1.5,
        b: float = 0.75,
    ) -> None:
        _check_weights(k1, b)
        passages = list(read_corpus(corpus, title, text))
        if not passages:
            raise ValueError("The corpus is empty: pass at least one passage with a title and a text.")
        self._passages: Sequence[tuple[str, str]] | PassageFile = passages
        self._stopwords = _read_stopwords(stopwords)
        self._directory: str | None = None
        self._version = VERSION

        split = _without(self._stopwords, words_of_passage)
        vocabulary: dict[str, int] = {}
        documents = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in split(f"{passage_title} {passage_text}")]
            for passage_title, passage_text in passages
        ]
        if not vocabulary:
            raise ValueError(
                "The corpus holds no word to search for: check the title and text columns and `stopwords`."
            )
        self._vocabulary: dict[str, int] | WordFile = vocabulary
        import bm25s  # only where an index is built: an agent that does not search needs none of it

        # The numpy backend: "auto" would pick numba or jax where installed, compile on the first query, and differ.
        bm25 = bm25s.BM25(method="lucene", k1=k1, b=b, backend="numpy")
        bm25.index((documents, vocabulary), create_empty_token=False, show_progress=False)
        scores, starts = bm25.scores["data"], bm25.scores["indptr"]
        best = np.maximum.reduceat(scores, starts[:-1])  # no word is without a passage
        self._postings = Postings(scores, bm25.scores["indices"], starts, best, len(passages))

    @classmethod
    def build(
        cls,
        corpus: str | Path | Iterable[Mapping[str, Any]] | Iterable[tuple[str, str]],
        directory: str | Path,
        title: str = "title",
        text: str = "text",
        stopwords: str | Iterable[str] | None = None,
        k1: float = 1.5,
        b: float = 0.75,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> Bm25Index:
        """
        Write an index to disk, passages included, and load it.

        The corpus is read once, as a stream, and never held in memory: what is held is the vocabulary and one block of
        passages. The directory appears when it is complete and not before, so that an interrupted build is never loaded;
        it starts anew.

        Args:
            corpus (`str`, `Path`, `datasets.Dataset` or iterable):
                A file of JSON lines (`.jsonl`, also `.gz`), read as a stream, or of JSON, CSV or Parquet; a folder of text files
                (`.txt`, `.md`); or passages as in [`Bm25Index`].
            directory (`str` or `Path`):
                Where to write; it must not exist, or `overwrite` must be set.
            title, text, stopwords, k1, b (*optional*):
                As in [`Bm25Index`].
            overwrite (`bool`, *optional*, defaults to `False`):
                Replace an index that is there already. Processes that have it loaded keep what they have.
            show_progress (`bool`, *optional*, defaults to `True`):
                Show progress bars.

        Returns:
            [`Bm25Index`]: the index, mapped from disk.

        Raises:
            `FileExistsError`: if the directory is there already.
            `FileNotFoundError`: if there is no such corpus.
            `ValueError`: if the corpus is empty, holds no word, or a passage cannot be read.
        """
        _check_weights(k1, b)
        ignored = _read_stopwords(stopwords)
        split = _without(ignored, words_of_passage)
        build_files(corpus, Path(directory), split, title, text, ignored, k1, b, overwrite, show_progress)
        return cls.load(directory)

    @classmethod
    def load(cls, directory: str | Path, mmap: bool = True) -> Bm25Index:
        """
        Load an index that [`~Bm25Index.build`] wrote.

        Args:
            directory (`str` or `Path`):
                Where it is.
            mmap (`bool`, *optional*, defaults to `True`):
                Map the index from disk: it is there at once, all processes of the machine share it, and only the parts
                that queries need are read. `False` reads it into the memory of this process, for slow disks; passages are
                mapped in either case.

        Returns:
            [`Bm25Index`]: the index. It finds what an index in memory finds, with the same scores. Pickling it, as
            for a worker process, hands on the directory and not the contents.

        Raises:
            `FileNotFoundError`: if the directory holds no index.
            `ValueError`: if its files do not belong together or are of another version.
        """
        manifest, words, passages, postings = load_files(Path(directory), mmap)
        index = cls.__new__(cls)
        index._passages = passages
        index._stopwords = frozenset(manifest["stopwords"])
        index._vocabulary = words
        index._postings = postings
        index._version = manifest["version"]
        index._directory = str(Path(directory).absolute())
        return index

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._directory is not None:
            return Bm25Index.load, (self._directory,)
        return super().__reduce_ex__(protocol)

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._passages)

    @cached_property
    def checksum(self) -> str:
        """Tells the index apart from one that may find something else."""
        return checksum_of(self._passages, self._passages.__getitem__, *self._postings.of_words)

    def search(self, queries: Sequence[str], top_k: int = 3) -> list[list[Passage]]:
        """
        The best passages for each query.

        Args:
            queries (`Sequence[str]`):
                Any number of queries. All of their words count, and a repeated word counts again.
            top_k (`int`, *optional*, defaults to `3`):
                Largest number of passages per query.

        Returns:
            `list[list[Passage]]`: one list per query, best first, earlier passages of the corpus first among equals.
            Passages that share no word with the query are left out, so a list may be shorter than `top_k`, and is
            empty for an empty query or one without a known word.

        Raises:
            `TypeError`: if `queries` is a single string, or holds something else than strings.
            `ValueError`: if `top_k` is below 1.
        """
        check_search(queries, top_k)
        return [self._search_one(query, top_k) for query in queries]

    def _search_one(self, query: str, top_k: int) -> list[Passage]:
        split = words_of_query if self._version > 1 else _words_of_version_1
        numbers = (self._vocabulary.get(word) for word in _without(self._stopwords, split)(query))
        words = [number for number in numbers if number is not None]
        if not words:
            return []
        found, scores = self._postings.top(words, top_k)
        results = []
        for number, score in zip(found.tolist(), scores.tolist(), strict=True):
            title, text = self._passages[number]
            results.append(Passage(title, text, score))
        return results


def _without(stopwords: frozenset[str], split: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """The words of a text without those to ignore."""
    return (lambda text: [word for word in split(text) if word not in stopwords]) if stopwords else split


def _words_of_version_1(text: str) -> list[str]:
    """How passages were split in indexes on disk that an earlier version built."""
    return WORD.findall(text.lower())


def _check_weights(k1: float, b: float) -> None:
    if not (0 <= k1 < math.inf and 0 <= b <= 1):  # else a score can be below 0, and the best passages are not found
        raise ValueError(f"k1 must be a number of 0 or more and b from 0 to 1, got k1={k1} and b={b}.")


def _read_stopwords(stopwords: str | Iterable[str] | None) -> frozenset[str]:
    if stopwords is None:
        return frozenset()
    if stopwords == "en":
        from bm25s.stopwords import STOPWORDS_EN

        return frozenset(STOPWORDS_EN)
    if isinstance(stopwords, str):
        raise ValueError(f"Unknown `stopwords` {stopwords!r}: pass None, 'en', or a list of words.")
    return frozenset(map(fold, stopwords))
