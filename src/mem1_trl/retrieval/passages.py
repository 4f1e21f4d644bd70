"""Passages: what a retriever gives, where a corpus keeps them, and how they are read from a file by number."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..json_text import read_json


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
            How well it matches, larger is better. Comparable within one query of one retriever only.
    """

    title: str
    text: str
    score: float


@runtime_checkable
class Retriever(Protocol):
    """
    Anything that finds passages: [`Bm25Index`], [`DenseIndex`], [`HttpRetriever`], or your own class with this method.

    Environments of a batch search at the same time from several threads, so `search` must allow that.
    """

    def search(self, queries: Sequence[str], top_k: int = 3) -> list[list[Passage]]:
        """The best passages for each query, best first, at most `top_k` of them."""
        ...


def check_search(queries: Sequence[str], top_k: int) -> None:
    """
    Refuse what cannot be searched for.

    Raises:
        `TypeError`: if `queries` is a single string, or holds something else than strings.
        `ValueError`: if `top_k` is below 1.
    """
    if isinstance(queries, str):
        raise TypeError(f"`queries` is a list of strings: pass [{queries!r}].")
    if top_k < 1:
        raise ValueError(f"`top_k` is {top_k}: ask for at least one passage.")
    for query in queries:
        if not isinstance(query, str):
            raise TypeError(f"A query is a string, not {query!r}: write a few keywords.")


def read_corpus(
    corpus: Iterable[Any], title: str = "title", text: str = "text", label: str = "Passage {}"
) -> Iterator[tuple[str, str]]:
    """
    Title and text of each passage.

    Args:
        corpus (iterable of mappings or of pairs):
            Each passage is a mapping with the keys `title` and `text`, a pair `(title, text)`, or, as in the corpora of
            Search-R1 and FlashRAG, a mapping whose only text is `contents`: the title is its first line, taken as it is,
            quotation marks included, because that is what MEM1's reference code shows to the agent.
        title (`str`, *optional*, defaults to `"title"`):
            Key of the title.
        text (`str`, *optional*, defaults to `"text"`):
            Key of the text.
        label (`str`, *optional*, defaults to `"Passage {}"`):
            What a passage is called in an error; its number is filled in.

    Raises:
        `ValueError`: if a passage lacks its title or text.
    """
    for position, passage in enumerate(corpus):
        if isinstance(passage, Mapping):
            if "contents" in passage and not {title, text} & set(passage) and isinstance(passage["contents"], str):
                first, _, rest = passage["contents"].partition("\n")
                yield first, rest
                continue
            missing = [key for key in (title, text) if passage.get(key) is None]
            if missing:
                raise ValueError(
                    f"{label.format(position)} has no {missing[0]!r} (it has {', '.join(map(repr, passage))}): name its "
                    "columns with `title=` and `text=`."
                )
            yield str(passage[title]), str(passage[text])
        elif isinstance(passage, (tuple, list)) and len(passage) == 2:
            yield str(passage[0]), str(passage[1])
        else:
            raise ValueError(
                f"{label.format(position)} is neither a mapping nor a pair (title, text) but {passage!r:.60}: pass a "
                "datasets.Dataset, or mappings with the keys 'title' and 'text'."
            )


CORPUS_ADVICE = (
    'a corpus has one JSON object on each line, such as {"title": "Iron", "text": "Iron has the symbol Fe."}.'
)
"""What to do about a line of a corpus that is not JSON."""


class PassageWriter:
    """
    Writes passages as JSON lines, with the place of each in a second file, for [`PassageFile`].

    Args:
        directory (`Path`):
            Gets `passages.jsonl` and `passages.npy`.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._file = open(directory / "passages.jsonl", "wb")  # noqa: SIM115
        self._starts = [0]

    def add(self, title: str, text: str) -> None:
        """Append a passage."""
        record = json.dumps({"title": title, "text": text}, ensure_ascii=False)
        # A lone surrogate, as half an emoji in a broken dump, has no UTF-8
        written = self._file.write(record.encode("utf-8", "replace") + b"\n")
        self._starts.append(self._starts[-1] + written)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def close(self, complete: bool = True) -> None:
        """Close the files; without `complete` the second one is not written."""
        self._file.close()
        if complete:
            np.save(self._directory / "passages.npy", np.array(self._starts, dtype=np.int64))


class PassageFile:
    """
    The passages of a directory written by [`PassageWriter`], read by number. The file is mapped into memory: processes
    share its pages, and none is read before it is needed.

    Args:
        directory (`Path`):
            Holds `passages.jsonl` and `passages.npy`.
    """

    def __init__(self, directory: Path):
        self._starts = map_array(directory / "passages.npy")
        with open(directory / "passages.jsonl", "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> tuple[str, str]:
        record = read_json(self._bytes[int(self._starts[number]) : int(self._starts[number + 1])])
        return record["title"], record["text"]


def map_array(path: Path) -> np.ndarray:
    """An array of a `.npy` file, mapped into memory for reading."""
    # As a plain array: `numpy.memmap` makes every slice an object that costs microseconds
    return np.asarray(np.load(path, mmap_mode="r"))


def read_manifest(directory: Path) -> dict[str, Any]:
    """What kind of index a directory holds; an empty dictionary if that cannot be read."""
    try:
        manifest = read_json((directory / "index.json").read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{str(directory)!r} holds no index: build one with `mem1 index CORPUS.jsonl {directory}`."
        ) from None
    except ValueError:
        return {}
    return manifest if isinstance(manifest, dict) else {}
