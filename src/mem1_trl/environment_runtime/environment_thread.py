"""A thread for one environment, in which it is made, called and closed."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from ..request_threads import fulfil

_Job = tuple["Future[Any]", Callable[[], Any]]


class EnvironmentThread:
    """
    A thread with its environment, which is made, called and closed there.

    All calls of an instance run in one thread, so that an object that may not leave its thread (an sqlite connection, a
    synchronous browser) works. The thread is a daemon: when it hangs, nothing waits for it, not even the end of the program.

    Args:
        environment (`Any`, *optional*):
            The instance, if there is one.
        factory (`Callable`, *optional*):
            Makes another. `None` if the environment was passed in and cannot be replaced.
    """

    __slots__ = ("__weakref__", "_inbox", "dead", "environment", "factory", "failed")

    def __init__(self, environment: Any = None, factory: Callable[[], Any] | None = None):
        self.environment = environment
        self.factory = factory
        self.dead = False
        """Whether the instance cannot be called any more."""
        self.failed = False
        """Whether the instance failed an episode, so that the next episode should have another."""
        self._inbox: SimpleQueue[_Job | None] | None = None

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """The result, in the future, of running a function in the thread after those that were submitted before."""
        if self._inbox is None:
            self._inbox = SimpleQueue()
            threading.Thread(target=_work, args=(self._inbox,), daemon=True, name="mem1-environment").start()
        future: Future[Any] = Future()
        self._inbox.put((future, function))
        return future

    def leave(self) -> None:
        """Let the thread end after the functions that were submitted; the next one starts a new thread."""
        if self._inbox is not None:
            self._inbox.put(None)
            self._inbox = None

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.leave()


def _work(inbox: SimpleQueue[_Job | None]) -> None:
    while (job := inbox.get()) is not None:
        future, function = job
        fulfil(future, function)
        del job, future, function  # an idle thread keeps nothing alive


def closing_hook(environment: Any) -> Callable[[], Any] | None:
    """The method `close` of an environment, if it has one that takes no arguments and so is not an action."""
    if inspect.getattr_static(type(environment), "close", None) is None:
        return None
    method = environment.close
    return method if callable(method) and takes_nothing(method) else None


def takes_nothing(method: Callable[..., Any]) -> bool:
    """Whether a bound method can only be called without arguments."""
    try:
        return not inspect.signature(method).parameters
    except (TypeError, ValueError):  # built in C
        return False


def terminate(environment: Any) -> None:
    """Kill the process of an environment, if it has one; see [`mem1_trl.process_environment`]."""
    kill = getattr(type(environment), "_terminate", None)
    if kill is not None:
        with contextlib.suppress(Exception):
            kill(environment)
