"""Trying again: which failures pass by themselves, how long to wait, the loop that does both, and what ends it early."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

Value = TypeVar("Value")


class UnusableServer(RuntimeError):
    """Raised for a server, of a model or of a search, that is of no use until something is corrected; the sentence says which and what."""


LONGEST_WAIT = 60.0
"""Maximum number of seconds before another attempt, whatever a server asks for."""

BUSY_STATUSES = (408, 409, 425, 429, 500, 502, 503, 504, *range(520, 531))
"""HTTP statuses that pass by themselves; 520 to 530 are those of proxies and of overloaded model servers."""

# Libraries have classes of their own for a server that does not answer; what they share with the built-in ones is the name.
# requests, urllib3, httpx, aiohttp, openai and huggingface_hub, in this order
TRANSIENT_ERRORS = frozenset(
    ("ConnectionError", "TimeoutError", "Timeout", "ProtocolError", "TransportError", "ClientConnectionError")
    + ("APIConnectionError", "InferenceTimeoutError")
)
"""Names of exception classes that say that a server did not answer."""

jitter = random.Random()
"""
Random numbers of waits. They are never drawn from the global state: a run samples the same whether a server was slow or not.
"""


def backoff(attempt: int, first: float, spread: float = 0.25, numbers: random.Random = jitter) -> float:
    """
    Seconds before attempt `attempt` + 1: `first`, twice, four times ... as long, and a random share more or less, at most a minute.

    Args:
        attempt (`int`):
            Number of attempts so far, from 1.
        first (`float`):
            Seconds before the second attempt.
        spread (`float`, *optional*, defaults to `0.25`):
            Largest share by which a wait is longer or shorter, so that many callers do not come back together.
        numbers (`random.Random`, *optional*):
            Source of the random share.
    """
    return min(LONGEST_WAIT / (1 + spread), first * 2.0 ** (attempt - 1)) * numbers.uniform(1 - spread, 1 + spread)


def asked_to_wait(headers: Mapping[str, Any] | None, now: Callable[[], float] = time.time) -> float | None:
    """
    Seconds that a server asks for in its header `Retry-After`: a number or a date, at most a minute; `None` if it asks for neither.

    Args:
        headers (`Mapping[str, Any]` or `None`):
            Headers of the answer, in any case.
        now (`Callable[[], float]`, *optional*):
            Seconds since the epoch, for a date.
    """
    for name, value in (headers or {}).items():
        if str(name).lower() == "retry-after":
            seconds = _seconds(str(value).strip(), now)
            return None if seconds is None else min(LONGEST_WAIT, max(0.0, seconds))
    return None


def _seconds(value: str, now: Callable[[], float]) -> float | None:
    """The seconds of a `Retry-After`."""
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return None if math.isnan(seconds) else seconds
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return parsedate_to_datetime(value).timestamp() - now()
    return None


class Cancellation:
    """
    Tells requests in other threads that their answers are no longer wanted: a wait before another attempt ends at once, and so
    does an exchange that is under way in a thread of [`~Cancellation.applied`].

    Example:

    ```python
    with cancellation.applied():  # in the thread of the request
        with ending_with_cancellation(lambda: connection.shutdown(socket.SHUT_RDWR)):
            answer = connection.recv(1024)

    cancellation.cancel()  # in any other thread
    ```
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._ends: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        """Whether the answers are no longer wanted."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End all waits and exchanges."""
        self._cancelled.set()
        with self._lock:
            for end in self._ends:
                end()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the answers are no longer wanted; returns whether they are not."""
        return self._cancelled.wait(seconds)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let this thread's exchanges with servers end with the cancellation."""
        token = _cancellation_of_thread.set(self)
        try:
            yield
        finally:
            _cancellation_of_thread.reset(token)

    @contextlib.contextmanager
    def ending(self, end: Callable[[], object]) -> Iterator[None]:
        """Call `end` on cancellation; at once if that was before."""
        with self._lock:
            self._ends.append(end)
            if self.cancelled:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)


_cancellation_of_thread: ContextVar[Cancellation | None] = ContextVar("cancellation", default=None)


def is_cancelled() -> bool:
    """Whether the answer that this thread waits for is no longer wanted; see [`Cancellation`]."""
    cancellation = _cancellation_of_thread.get()
    return cancellation is not None and cancellation.cancelled


def ending_with_cancellation(end: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Call `end`, in another thread, if the answer that this thread waits for is no longer wanted; see [`Cancellation`]."""
    cancellation = _cancellation_of_thread.get()
    return contextlib.nullcontext() if cancellation is None else cancellation.ending(end)


def with_retries(
    attempt: Callable[[], Value],
    max_retries: int,
    seconds_to_wait: Callable[[Exception, int], float | None],
    on_retry: Callable[[Exception, float], object] = lambda error, seconds: None,
    cancellation: Cancellation | None = None,
) -> Value:
    """
    The value of a call that is repeated while its failures may pass.

    Args:
        attempt (`Callable[[], Value]`):
            The call.
        max_retries (`int`):
            Maximum number of attempts after the first.
        seconds_to_wait (`Callable[[Exception, int], float | None]`):
            Given a failure and the number of attempts so far: the seconds to wait, or `None` if another attempt is of no use.
        on_retry (`Callable[[Exception, float], object]`, *optional*):
            Called before each wait.
        cancellation ([`Cancellation`], *optional*):
            Ends a wait, after which there is no further attempt.

    Raises:
        `Exception`: The failure of the last attempt.
    """
    cancellation = cancellation or Cancellation()
    for number in range(1, max_retries + 2):
        try:
            return attempt()
        except Exception as error:
            seconds = seconds_to_wait(error, number)
            if seconds is None or number > max_retries or cancellation.cancelled:
                raise
            on_retry(error, seconds)
            if cancellation.wait(seconds):
                raise
    raise AssertionError("unreachable")
