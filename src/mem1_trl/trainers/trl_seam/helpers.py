"""Small functions that the parts of the seam share."""

from __future__ import annotations

import logging
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


@contextmanager
def records_held_back(name: str, words: str) -> Iterator[list[logging.LogRecord]]:
    """Keep the records of a logger with some words in their message from its handlers for a while; they are in the list."""
    held: list[logging.LogRecord] = []

    def passes(record: logging.LogRecord) -> bool:
        if words not in record.getMessage():
            return True
        held.append(record)
        return False

    logger = logging.getLogger(name)
    logger.addFilter(passes)
    try:
        yield held
    finally:
        logger.removeFilter(passes)
