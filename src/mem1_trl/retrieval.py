"""BM25 over a corpus of titled passages: what the `search` action of a question-answering environment looks in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bm25s
import numpy as np
from bm25s.stopwords import STOPWORDS_EN

# Single characters are words too: bm25s' own pattern would lose the element symbol "C" and the number 7.
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Passage:
    """
    One search result.

    Attributes:
        title (`str`):
            Title of the document.
        text (`str`):
            Text of the passage.
        score (`float`):
            BM25 score, larger is better. Comparable within one query only.
    """

    title: str
    text: str
    score: float


class Bm25Index:
    """
    A BM25 index (the variant of Lucene, computed by bm25s) over the titles and texts of a corpus, held in memory.

    Words are compared in lower case and not stemmed. The index never changes once built and searching keeps no state,
    so any number of threads may search at once.

    Args:
        corpus (`datasets.Dataset` or iterable of mappings or of pairs):
            Passages, each a mapping with the keys `title` and `text`, or a pair `(title, text)`.
        title (`str`, *optional*, defaults to `"title"`):
            Key of the title in a mapping.
        text (`str`, *optional*, defaults to `"text"`):
            Key of the text in a mapping. FlashRAG's corpora call it `"contents"`.
        stopwords (`str` or `Iterable[str]`, *optional*):
            Words to ignore: `None` for none, `"en"` for the common English ones, or the words themselves. BM25 gives
            common words little weight anyhow; leaving them out makes the index of a large corpus smaller, but loses
            the country code IN and the symbol As.
        k1 (`float`, *optional*, defaults to `1.5`):
            How slowly further occurrences of a word in a passage stop to count.
        b (`float`, *optional*, defaults to `0.75`):
            How much long passages are held back, from 0 (not at all) to 1.

    Raises:
        `ValueError`: if the corpus is empty, holds no word, or a passage lacks its title or text.

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
        passages = list(_read_corpus(corpus, title, text))
        if not passages:
            raise ValueError("The corpus is empty: pass at least one passage with a title and a text.")
        self._titles = [passage_title for passage_title, _ in passages]
        self._texts = [passage_text for _, passage_text in passages]
        self._stopwords = _read_stopwords(stopwords)

        vocabulary: dict[str, int] = {}
        documents = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in self._words(f"{passage_title} {passage_text}")]
            for passage_title, passage_text in passages
        ]
        if not vocabulary:
            raise ValueError(
                "The corpus holds no word to search for: check the title and text columns and `stopwords`."
            )
        self._vocabulary = vocabulary
        # The numpy backend: "auto" would pick numba or jax where installed, compile on the first query, and differ.
        self._bm25 = bm25s.BM25(method="lucene", k1=k1, b=b, backend="numpy")
        self._bm25.index((documents, vocabulary), create_empty_token=False, show_progress=False)

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._titles)

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
        if isinstance(queries, str):
            raise TypeError(f"`queries` is a list of strings: pass [{queries!r}].")
        if top_k < 1:
            raise ValueError(f"`top_k` is {top_k}: ask for at least one passage.")
        return [self._search_one(query, top_k) for query in queries]

    def _search_one(self, query: str, top_k: int) -> list[Passage]:
        if not isinstance(query, str):
            raise TypeError(f"A query is a string, not {query!r}: write a few keywords.")
        word_ids = [self._vocabulary[word] for word in self._words(query) if word in self._vocabulary]
        if not word_ids:
            return []
        scores = self._bm25.get_scores(word_ids)
        # Partition first: sorting the scores of millions of passages for three of them would take seconds.
        threshold = np.partition(scores, -top_k)[-top_k] if top_k < len(scores) else 0.0
        candidates = np.flatnonzero((scores >= threshold) & (scores > 0))
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:top_k]
        return [Passage(self._titles[i], self._texts[i], float(scores[i])) for i in best]

    def _words(self, text: str) -> list[str]:
        return [word for word in WORD.findall(text.lower()) if word not in self._stopwords]


def _read_corpus(corpus: Iterable[Any], title: str, text: str) -> Iterator[tuple[str, str]]:
    for position, passage in enumerate(corpus):
        if isinstance(passage, Mapping):
            missing = [key for key in (title, text) if passage.get(key) is None]
            if missing:
                raise ValueError(
                    f"Passage {position} has no {missing[0]!r} (it has {', '.join(map(repr, passage))}): name its columns "
                    "with `title=` and `text=`."
                )
            yield str(passage[title]), str(passage[text])
        elif isinstance(passage, (tuple, list)) and len(passage) == 2:
            yield str(passage[0]), str(passage[1])
        else:
            raise ValueError(
                f"Passage {position} is neither a mapping nor a pair (title, text) but {passage!r:.60}: pass a "
                "datasets.Dataset, or mappings with the keys 'title' and 'text'."
            )


def _read_stopwords(stopwords: str | Iterable[str] | None) -> frozenset[str]:
    if stopwords is None:
        return frozenset()
    if stopwords == "en":
        return frozenset(STOPWORDS_EN)
    if isinstance(stopwords, str):
        raise ValueError(f"Unknown `stopwords` {stopwords!r}: pass None, 'en', or a list of words.")
    return frozenset(word.lower() for word in stopwords)
