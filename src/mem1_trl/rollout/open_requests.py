"""Requests to a model server that are sent as episodes become ready, each answered on its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..request_threads import RequestThreads
from ..retrying import Cancellation
from .server_calls import ServerCalls


@dataclass(slots=True, eq=False)
class _Round:
    """
    Requests that are judged together: all that were sent while those of the round before it were unanswered.

    A server is given up after rounds without an answer, as it is where all episodes ask at the same time; single failures in a row
    say little about it.
    """

    asked: int = 0
    open: int = 0
    failures: list[Any] = field(default_factory=list)
    is_complete: bool = False


class OpenRequests:
    """
    Requests that were sent and whose answers are still to come.

    Args:
        calls ([`ServerCalls`]):
            Makes the requests.
        answered (`Callable[[Any, Any], None]`):
            Called in other threads with the key of a request and its answer; of one that failed, a text that says why.
        failed (`Callable[[BaseException], None]`):
            Called in other threads with an error that ends the run, see [`ServerCalls.all`].
    """

    def __init__(
        self,
        calls: ServerCalls[Any],
        answered: Callable[[Any, Any], None],
        failed: Callable[[BaseException], None],
    ):
        self._calls = calls
        self._answered = answered
        self._failed = failed
        self._threads = RequestThreads(calls.max_workers)
        self._cancellation = Cancellation()
        self._lock = threading.Lock()
        self._judged = _Round(is_complete=True)
        self._filling = _Round()

    def send(self, key: Any, request: Callable[[], Any]) -> None:
        """Send a request; its answer comes with `key`."""
        with self._lock:
            one = self._filling
            one.asked += 1
            one.open += 1
        future = self._threads.submit(partial(self._calls.one, request, self._cancellation))
        future.add_done_callback(lambda done: self._end(key, one, done))

    def close(self) -> None:
        """Wait for no answer any more, and end the requests that are under way."""
        self._threads.close()
        self._cancellation.cancel()

    def _end(self, key: Any, one: _Round, future: Future[Any]) -> None:
        if future.cancelled() or self._cancellation.cancelled:
            return
        error = future.exception()
        if error is not None:
            self._failed(error)
            return
        answer = future.result()
        failed = isinstance(answer, Exception)
        try:
            self._judge(one, answer if failed else None)
        except Exception as hopeless:  # told before the answer, which may be the last one that is waited for
            self._failed(hopeless)
        self._answered(key, str(answer) if failed else answer)

    def _judge(self, one: _Round, failure: Exception | None) -> None:
        """Note an answer, and judge the rounds that have all of theirs."""
        if failure is None:
            self._calls.give_up([], 1)  # the server answers
        with self._lock:
            one.open -= 1
            if failure is not None:
                one.failures.append(failure)
            while not self._judged.open:
                if not self._judged.is_complete:
                    self._judged.is_complete = True
                    self._calls.give_up(self._judged.failures, self._judged.asked)
                if not self._filling.asked:
                    return
                self._judged, self._filling = self._filling, _Round()
