"""Modules of the examples, whose plain names (`world`, `train`) several examples use."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.contextmanager
def importing_from(*folders: Path) -> Iterator[None]:
    """Import from these folders first, and forget what was imported from `examples/` afterwards; what was there before comes back."""
    before, path = _take_out(), list(sys.path)
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        sys.path[:] = path
        _take_out()
        sys.modules.update(before)


def _take_out() -> dict:
    folder = str(EXAMPLES)
    found = [name for name, module in sys.modules.items() if folder in str(getattr(module, "__file__", None))]
    return {name: sys.modules.pop(name) for name in found}
