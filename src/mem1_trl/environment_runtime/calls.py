"""Calls of environments: many at once, each with a time limit, repeated where that helps; no failure leaves here raised."""

from __future__ import annotations

import asyncio
import heapq
import inspect
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from .errors import CallTimedOut, EnvironmentDied, is_refusal, may_repeat
from .faults import FaultCounts, FaultSettings, seconds_to_wait
from .seat import Seat, closing_hook, terminate

logger = logging.getLogger(__name__)

_GRACE = 1.0  # seconds that a cancelled coroutine has to clean up
_LONGEST_SLEEP = 0.5  # seconds after which the main thread looks for an interrupt, on systems where a wait hides it
_MAKING = 60.0  # seconds that making an instance may take at least: it may load an index or start a process
_CLOSING = 10.0  # seconds that closing one may take at most


@dataclass(slots=True)
class EnvironmentCall:
    """
    One call.

    Attributes:
        seat ([`Seat`]):
            Whose environment it calls. Calls of one seat run one after the other, in their order.
        function (`Callable[[], Any]`):
            What to call. A coroutine function runs in the event loop, any other in the thread of the seat.
        repeatable (`bool`):
            Whether calling twice does what calling once does, see [`may_repeat`].
        may_refuse (`bool`):
            Whether a `ValueError` is no failure but an answer.
        retries (`int` or `None`):
            How often it is repeated; `None` as the settings say.
        timeout (`float`, *optional*):
            Seconds that it may take; 0 stands for what the settings say.
    """

    seat: Seat
    function: Callable[[], Any]
    repeatable: bool = False
    may_refuse: bool = False
    retries: int | None = None
    timeout: float | None = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call: `value`, or the `error` of its last attempt."""

    value: Any = None
    error: Exception | None = None


@dataclass(slots=True)
class _Running:
    index: int
    deadline: float
    asynchronous: bool


class _Escaped(Exception):
    """An interrupt inside a coroutine, which would otherwise end the thread of the event loop."""


class EnvironmentCaller:
    """
    Runs calls of environments.

    Synchronous ones run in the threads of their seats, asynchronous ones in one event loop, which lives as long as the caller
    does, so that a session opened in one turn can be used in the next.

    Args:
        settings ([`FaultSettings`], *optional*):
            Time limit, retries, concurrency.

    Attributes:
        counts ([`FaultCounts`]):
            What happened so far.
    """

    def __init__(self, settings: FaultSettings | None = None):
        self.settings = settings or FaultSettings()
        self.counts = FaultCounts()
        self._seats: dict[int, Seat] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.jitter = random.Random()

    # Seats

    def adopt(self, seat: Seat) -> None:
        """Know the seat of its environment from now on."""
        self._seats[id(seat.environment)] = seat

    def seat_of(self, environment: Any) -> Seat:
        """The seat of an environment; a new one if it has none yet."""
        seat = self._seats.get(id(environment))
        if seat is None:
            seat = Seat(environment)
            self.adopt(seat)
        return seat

    def release(self, seat: Seat) -> None:
        """Forget an environment that belongs to somebody else."""
        self._seats.pop(id(seat.environment), None)
        seat.leave()

    def make(self, seats: Sequence[Seat]) -> list[Exception | None]:
        """Make the instances that seats lack, at once; returns what went wrong with each."""
        empty = [seat for seat in seats if seat.environment is None and seat.factory is not None]
        limit = None if self.settings.timeout is None else max(_MAKING, self.settings.timeout)
        calls = [
            EnvironmentCall(seat, seat.factory, retries=0, timeout=limit) for seat in empty if seat.factory is not None
        ]
        outcomes = self.run(calls, counted=False)
        errors = {}
        for seat, outcome in zip(empty, outcomes):
            if outcome.error is None:
                seat.environment = outcome.value
                self.adopt(seat)
            else:
                errors[id(seat)] = outcome.error
        return [errors.get(id(seat)) for seat in seats]

    def renew(self, seat: Seat) -> None:
        """Empty a seat, so that the next episode gets a new instance; the old one is closed without waiting for it."""
        self.counts.restarts += seat.environment is not None
        self._dispose(seat)
        seat.dead = seat.failed = False

    def _dispose(self, seat: Seat) -> None:
        environment, seat.environment = seat.environment, None
        self._seats.pop(id(environment), None)
        hook = None if seat.dead else closing_hook(environment)
        if hook is None:
            terminate(environment)
        elif inspect.iscoroutinefunction(hook):
            asyncio.run_coroutine_threadsafe(hook(), self._running_loop())
        else:
            seat.submit(hook)
        seat.leave()

    def close(self, seats: Sequence[Seat]) -> None:
        """Close the environments of seats that were made here, empty the seats, and end the event loop."""
        alive = [seat for seat in seats if seat.environment is not None and not seat.dead]
        calls = [
            EnvironmentCall(seat, hook, retries=0, timeout=min(_CLOSING, self.settings.timeout or _CLOSING))
            for seat in alive
            if (hook := closing_hook(seat.environment)) is not None
        ]
        for call, outcome in zip(calls, self.run(calls, counted=False)):
            if outcome.error is not None:
                logger.warning("Closing a %s failed: %r", type(call.seat.environment).__name__, outcome.error)
        for seat in seats:
            terminate(seat.environment)  # what did not end by itself
            self._seats.pop(id(seat.environment), None)
            seat.environment, seat.dead, seat.failed = None, False, False
            seat.leave()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    # Calls

    def run(self, calls: Sequence[EnvironmentCall], counted: bool = True) -> list[Outcome]:
        """
        Run all calls, at most `concurrency` at once, and wait for what came of them.

        Args:
            calls (`Sequence[EnvironmentCall]`):
                Calls of any seats.
            counted (`bool`, *optional*, defaults to `True`):
                Whether they count as `calls`, and as `errors` if they fail.

        Returns:
            `list[Outcome]`: In the order of `calls`.

        Raises:
            `KeyboardInterrupt`: If the user, or an environment, interrupts. What runs is left to itself.
        """
        outcomes: list[Outcome | None] = [None] * len(calls)
        attempts = [0] * len(calls)
        waiting = deque(range(len(calls)))
        delayed: list[tuple[float, int]] = []
        running: dict[Future[Any], _Running] = {}
        busy: set[int] = set()  # seats with a call that runs or is to be repeated
        ended: SimpleQueue[Future[Any]] = SimpleQueue()
        try:
            while waiting or delayed or running:
                while delayed and delayed[0][0] <= time.monotonic():
                    index = heapq.heappop(delayed)[1]
                    busy.discard(id(calls[index].seat))
                    waiting.appendleft(index)
                for index in self._startable(calls, waiting, busy, self.settings.concurrency - len(running)):
                    call = calls[index]
                    if call.seat.dead:
                        outcomes[index] = Outcome(
                            error=EnvironmentDied("an earlier call of this environment never ended")
                        )
                        continue
                    busy.add(id(call.seat))
                    attempts[index] += 1
                    future, state = self._begin(index, call)
                    running[future] = state
                    future.add_done_callback(ended.put)
                for future in self._wait(running, delayed, ended):
                    state = running.pop(future)
                    call = calls[state.index]
                    busy.discard(id(call.seat))
                    outcome = self._end(future, state, call)
                    if self._goes_again(outcome.error, call, attempts[state.index]):
                        self.counts.retries += 1
                        busy.add(id(call.seat))
                        pause = seconds_to_wait(attempts[state.index], self.jitter)
                        heapq.heappush(delayed, (time.monotonic() + pause, state.index))
                    else:
                        outcomes[state.index] = outcome
        except BaseException:
            for state in running.values():
                calls[state.index].seat.dead = True
            raise
        finished = [outcome for outcome in outcomes if outcome is not None]
        assert len(finished) == len(calls)
        if counted:
            self.counts.calls += len(calls)
            self.counts.errors += sum(_is_failure(call, outcome) for call, outcome in zip(calls, finished))
        return finished

    @staticmethod
    def _startable(calls: Sequence[EnvironmentCall], waiting: deque[int], busy: set[int], room: int) -> list[int]:
        """Take out of `waiting` what can start now: at most `room` calls, one of each seat, and of each its first."""
        chosen: list[int] = []
        passed: list[int] = []
        seats = set(busy)
        while waiting and len(chosen) < room:
            index = waiting.popleft()
            (passed if id(calls[index].seat) in seats else chosen).append(index)
            seats.add(id(calls[index].seat))
        waiting.extendleft(reversed(passed))
        return chosen

    @staticmethod
    def _wait(
        running: dict[Future[Any], _Running], delayed: list[tuple[float, int]], ended: SimpleQueue[Future[Any]]
    ) -> list[Future[Any]]:
        """Wait until calls end, run out of time or are to be repeated; returns those that have ended or must."""
        moments = [state.deadline for state in running.values()] + [moment for moment, _ in delayed[:1]]
        if not moments:
            return []
        seconds = min(max(0.0, min(moments) - time.monotonic()), _LONGEST_SLEEP)
        found = []
        try:
            found.append(ended.get(timeout=seconds))
            while True:
                found.append(ended.get_nowait())
        except Empty:
            pass
        now = time.monotonic()
        found += [future for future, state in running.items() if now >= state.deadline]
        return [future for future in dict.fromkeys(found) if future in running]  # the rest was given up before

    def _begin(self, index: int, call: EnvironmentCall) -> tuple[Future[Any], _Running]:
        timeout = self.settings.timeout if call.timeout == 0.0 else call.timeout
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        if inspect.iscoroutinefunction(call.function):
            coroutine = _bounded(call.function, timeout)
            future = asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())
            return future, _Running(index, deadline + _GRACE, True)

        def function() -> Any:
            value = call.function()
            if inspect.isawaitable(value):  # a coroutine function in disguise, such as a partial of one

                async def finish() -> Any:
                    return await value

                value = asyncio.run_coroutine_threadsafe(_bounded(finish, timeout), self._running_loop()).result()
            return value

        return call.seat.submit(function), _Running(index, deadline, False)

    def _end(self, future: Future[Any], state: _Running, call: EnvironmentCall) -> Outcome:
        if not future.done():
            self.counts.timeouts += 1
            call.seat.dead = True
            terminate(call.seat.environment)
            if state.asynchronous:
                future.cancel()
                self._check_loop()
            call.seat.leave()
            timeout = self.settings.timeout if call.timeout == 0.0 else call.timeout
            return Outcome(error=CallTimedOut(_no_answer(timeout)))
        try:
            error = future.exception()
        except CancelledError:
            error = RuntimeError("The call was cancelled.")
        if isinstance(error, (KeyboardInterrupt, _Escaped)):
            raise KeyboardInterrupt
        if error is None:
            return Outcome(future.result())
        self.counts.timeouts += isinstance(error, CallTimedOut)
        call.seat.dead = call.seat.dead or isinstance(error, EnvironmentDied)
        if not isinstance(error, Exception):  # an environment may not end the run by sys.exit
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return Outcome(error=error)

    def _goes_again(self, error: Exception | None, call: EnvironmentCall, attempts: int) -> bool:
        allowed = self.settings.retries if call.retries is None else call.retries
        if error is None or call.seat.dead or attempts > allowed:
            return False
        return may_repeat(error, call.repeatable)

    # The event loop

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True, name="mem1-event-loop").start()
        return self._loop

    def _check_loop(self) -> None:
        """Leave an event loop to itself that some coroutine blocks; the next call gets another."""
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


async def _bounded(function: Callable[[], Coroutine[Any, Any, Any]], timeout: float | None) -> Any:
    """Await a coroutine; it is cancelled when its time is over."""
    scope = asyncio.timeout(timeout)
    try:
        async with scope:
            return await function()
    except TimeoutError:
        if scope.expired():
            raise CallTimedOut(_no_answer(timeout)) from None
        raise
    except KeyboardInterrupt as error:
        raise _Escaped from error
    except SystemExit as error:
        raise RuntimeError(f"SystemExit: {error}") from error


def _is_failure(call: EnvironmentCall, outcome: Outcome) -> bool:
    return outcome.error is not None and not (call.may_refuse and is_refusal(outcome.error))


def _no_answer(timeout: float | None) -> str:
    return f"no answer within {timeout:g} seconds"


def call_then(method: Callable[..., Any], convert: Callable[[Any], Any], **arguments: Any) -> Callable[[], Any]:
    """
    A call of a method, synchronous or not, whose result is converted where the call is made.

    Converting is part of the call: it may fail or take time as well.
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
