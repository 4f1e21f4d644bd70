"""A call that tells its progress to a function, turned around into an iterator."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from ..waiting import LONGEST_SLEEP, wait_until

Value = TypeVar("Value")


class ReaderLeft(Exception):
    """Raised inside the call when its reader has stopped."""


def pieces_of(call: Callable[[Callable[[str], object]], Value]) -> Iterator[str | Value]:
    """
    What a call tells while it runs, and then its value.

    Args:
        call (`Callable`):
            Called in a thread, with a function that it passes each piece to. If the reader stops early, that function raises, and the
            reader waits until the call has ended.

    Yields:
        `str` or the value: The pieces, and the value last.

    Raises:
        `BaseException`: What the call raised.
    """
    events: SimpleQueue[str | None] = SimpleQueue()
    left = threading.Event()
    outcome: list[Value] = []
    errors: list[BaseException] = []

    def tell(piece: str) -> None:
        if left.is_set():
            raise ReaderLeft("Nobody reads this turn any more.")
        events.put(piece)

    def run() -> None:
        try:
            outcome.append(call(tell))
        except BaseException as error:
            errors.append(error)
        events.put(None)

    thread = threading.Thread(target=run, daemon=True, name="mem1-turn")
    thread.start()
    try:
        while (piece := _next(events)) is not None:
            yield piece
    finally:
        left.set()
        wait_until(partial(_has_ended, thread))
    if errors:
        raise errors[0]
    yield outcome[0]


def _next(events: SimpleQueue[Value]) -> Value:
    """What was put there first, as soon as there is something."""
    while True:
        with contextlib.suppress(Empty):
            return events.get(timeout=LONGEST_SLEEP)


def _has_ended(thread: threading.Thread, seconds: float) -> bool:
    """Whether a thread has ended, after at most so many seconds."""
    thread.join(seconds)
    return not thread.is_alive()
