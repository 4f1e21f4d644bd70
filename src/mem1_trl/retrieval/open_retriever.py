"""A retriever from whatever names one: a retriever, an address, a directory, a file, or passages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from ..json_lines import read_json_lines
from .bm25 import Bm25Index
from .dense import DenseIndex
from .http import HttpRetriever
from .passages import CORPUS_ADVICE, Retriever, read_manifest


def open_retriever(
    source: Retriever | str | Path | Iterable[Any], title: str = "title", text: str = "text"
) -> Retriever:
    """
    The retriever that `source` stands for.

    Args:
        source ([`Retriever`], `str`, `Path`, `datasets.Dataset` or iterable):
            A retriever, which is returned as it is; the address of one (`"http://..."`), which is asked once whether it is
            there; a directory that [`Bm25Index.build`] or [`DenseIndex.save`] wrote; a file of JSON lines, or passages,
            which are indexed in memory.
        title (`str`, *optional*, defaults to `"title"`):
            Key of the title of a passage.
        text (`str`, *optional*, defaults to `"text"`):
            Key of its text.

    Returns:
        [`Retriever`]: what to search in.

    Raises:
        `ConnectionError`: if nothing answers at the address.
        `FileNotFoundError`: if there is no such file or directory.
        `ValueError`: if it holds no index, or no passages.
    """
    if isinstance(source, (str, Path)):
        if str(source).startswith(("http://", "https://")):
            client = HttpRetriever(str(source))
            client.check()
            return client
        path = Path(source)
        if path.is_dir():
            dense = read_manifest(path).get("format") == "mem1-dense"
            return DenseIndex.load(path) if dense else Bm25Index.load(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no corpus {str(source)!r}: pass a file of JSON lines, a directory that `mem1 index` wrote, or the "
                "address of a retriever."
            )
        return Bm25Index((record for _, record in read_json_lines(path, CORPUS_ADVICE)), title, text)
    if hasattr(source, "search") and not hasattr(source, "column_names"):  # a datasets.Dataset has a `search` too
        return source  # type: ignore[return-value]
    return Bm25Index(cast("Iterable[Any]", source), title, text)
