"""Small functions that the parts of the seam share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0


def row_chunks(batch: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """A batch cut into pieces of at most `size` rows; what belongs to the whole batch goes into each."""
    return [
        {key: value[start : start + size] if _has_rows(value) else value for key, value in batch.items()}
        for start in range(0, len(batch["completion_ids"]), size)
    ]


@contextmanager
def instance_attribute(target: Any, name: str, value: Any) -> Iterator[None]:
    """Set an instance attribute for a while, and put back what was there (or nothing)."""
    missing = object()
    before = vars(target).get(name, missing)
    object.__setattr__(target, name, value)
    try:
        yield
    finally:
        if before is missing:
            object.__delattr__(target, name)
        else:
            object.__setattr__(target, name, before)
