"""
A BM25 index on disk: built from a stream in bounded memory, published in one step, read by mapping it.

A directory holds `index.json` (written last: what it is, with which settings), the words in alphabetical order
(`words.bin`, `words.npy`), their entries (`scores.npy`, `entries.npy`, `starts.npy`, `best.npy`, see [`Postings`]) and
the passages (`passages.jsonl`, `passages.npy`).
"""

from __future__ import annotations

import json
import math
import mmap
import shutil
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .passages import (
    PassageFile,
    PassageWriter,
    check_length,
    read_array,
    read_corpus,
    read_manifest,
    read_source,
    refuse_columns,
)
from .postings import Postings

_FORMAT = "mem1-bm25"
VERSION = 2
"""2 splits scripts without spaces between words, and knows Unicode's forms. 1 is read as it was built."""
_BLOCK = 50_000
"""Passages whose words are held in memory at once."""


class WordFile:
    """
    The words of an index, sorted, looked up by halving: next to no memory, where a dictionary of a million words would be
    a hundred megabytes in every process.

    Args:
        directory (`Path`):
            Holds `words.bin` and `words.npy`.
    """

    def __init__(self, directory: Path):
        self._starts = read_array(directory / "words.npy")
        with open(directory / "words.bin", "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        check_length(directory / "words.bin", self._bytes, self._starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> bytes:
        return self._bytes[int(self._starts[number]) : int(self._starts[number + 1])]

    def get(self, word: str) -> int | None:
        """Number of a word, `None` if no passage has it."""
        coded = word.encode("utf-8", "replace")
        number = bisect_left(self, coded)
        return number if number < len(self) and self[number] == coded else None


def build_files(
    corpus: str | Path | Iterable[Any],
    directory: Path,
    split: Callable[[str], list[str]],
    title: str,
    text: str,
    stopwords: Iterable[str],
    k1: float,
    b: float,
    overwrite: bool,
    show_progress: bool,
) -> None:
    """Write an index; see [`Bm25Index.build`]. `split` gives the words of a text."""
    if directory.exists() and not overwrite:
        raise FileExistsError(
            f"{str(directory)!r} is there already: load it with Bm25Index.load, or build with overwrite=True."
        )
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{str(directory)!r} is a file and is not replaced: choose a directory.")
    if directory.exists() and any(directory.iterdir()) and not (directory / "index.json").is_file():
        raise FileExistsError(f"{str(directory)!r} is no index and is not replaced: choose another directory.")
    if isinstance(corpus, (str, Path)):
        read_source(corpus)  # raises now if there is none
        if Path(corpus).is_dir():
            refuse_columns(title, text, "a folder of texts")
    directory.parent.mkdir(parents=True, exist_ok=True)
    # On the same disk, so that the last step is a rename, which happens as a whole or not at all
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}.building-", dir=directory.parent))
    try:
        counted = _count(_Source(corpus, title, text, show_progress), building, split)
        _score(counted, building, k1, b, show_progress)
        manifest = {
            "format": _FORMAT,
            "version": VERSION,
            "passages": len(counted.lengths),
            "words": len(counted.words),
            "entries": counted.entries,
            "k1": k1,
            "b": b,
            "stopwords": sorted(stopwords),
        }
        (building / "index.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        building.chmod(0o755)  # a temporary directory is for its owner alone
        _publish(building, directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _publish(building: Path, directory: Path) -> None:
    """Move a finished index to its place. If that fails or is interrupted, the index that is there already stays."""
    if not directory.exists():
        building.rename(directory)
        return
    replaced = Path(tempfile.mkdtemp(prefix=f".{directory.name}.replaced-", dir=directory.parent))
    old = replaced / "index"
    try:
        directory.rename(old)
        building.rename(directory)
    finally:
        if old.exists() and not directory.exists():
            old.rename(directory)
        shutil.rmtree(replaced)


class _Source:
    """Titles and texts of a corpus, with a progress bar over its bytes or its passages."""

    def __init__(self, corpus: str | Path | Iterable[Any], title: str, text: str, show_progress: bool):
        self._corpus = corpus
        self._columns = (title, text)
        self._show_progress = show_progress

    def __iter__(self) -> Iterator[tuple[str, str]]:
        if isinstance(self._corpus, (str, Path)):
            size = Path(self._corpus).stat().st_size
            with tqdm(total=size, unit="B", unit_scale=True, desc="reading", disable=not self._show_progress) as bar:
                yield from read_corpus(read_source(self._corpus, bar.update), *self._columns)
            return
        total = len(self._corpus) if isinstance(self._corpus, Sized) else None
        with tqdm(total=total, unit=" passages", desc="reading", disable=not self._show_progress) as bar:
            for passage in read_corpus(self._corpus, *self._columns):
                yield passage
                bar.update()


@dataclass(slots=True)
class _Counted:
    """What the first pass leaves: words in alphabetical order, and blocks of counts by the order in which words were met."""

    words: list[bytes]
    rank: np.ndarray
    frequency: np.ndarray
    lengths: np.ndarray
    blocks: list[Path]
    entries: int


def _count(source: Iterable[tuple[str, str]], building: Path, split: Callable[[str], list[str]]) -> _Counted:
    vocabulary: dict[str, int] = {}
    passages = PassageWriter(building)
    lengths, tokens = array("i"), array("i")
    blocks: list[Path] = []
    frequency = np.zeros(0, dtype=np.int64)
    entries = 0

    def close_block(first: int) -> None:
        """Count the words of the passages from `first` on; entries are ordered by word, then passage."""
        nonlocal frequency, entries, tokens
        sizes = np.frombuffer(lengths, dtype=np.int32)[first:]
        local = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
        keys, counts = np.unique(
            np.frombuffer(tokens, dtype=np.int32).astype(np.int64) * len(sizes) + local, return_counts=True
        )
        words, documents = np.divmod(keys, len(sizes))
        frequency = np.pad(frequency, (0, len(vocabulary) - len(frequency)))
        frequency += np.bincount(words, minlength=len(vocabulary))
        entries += len(keys)
        blocks.append(building / f"block-{len(blocks)}.npz")
        np.savez(
            blocks[-1],
            words=words.astype(np.int32),
            passages=(documents + first).astype(np.int32),
            counts=counts.astype(np.int32),
        )
        tokens = array("i")

    try:
        first = 0
        for title, text in source:
            numbers = [vocabulary.setdefault(word, len(vocabulary)) for word in split(f"{title} {text}")]
            tokens.extend(numbers)
            lengths.append(len(numbers))
            passages.add(title, text)
            if len(lengths) - first == _BLOCK:
                close_block(first)
                first = len(lengths)
        if not lengths:
            raise ValueError("The corpus is empty: pass at least one passage with a title and a text.")
        if not vocabulary:
            raise ValueError(
                "The corpus holds no word to search for: check the title and text columns and `stopwords`."
            )
        if len(lengths) > first:
            close_block(first)
        passages.close()
    except BaseException:
        passages.close(complete=False)
        raise
    coded = [word.encode("utf-8", "replace") for word in vocabulary]
    order = sorted(range(len(coded)), key=coded.__getitem__)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return _Counted(
        words=[coded[number] for number in order],
        rank=rank,
        frequency=frequency[order],
        lengths=np.array(lengths, dtype=np.int64),
        blocks=blocks,
        entries=entries,
    )


def _score(counted: _Counted, building: Path, k1: float, b: float, show_progress: bool) -> None:
    """Scores as bm25s computes them for `method="lucene"`, put in the order of the words."""
    with open(building / "words.bin", "wb") as file:
        for word in counted.words:
            file.write(word)
    np.save(building / "words.npy", _starts([len(word) for word in counted.words]))
    starts = _starts(counted.frequency)
    np.save(building / "starts.npy", starts)

    count = len(counted.lengths)
    weights = np.array(
        [math.log(1 + (count - frequency + 0.5) / (frequency + 0.5)) for frequency in counted.frequency.tolist()],
        dtype=np.float32,
    )
    held_back = k1 * ((1 - b) + b * counted.lengths / counted.lengths.mean())
    shape = (counted.entries,)
    scores = np.lib.format.open_memmap(building / "scores.npy", mode="w+", dtype=np.float32, shape=shape)
    entries = np.lib.format.open_memmap(building / "entries.npy", mode="w+", dtype=np.int32, shape=shape)
    best = np.zeros(len(counted.words), dtype=np.float32)
    following = starts[:-1].copy()  # where the next entry of each word goes
    for path in tqdm(counted.blocks, desc="scoring", unit=" blocks", disable=not show_progress):
        with np.load(path) as block:
            words, passages = counted.rank[block["words"]], block["passages"]
            counts = block["counts"].astype(np.float64)
        path.unlink()
        values = (weights[words] * (counts / (held_back[passages] + counts))).astype(np.float32)
        # Entries of one word stand together: the first of each is where the word changes
        first = np.flatnonzero(np.diff(words, prepend=-1))
        sizes = np.diff(first, append=len(words))
        places = np.repeat(following[words[first]] - first, sizes) + np.arange(len(words))
        scores[places] = values
        entries[places] = passages
        following[words[first]] += sizes
        best[words[first]] = np.maximum(best[words[first]], np.maximum.reduceat(values, first))
    scores.flush()
    entries.flush()
    np.save(building / "best.npy", best)


def _starts(sizes: Any) -> np.ndarray:
    starts = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def load_files(directory: Path, mapped: bool) -> tuple[dict[str, Any], WordFile, PassageFile, Postings]:
    """Open an index; see [`Bm25Index.load`]."""
    manifest = read_manifest(directory)
    if manifest.get("format") != _FORMAT or manifest.get("version") not in (1, VERSION):
        raise ValueError(
            f"{str(directory)!r} is not an index that this version of mem1-trl reads (format {_FORMAT}, version "
            f"{VERSION}): rebuild it with `mem1 index`."
        )
    try:
        words, passages = WordFile(directory), PassageFile(directory)
        scores, entries, starts, best = (
            read_array(directory / f"{name}.npy", mapped) for name in ("scores", "entries", "starts", "best")
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"The index {str(directory)!r} is damaged ({error}): rebuild it with `mem1 index`.") from None
    try:
        expected = (manifest["passages"], manifest["words"], *[manifest["entries"]] * 2, *[manifest["words"]] * 2)
        frozenset(manifest["stopwords"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"The index {str(directory)!r} is damaged (index.json: {error}): rebuild it with `mem1 index`."
        ) from None
    sizes = (len(passages), len(words), len(scores), len(entries), len(starts) - 1, len(best))
    if sizes != expected:
        raise ValueError(
            f"The files of the index {str(directory)!r} do not belong together: rebuild it with `mem1 index`."
        )
    return manifest, words, passages, Postings(scores, entries, starts, best, len(passages))
