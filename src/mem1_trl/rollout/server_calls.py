"""Requests to a model server: many at once, repeated where that helps, and each failure to the context that caused it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from functools import partial
from typing import Any, Generic, TypeVar

from ..request_threads import RequestThreads
from ..retrying import Cancellation, UnusableServer, ending_with_cancellation, with_retries
from ..waiting import wait_until
from .server_errors import FailedContext, TurnStopped, explained, one_line, seconds_to_wait

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_MOST_BARREN = 3
"""Calls in a row without one answer after which a server is given up."""

_NOT_WANTED = "The answer is no longer wanted."


class ServerCalls(Generic[Value]):
    """
    Makes requests of one server, for any number of threads.

    A context that the server has no answer for costs its own episode. What every other context would meet as well is an error:
    a wrong key, a server that is not there, or answers of which none can be used.

    Args:
        max_workers (`int`):
            Most requests at once, over all threads.
        max_retries (`int`):
            How often a request is tried again.
    """

    def __init__(self, max_workers: int, max_retries: int):
        self.max_workers = max_workers
        self.max_retries = max_retries
        self._free = threading.BoundedSemaphore(max_workers)
        self._lock = threading.Lock()
        self._has_answered = False
        self._barren = 0

    def all(self, requests: Sequence[Callable[[], Value]]) -> list[Value | str]:
        """
        Answers to all requests, in order; in the place of one that failed stands why.

        Args:
            requests (`Sequence[Callable]`):
                Each sends a request and reads its answer.

        Raises:
            `UnusableServer`: If the server refuses what every request has in common, or if it has not answered one request in its
                first call, or in three calls in a row.
            `ConnectionError`: If the server is not there.
            [`TurnStopped`]: If the answers are no longer wanted.
        """
        if not requests:
            return []
        results = self.each(requests)
        judged = [result for result in results if not isinstance(result, TurnStopped)]
        self.give_up([result for result in judged if isinstance(result, Exception)], len(judged))
        return [str(result) if isinstance(result, Exception) else result for result in results]

    def each(self, requests: Sequence[Callable[[], Value]]) -> list[Value | FailedContext | ConnectionError]:
        """
        What [`~ServerCalls.one`] returns for each request, asked for in threads of their own: this one goes on as soon as the answers are no
        longer wanted, see [`Cancellation`], whatever client is used.

        Raises:
            `UnusableServer`: If one request says that none would be answered.
            [`TurnStopped`]: If the answers are no longer wanted.
        """
        threads, cancellation = RequestThreads(self.max_workers), Cancellation()
        try:
            with ending_with_cancellation(cancellation.cancel):
                futures = [threads.submit(partial(self.one, request, cancellation)) for request in requests]
                wait_until(lambda seconds: cancellation.cancelled or _are_decided(futures, seconds))
            if cancellation.cancelled:
                raise TurnStopped(_NOT_WANTED)
            for future in futures:
                if future.done() and (error := future.exception()) is not None:
                    raise error
        finally:
            threads.close()
            cancellation.cancel()
        return [future.result() for future in futures]

    def one(
        self, request: Callable[[], Value], cancellation: Cancellation | None = None
    ) -> Value | FailedContext | ConnectionError:
        """
        The answer to a request, or the failure that costs one context.

        Args:
            request (`Callable`):
                Sends a request and reads its answer.
            cancellation ([`Cancellation`], *optional*):
                Ends the request when the answer is no longer wanted.

        Raises:
            `UnusableServer`: If no request would be answered.
        """
        attempts = 0
        cancellation = cancellation or Cancellation()

        def ask() -> Value:
            nonlocal attempts
            attempts += 1
            with self._place(cancellation), cancellation.applied():
                if cancellation.cancelled:
                    raise TurnStopped(_NOT_WANTED)
                return request()

        try:
            return with_retries(ask, self.max_retries, seconds_to_wait, _warn, cancellation)
        except Exception as error:
            failure = explained(error, attempts)
            failure.__cause__ = error
            if isinstance(failure, (FailedContext, ConnectionError)):
                return failure
            raise failure from error

    @contextlib.contextmanager
    def _place(self, cancellation: Cancellation) -> Iterator[None]:
        """
        Hold one of the places of `max_workers`. It is free as soon as the answer is no longer wanted: a client of another library may wait
        for it much longer.
        """
        self._free.acquire()
        held = threading.Lock()

        def leave() -> None:
            if held.acquire(blocking=False):  # once
                self._free.release()

        try:
            with cancellation.ending(leave):
                yield
        finally:
            leave()

    def give_up(self, failures: list[Any], asked: int) -> None:
        """Raise if going on would only spend episodes, after `asked` requests of which some failed."""
        with self._lock:
            if not asked:
                return
            if len(failures) < asked:
                self._has_answered, self._barren = True, 0
                return
            self._barren += 1
            hopeless = not self._has_answered or self._barren >= _MOST_BARREN
        if all(isinstance(failure, ConnectionError) for failure in failures):
            raise failures[0]
        if hopeless:
            raise UnusableServer(str(failures[0])) from failures[0]


def _are_decided(futures: Sequence[Future[Any]], seconds: float) -> bool:
    """Whether all have ended, or one with an error, after at most so many seconds."""
    ended, running = wait(futures, seconds, FIRST_EXCEPTION)
    return not running or any(future.exception() is not None for future in ended)


def _warn(error: Exception, seconds: float) -> None:
    logger.warning("%s. Trying again in %.1f s.", one_line(error).rstrip("."), seconds)
