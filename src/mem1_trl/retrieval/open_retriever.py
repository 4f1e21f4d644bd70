"""A retriever from whatever names one: a retriever, an address, a directory, a file, or passages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from .bm25 import Bm25Index
from .dense import DenseIndex
from .http import HttpRetriever
from .passages import Retriever, read_manifest, read_source, refuse_columns


def open_retriever(
    source: Retriever | str | Path | Iterable[Any], title: str = "title", text: str = "text"
) -> Retriever:
    """
    The retriever that `source` stands for.

    Args:
        source ([`Retriever`], `str`, `Path`, `datasets.Dataset` or iterable):
            A retriever, which is returned as it is; the address of one (`"http://..."`), which is asked once whether it is
            there; a directory that [`Bm25Index.build`] or [`DenseIndex.save`] wrote; a file of JSON lines, JSON, CSV or Parquet, a
            folder of text files, or passages, which are indexed in memory.
        title (`str`, *optional*, defaults to `"title"`):
            Key of the title of a passage.
        text (`str`, *optional*, defaults to `"text"`):
            Key of its text.

    Returns:
        [`Retriever`]: what to search in.

    Raises:
        `ConnectionError`: if nothing answers at the address.
        `FileNotFoundError`: if there is no such file or directory.
        `ValueError`: if it holds no index, or no passages, or columns are named where there are none.
    """
    if isinstance(source, (str, Path)):
        if str(source).startswith(("http://", "https://")):
            refuse_columns(title, text, "the address of a retriever")
            client = HttpRetriever(str(source))
            client.check()
            return client
        path = Path(source)
        if (path / "index.json").is_file():
            refuse_columns(title, text, "an index, which holds its passages")
            dense = read_manifest(path).get("format") == "mem1-dense"
            return DenseIndex.load(path) if dense else Bm25Index.load(path)
        if path.is_dir():
            refuse_columns(title, text, "a folder of texts")
        try:
            return Bm25Index(read_source(path), title, text)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} A directory that `mem1 index` wrote, and the address of a retriever, are corpora, too."
            ) from None
    if hasattr(source, "search") and not hasattr(source, "column_names"):  # a datasets.Dataset has a `search` too
        refuse_columns(title, text, "a retriever")
        return source  # type: ignore[return-value]
    return Bm25Index(cast("Iterable[Any]", source), title, text)
