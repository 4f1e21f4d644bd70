"""Calls of environments: many at the same time, each with a time limit, repeated where that helps. A failure is returned, not raised."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from .call_records import USE_SETTINGS, EnvironmentCall, Outcome
from .environment_thread import EnvironmentThread, closing_hook, terminate
from .errors import CallTimedOut, EnvironmentDied, ends_the_run, error_text, is_refusal, may_repeat
from .failure_log import FailureLog
from .faults import FaultCounts, FaultSettings
from .running_calls import RunningCalls

logger = logging.getLogger(__name__)

_GRACE = 1.0  # seconds that a cancelled coroutine has to clean up
_SHARE = 0.9  # of the time of a call, for a coroutine that a plain function has returned
_MAKING = 60.0  # seconds that making an instance may take at least: it may load an index or start a process
_CLOSING = 10.0  # seconds that closing one may take at most


class _Escaped(Exception):
    """An interrupt inside a coroutine, which would otherwise end the thread of the event loop."""


class EnvironmentCaller:
    """
    Runs calls of environments.

    Synchronous ones run in the threads of their environments, asynchronous ones in one event loop, which lives as long as the caller
    does, so that a session opened in one turn can be used in the next.

    Args:
        settings ([`FaultSettings`], *optional*):
            Time limit, retries, concurrency.

    Attributes:
        counts ([`FaultCounts`]):
            Numbers of calls, errors, timeouts, retries and restarts.
        failures ([`FailureLog`]):
            Logs the first failure of each method.
    """

    def __init__(self, settings: FaultSettings | None = None):
        self.settings = settings or FaultSettings()
        self.counts = FaultCounts()
        self.failures = FailureLog()
        self._threads: dict[int, EnvironmentThread] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self.jitter = random.Random()

    # Threads

    def adopt(self, thread: EnvironmentThread) -> None:
        """Remember a thread as the one of its environment."""
        self._threads[id(thread.environment)] = thread

    def thread_of(self, environment: Any) -> EnvironmentThread:
        """The thread of an environment; a new one if it has none yet."""
        thread = self._threads.get(id(environment))
        if thread is None:
            thread = EnvironmentThread(environment)
            self.adopt(thread)
        return thread

    def release(self, thread: EnvironmentThread) -> None:
        """Forget an environment that was passed in, and let its thread end."""
        self._threads.pop(id(thread.environment), None)
        thread.leave()

    def make(self, threads: Sequence[EnvironmentThread]) -> list[Exception | None]:
        """
        Errors of making the environments that threads lack, `None` where that succeeded; all are made at the same time.

        Raises:
            `TypeError`: If what was made is a class.
            `ValueError`: If it is the environment of another thread.
        """
        empty = [thread for thread in threads if thread.environment is None and thread.factory is not None]
        limit = None if self.settings.timeout is None else max(_MAKING, self.settings.timeout)
        calls = [
            EnvironmentCall(thread, thread.factory, retries=None, timeout=limit, name="`environment_factory`")
            for thread in empty
            if thread.factory is not None
        ]
        outcomes = self.run(calls, counted=False)
        errors: dict[int, Exception] = {}
        wrong: list[Exception] = []
        for thread, outcome in zip(empty, outcomes):
            if outcome.error is not None:
                errors[id(thread)] = outcome.error
                continue
            try:
                self._check_made(outcome.value)
            except (TypeError, ValueError) as error:
                wrong.append(error)
                continue
            thread.environment = outcome.value
            self.adopt(thread)
        if wrong:  # the others have a thread by now, with which they are closed
            raise wrong[0]
        return [errors.get(id(thread)) for thread in threads]

    def _check_made(self, environment: Any) -> None:
        if inspect.isclass(environment):
            raise TypeError(
                f"`environment_factory` must return an environment, got the class {environment.__name__}: pass the class itself."
            )
        if id(environment) in self._threads:  # two episodes would play in it at once
            raise ValueError(
                f"`environment_factory` must return a new environment at every call, got the same {type(environment).__name__} twice: make it inside the "
                "function."
            )

    def renew(self, thread: EnvironmentThread) -> None:
        """Drop the environment of a thread, so that the next episode gets a new one; the old one is closed without waiting for it."""
        self.counts.restarts += thread.environment is not None
        self._dispose(thread)
        thread.dead = thread.failed = False

    def _dispose(self, thread: EnvironmentThread) -> None:
        environment, thread.environment = thread.environment, None
        self._threads.pop(id(environment), None)
        hook = None if thread.dead else closing_hook(environment)
        if hook is None:
            terminate(environment)
        elif inspect.iscoroutinefunction(hook):
            asyncio.run_coroutine_threadsafe(hook(), self._running_loop())
        else:
            thread.submit(hook)
        thread.leave()

    def close(self, threads: Sequence[EnvironmentThread]) -> None:
        """Close the environments that were made for these threads, and end the event loop."""
        self.close_environments(threads)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def close_environments(self, threads: Sequence[EnvironmentThread]) -> None:
        """Close the environments that were made for these threads, while others are still called."""
        alive = [thread for thread in threads if thread.environment is not None and not thread.dead]
        calls = [
            EnvironmentCall(thread, hook, retries=None, timeout=min(_CLOSING, self.settings.timeout or _CLOSING))
            for thread in alive
            if (hook := closing_hook(thread.environment)) is not None
        ]
        for call, outcome in zip(calls, self.run(calls, counted=False)):
            if outcome.error is not None:
                logger.warning("Closing a %s failed: %r", type(call.thread.environment).__name__, outcome.error)
        for thread in threads:
            terminate(thread.environment)  # a process that did not end by itself
            self._threads.pop(id(thread.environment), None)
            thread.environment, thread.dead, thread.failed = None, False, False
            thread.leave()

    # Calls

    def run(self, calls: Sequence[EnvironmentCall], counted: bool = True) -> list[Outcome]:
        """
        Run all calls, at most `concurrency` at the same time, and wait for their outcomes.

        Args:
            calls (`Sequence[EnvironmentCall]`):
                Calls of any threads.
            counted (`bool`, *optional*, defaults to `True`):
                Whether they count as `calls`, and as `errors` if they fail.

        Returns:
            `list[Outcome]`: In the order of `calls`.

        Raises:
            `KeyboardInterrupt`: If the user, or an environment, interrupts. Running calls are not waited for.
            `ImportError`: If an environment needs a package that cannot be imported, see [`ends_the_run`].
        """
        outcomes: dict[int, Outcome] = {}
        running = RunningCalls(self)
        try:
            for index, call in enumerate(calls):
                running.add(index, call, counted)
            while len(outcomes) < len(calls):
                outcomes.update(running.step())
        except BaseException:
            running.abandon()
            raise
        return [outcomes[index] for index in range(len(calls))]

    def count(self, call: EnvironmentCall, outcome: Outcome) -> None:
        """Count a call that has ended, and note its failure."""
        self.counts.calls += 1
        if is_failure(call, outcome):
            self.counts.errors += 1
            if call.name and outcome.error is not None:
                self.failures.note(call.name, outcome.error)

    # One attempt of a call, for [`RunningCalls`]

    def begin(self, call: EnvironmentCall) -> tuple[Future[Any], float, bool]:
        """Start an attempt: its result in the future, the moment at which it is given up, whether it runs in the event loop."""
        timeout = self._timeout_of(call)
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        if inspect.iscoroutinefunction(call.function):
            coroutine = _bounded(call.function, timeout)
            future = asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())
            return future, deadline + _GRACE, True

        def function() -> Any:
            value = call.function()
            if inspect.isawaitable(value):  # a coroutine function in disguise, such as one with a plain decorator

                async def finish() -> Any:
                    return await value

                # It is cancelled before its thread, which waits for it here, is given up with the episode
                left = None if timeout is None else max(0.0, _SHARE * (deadline - time.monotonic()))
                value = asyncio.run_coroutine_threadsafe(
                    _bounded(finish, left, timeout), self._running_loop()
                ).result()
            return value

        return call.thread.submit(function), deadline, False

    def end(self, future: Future[Any], call: EnvironmentCall, asynchronous: bool) -> Outcome:
        """The outcome of an attempt that has ended, or whose time is over."""
        if not future.done():
            self.counts.timeouts += 1
            call.thread.dead = True
            terminate(call.thread.environment)
            if asynchronous:
                future.cancel()
                self._check_loop()
            call.thread.leave()
            return Outcome(error=CallTimedOut(_no_answer(self._timeout_of(call))))
        try:
            error = future.exception()
        except CancelledError:
            error = RuntimeError("The call was cancelled.")
        if isinstance(error, (KeyboardInterrupt, _Escaped)):
            raise KeyboardInterrupt
        if error is None:
            return Outcome(future.result())
        self.counts.timeouts += isinstance(error, CallTimedOut)
        call.thread.dead = call.thread.dead or isinstance(error, EnvironmentDied)
        if not isinstance(error, Exception):  # an environment may not end the run by sys.exit
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return Outcome(error=error)

    def goes_again(self, call: EnvironmentCall, error: Exception | None, attempts: int) -> bool:
        """Whether a call is tried once more after `attempts` of them, which is counted; an error that no repetition can mend is raised."""
        if error is None:
            return False
        if call.name and ends_the_run(error, call.written):
            raise ImportError(
                f"{call.name} cannot work here and would fail in every episode: {error_text(error)}"
            ) from error
        allowed = self.settings.retries if call.retries is USE_SETTINGS else call.retries or 0
        again = not call.thread.dead and attempts <= allowed and may_repeat(error, call.repeatable)
        self.counts.retries += again
        return again

    def _timeout_of(self, call: EnvironmentCall) -> float | None:
        return self.settings.timeout if call.timeout is USE_SETTINGS else call.timeout

    # The event loop

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:  # several threads may play with one agent
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True, name="mem1-event-loop").start()
            return self._loop

    def _check_loop(self) -> None:
        """Give up an event loop that a coroutine blocks; the next call gets a new one."""
        if self._loop is None:
            return
        answer: Future[None] = Future()
        self._loop.call_soon_threadsafe(answer.set_result, None)
        try:
            answer.result(timeout=_GRACE)
        except TimeoutError:
            logger.warning("An asynchronous environment blocks the event loop; a new loop takes its place.")
            self._loop = None

    def __del__(self) -> None:
        loop = getattr(self, "_loop", None)
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(loop.stop)


async def _bounded(
    function: Callable[[], Coroutine[Any, Any, Any]], timeout: float | None, named: float | None = None
) -> Any:
    """Await a coroutine; it is cancelled when its time is over, of which the error names `named` if that is given."""
    scope = asyncio.timeout(timeout)
    try:
        async with scope:
            return await function()
    except TimeoutError:
        if scope.expired():
            raise CallTimedOut(_no_answer(timeout if named is None else named)) from None
        raise
    except KeyboardInterrupt as error:
        raise _Escaped from error
    except SystemExit as error:
        raise RuntimeError(f"SystemExit: {error}") from error


def name_of_call(environment: Any, method: str) -> str:
    """A method of an environment, as messages name it."""
    return f"`{method}` of {type(environment).__name__}"


def is_failure(call: EnvironmentCall, outcome: Outcome) -> bool:
    """Whether a call failed, other than by refusing its input."""
    return outcome.error is not None and not (call.may_refuse and is_refusal(outcome.error))


def _no_answer(timeout: float | None) -> str:
    return f"no answer within {timeout:g} seconds"


def call_then(method: Callable[..., Any], convert: Callable[[Any], Any], /, **arguments: Any) -> Callable[[], Any]:
    """
    A function that calls a method, synchronous or not, and then converts its result.

    Converting is part of the call: an error in it is an error of the call, and its time counts.
    """
    if inspect.iscoroutinefunction(method):

        async def call() -> Any:
            return convert(await method(**arguments))

        return call

    def call_or_begin() -> Any:
        value = method(**arguments)
        if not inspect.isawaitable(value):
            return convert(value)

        async def finish() -> Any:
            return convert(await value)

        return finish()

    return call_or_begin
