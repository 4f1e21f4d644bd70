"""Files of JSON lines: one reader, whose errors name the file and the line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .json_text import read_json

if TYPE_CHECKING:
    import os


def read_json_lines(
    path: str | os.PathLike[str],
    advice: str = "a file of JSON lines has one JSON value on each line.",
    skip_unfinished: bool = False,
    skipped: Callable[[int], object] = lambda number: None,
    advance: Callable[[int], object] = lambda count: None,
    read: Callable[[Any], Any] = lambda value: value,
) -> Iterator[tuple[int, Any]]:
    """
    Numbers (from 1) and values of the lines of a file, `.gz` or plain; empty lines are skipped.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        advice (`str`, *optional*):
            What to do about a line that is not JSON, as the end of the message.
        skip_unfinished (`bool`, *optional*, defaults to `False`):
            Whether a last line without an end that is not JSON is skipped: a process that died was writing it.
        skipped (`Callable[[int], object]`, *optional*):
            Called with the number of such a line.
        advance (`Callable[[int], object]`, *optional*):
            Called with the number of bytes of the file that were read since it was called last, for a progress bar.
        read (`Callable[[Any], Any]`, *optional*):
            Makes of a line's value what is returned. Its `ValueError` is raised again with the name of the file and the line.

    Raises:
        `ValueError`: If the file cannot be unpacked, a line is not JSON, or `read` refuses its value.
    """
    path = Path(path)
    with path.open("rb") as raw:
        lines: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        done = 0
        for number, line in enumerate(_whole(lines, path), start=1):
            if number % 1000 == 0:
                position = raw.tell()
                advance(position - done)
                done = position
            if not line.strip():
                continue
            try:
                value = read_json(line, nan_is_null=True)
            except ValueError as error:
                if skip_unfinished and not line.endswith(b"\n"):
                    skipped(number)
                    continue
                raise ValueError(f"Line {number} of {path} is not JSON ({error}): {advice}") from None
            try:
                value = read(value)
            except ValueError as error:
                raise ValueError(f"Line {number} of {path} cannot be read. {error}") from None
            yield number, value
        advance(raw.tell() - done)


def _whole(lines: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """The lines of a file; one that ends before its packing does is an error of one sentence."""
    try:
        yield from lines
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): was it cut off? Pack or download it again.") from None


def drop_unfinished_line(path: str | os.PathLike[str]) -> None:
    """Cut a last line without an end off a file, so that lines can be appended to it."""
    with Path(path).open("r+b") as file:
        whole = 0
        for line in file:
            whole += len(line) if line.endswith(b"\n") else 0
        file.truncate(whole)
