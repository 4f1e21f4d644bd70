"""The rows of a file or of a folder of texts, with every value as it was written: "NA" is a text, and 007 is not 7."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .json_lines import read_json_lines
from .json_text import read_json
from .text_parts import split_text

FILES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
"""Ends of the names of files with rows."""

TEXTS = (".txt", ".md")
"""Ends of the names of files in a folder of texts."""

LONGEST_PART = 1000
"""Characters of one passage of a text."""

_GAP = re.compile(r"\n\s*\n")


def has_rows(path: str | Path) -> bool:
    """Whether a name is that of a file that [`read_rows`] reads."""
    return str(path).lower().endswith(FILES)


def read_rows(
    path: str | Path,
    advice: str,
    field: str | None = None,
    delimiter: str | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[Any]:
    """
    Rows of a file of JSON lines (also `.gz`), JSON, CSV, TSV or Parquet.

    JSON may be a list of rows, or an object with a list for each column. Every cell of a CSV file is a text, an empty one is `None`.

    Args:
        path (`str` or `Path`):
            The file.
        advice (`str`):
            What to do about a file that holds something else, as the end of the message.
        field (`str`, *optional*):
            Key of the rows in a JSON object.
        delimiter (`str`, *optional*):
            What stands between the cells of a CSV file. `None` takes a comma, or a tab for `.tsv`.
        advance (`Callable[[int], object]`, *optional*):
            Called with the number of bytes of a file of JSON lines that were read since the last call, for a progress bar.

    Raises:
        `ValueError`: If the file cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        yield from _rows_of_json(path, advice, field)
    elif suffix in (".csv", ".tsv"):
        yield from _rows_of_csv(path, advice, delimiter or ("\t" if suffix == ".tsv" else ","))
    elif suffix == ".parquet":
        from datasets import Dataset

        yield from Dataset.from_parquet(str(path))
    else:
        for _, row in read_json_lines(path, advice, advance=advance):
            yield row


def read_texts(folder: str | Path) -> Iterator[dict[str, str]]:
    """
    Passages of the text files of a folder and the folders in it: the `title` is the name of the file, the `text` some paragraphs of it.

    Paragraphs are kept together up to `LONGEST_PART` characters; a longer one is cut between lines or words.

    Args:
        folder (`str` or `Path`):
            Holds files that end in `.txt` or `.md`, in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If a file is in another encoding.
    """
    folder = Path(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in TEXTS and path.is_file()]
    if not paths:
        raise FileNotFoundError(f"{str(folder)!r} holds no text files ({', '.join(TEXTS)}).")
    for path in paths:
        data = path.read_bytes()
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        try:
            text = data.decode(encoding).replace("\r\n", "\n")
        except UnicodeDecodeError:
            raise _other_encoding(path) from None
        for part in _passages(text):
            yield {"title": path.relative_to(folder).with_suffix("").as_posix(), "text": part}


def _passages(text: str) -> Iterator[str]:
    held = ""
    for paragraph in _GAP.split(text.strip()):
        if held and len(held) + len(paragraph) > LONGEST_PART:
            yield held
            held = ""
        held = f"{held}\n\n{paragraph}" if held else paragraph
        if len(held) > LONGEST_PART:
            *whole, held = split_text(held, LONGEST_PART)
            yield from whole
    if held:
        yield held


def _rows_of_json(path: Path, advice: str, field: str | None) -> Iterator[Any]:
    try:
        value = read_json(path.read_bytes(), nan_is_null=True)
    except ValueError as error:
        if "Extra data" not in str(error):
            raise ValueError(f"{path} is not JSON ({error}): {advice}") from None
        for _, row in read_json_lines(path, advice):  # as many programs name a file of JSON lines
            yield row
        return
    if field is not None:
        if not isinstance(value, Mapping) or field not in value:
            raise ValueError(f"{path} has no {field!r}: name the key of its rows with `field=`.")
        value = value[field]
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        names, columns = list(value), list(value.values())
        if len({len(column) for column in columns}) == 1:
            value = [dict(zip(names, row)) for row in zip(*columns)]
    if not isinstance(value, list):
        held = "an object" if isinstance(value, Mapping) else f"{value!r:.60}"
        raise ValueError(f"{path} must hold a list of rows, got {held}: name the key of its rows with `field=`.")
    yield from value


def _rows_of_csv(path: Path, advice: str, delimiter: str) -> Iterator[dict[str, str | None]]:
    csv.field_size_limit(2**31 - 1)  # a passage may be longer than the 131,072 characters that Python allows
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for row in csv.DictReader(file, delimiter=delimiter):
                if None in row:
                    raise ValueError("a row has more cells than the first line")
                yield {name: cell or None for name, cell in row.items()}
        except UnicodeDecodeError:
            raise _other_encoding(path) from None
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path} is not CSV with a line of names first ({error}): {advice}") from None


def _other_encoding(path: Path) -> ValueError:
    return ValueError(f"{path} is not text in UTF-8: save it in that encoding.")
