"""Threads for requests to a server, which nothing waits for when they hang."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

_Job = tuple["Future[Any]", Callable[[], Any]]


class RequestThreads:
    """
    A few threads that run functions, as `concurrent.futures.ThreadPoolExecutor`, but daemons: the end of the program does not
    wait for them, so that Ctrl-C ends it also while a server hangs. They end with [`~RequestThreads.close`], or when nothing
    refers to this object any more.

    Args:
        most (`int`):
            Maximum number of threads.
    """

    def __init__(self, most: int):
        self._most = most
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """The result, in the future, of running a function. All functions are submitted by one thread."""
        future: Future[Any] = Future()
        self._jobs.put((future, function))
        if self._started < self._most and not self._idle.acquire(blocking=False):
            self._started += 1
            threading.Thread(
                target=_work, args=(self._jobs, self._idle), daemon=True, name=f"mem1-request-{self._started}"
            ).start()
        return future

    def close(self) -> None:
        """Cancel the functions that have not begun, and let each thread end after the one that it runs."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is not None:
                job[0].cancel()
        self._let_end()

    def __del__(self) -> None:
        self._let_end()

    def _let_end(self) -> None:
        """Let the threads end after the functions that were submitted."""
        for _ in range(self._started):
            self._jobs.put(None)


def fulfil(future: Future[Any], function: Callable[[], Any]) -> None:
    """Put into a future what a function returns or raises."""
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


def _work(jobs: SimpleQueue[_Job | None], idle: threading.Semaphore) -> None:
    while (job := jobs.get()) is not None:
        future, function = job
        if future.set_running_or_notify_cancel():
            fulfil(future, function)
        del job, future, function  # an idle thread keeps nothing alive
        idle.release()
