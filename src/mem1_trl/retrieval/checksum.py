"""A checksum of what an index finds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .passages import PassageFile

MOST = 100_000
"""Passages that are read for a checksum; of more than these, so many at equal distances."""


def checksum_of(
    passages: Sequence[Any] | PassageFile, read: Callable[[int], tuple[str, str]], *arrays: np.ndarray
) -> str:
    """
    Tells what is searched apart: a hash of passages, of the lengths of those in a file, and of arrays of the index.

    Args:
        passages (`Sequence` or [`PassageFile`]):
            The passages. All are read if they are in memory, and at most `MOST` of those that are on disk.
        read (`Callable[[int], tuple[str, str]]`):
            Gives title and text of a passage by its number.
        *arrays (`numpy.ndarray`):
            Small arrays that follow from all passages, such as the best score of each word.
    """
    count = len(passages)
    digest = hashlib.sha256(str(count).encode())
    step = 1 if isinstance(passages, list) else max(1, -(-count // MOST))
    for number in range(0, count, step):
        title, text = read(number)
        digest.update(f"{len(title)} {title} {text}\n".encode("utf-8", "replace"))
    for array in (*arrays, *([passages.starts] if isinstance(passages, PassageFile) else [])):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
