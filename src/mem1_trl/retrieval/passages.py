"""Passages: what a retriever gives, where a corpus keeps them, and how they are read from a file by number."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from zipfile import BadZipFile

import numpy as np

from ..json_text import read_json
from ..local_rows import FILES, TEXTS, read_rows, read_texts


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


def check_found(retriever: Any, found: Any, count: int) -> list[list[Passage]]:
    """
    What a retriever found, if it is what [`Retriever`] promises.

    Args:
        retriever ([`Retriever`]):
            Named in the message.
        found (`Any`):
            What its `search` returned.
        count (`int`):
            Number of queries.

    Raises:
        `TypeError`: if it is not a list of passages for each query.
    """
    lists = isinstance(found, (list, tuple)) and all(isinstance(passages, (list, tuple)) for passages in found)
    if (
        lists
        and len(found) == count
        and all(hasattr(one, "title") and hasattr(one, "text") for row in found for one in row)
    ):
        return list(found)
    raise TypeError(
        f"`search` of {type(retriever).__name__} must return one list of `Passage` for each of its {count} queries, got {found!r:.80}."
    )


def read_corpus(
    corpus: Iterable[Any], title: str = "title", text: str = "text", label: str = "Passage {}"
) -> Iterator[tuple[str, str]]:
    """
    Title and text of each passage.

    Args:
        corpus (iterable of mappings or of pairs):
            Each passage is a mapping with a `text` and perhaps a `title`, a pair `(title, text)`, or, as in the corpora of Search-R1
            and FlashRAG, a mapping with `contents` and without `text`: the title is its first line, taken as it is, quotation marks
            included, because that is what MEM1's reference code shows to the agent. If there is a `title` besides, `contents` is
            the text, without a first line that repeats the title. A title that is missing or `None` is empty.
        title (`str`, *optional*, defaults to `"title"`):
            Key of the title. If another key is named, every passage must have it.
        text (`str`, *optional*, defaults to `"text"`):
            Key of the text.
        label (`str`, *optional*, defaults to `"Passage {}"`):
            What a passage is called in an error; its number is filled in.

    Raises:
        `ValueError`: if a passage lacks its text, or holds something else than texts.
    """
    for position, passage in enumerate(corpus):
        if isinstance(passage, (tuple, list)) and len(passage) == 2:
            passage = {title: passage[0], text: passage[1]}
        if isinstance(passage, Mapping):
            wanted = (title, text, "contents")
            found = {key: None if value != value else value for key, value in passage.items() if key in wanted}
            contents = found.get("contents")
            if text not in found and isinstance(contents, str):
                yield _read_contents(contents, found.get(title))
                continue
            missing = text if found.get(text) is None else title if title not in found and title != "title" else None
            if missing is not None and missing in found:
                raise ValueError(f"{label.format(position)} has {missing}=None, which must be a text.")
            if missing is not None:
                raise ValueError(
                    f"{label.format(position)} has no {missing!r} (it has {', '.join(map(repr, passage))}): name its "
                    "columns with `title=` and `text=`."
                )
            for key in (title, text):
                if isinstance(found.get(key), (Mapping, list, tuple)):
                    raise ValueError(f"{label.format(position)} has {key}={found[key]!r:.60}, which must be a text.")
            yield "" if found.get(title) is None else str(found[title]), str(found[text])
        else:
            raise ValueError(
                f"{label.format(position)} is neither a mapping nor a pair (title, text) but {passage!r:.60}: pass a "
                "datasets.Dataset, or mappings with the keys 'title' and 'text'."
            )


def _read_contents(contents: str, title: Any) -> tuple[str, str]:
    first, _, rest = contents.partition("\n")
    first = first.removesuffix("\r")
    if title is None:
        return first, rest
    title = str(title)
    return title, rest if first.strip().strip('"') == title.strip().strip('"') else contents


_ADVICE = 'a corpus has rows such as {"title": "Iron", "text": "Iron has the symbol Fe."}, as JSON one on each line.'


def refuse_columns(title: str, text: str, source: str) -> None:
    """
    Refuse columns of passages where nothing would read them.

    Args:
        title, text (`str`):
            The columns.
        source (`str`):
            What there is in place of passages with columns, such as "a retriever".

    Raises:
        `ValueError`: if one has another value than its default.
    """
    for name, value in (("title", title), ("text", text)):
        if value != name:
            raise ValueError(
                f"`{name}={value!r}` is about passages that are mappings or rows of a file, and the corpus is {source}: leave it out."
            )


def read_source(path: str | Path, advance: Callable[[int], object] = lambda count: None) -> Iterator[Any]:
    """
    The passages of a file with rows, or of a folder of text files, for [`read_corpus`].

    Args:
        path (`str` or `Path`):
            The file or folder.
        advance (`Callable[[int], object]`, *optional*):
            Called with the number of bytes that were read since it was called last, for a progress bar.

    Raises:
        `FileNotFoundError`: if there is neither.
        `ValueError`: if the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return read_texts(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no corpus {str(path)!r}: pass a file of passages ({', '.join(FILES)}) or a folder of text files "
            f"({', '.join(TEXTS)})."
        )
    return read_rows(path, _ADVICE, advance=advance)


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

    Attributes:
        starts (`numpy.ndarray`):
            Where each passage begins, in bytes, and where the last one ends.
    """

    def __init__(self, directory: Path):
        self.starts = read_array(directory / "passages.npy")
        with open(directory / "passages.jsonl", "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        check_length(directory / "passages.jsonl", self._bytes, self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> tuple[str, str]:
        record = read_json(self._bytes[int(self.starts[number]) : int(self.starts[number + 1])])
        return record["title"], record["text"]


def check_length(path: Path, content: Sized, starts: np.ndarray) -> None:
    """Raise a `ValueError` if a file of parts that begin at `starts` is longer or shorter than where the last part ends."""
    if len(content) != int(starts[-1]):
        raise ValueError(f"{path.name} has {len(content):,} bytes and must have {int(starts[-1]):,}")


def read_array(path: Path, mapped: bool = True) -> np.ndarray:
    """
    An array of a `.npy` file, mapped into memory for reading, or read.

    Raises:
        `ValueError`: if the file is not one, or was cut off.
    """
    try:
        # As a plain array: `numpy.memmap` makes every slice an object that costs microseconds
        return np.asarray(np.load(path, mmap_mode="r" if mapped else None))
    except (EOFError, ValueError, BadZipFile) as error:  # numpy reads archives too
        raise ValueError(f"{path.name}: {error}") from None


def read_manifest(directory: Path) -> dict[str, Any]:
    """What kind of index a directory holds; an empty dictionary if that cannot be read."""
    try:
        manifest = read_json((directory / "index.json").read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{str(directory)!r} holds no index: build one with `mem1 index CORPUS {directory}`."
        ) from None
    except ValueError:
        return {}
    return manifest if isinstance(manifest, dict) else {}
