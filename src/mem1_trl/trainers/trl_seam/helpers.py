"""A small function that the parts of the seam share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def instance_attribute(target: Any, name: str, value: Any) -> Iterator[None]:
    """Set an instance attribute for a while, and restore its former value (or its absence)."""
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
