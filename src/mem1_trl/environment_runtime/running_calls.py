"""Calls of environments on their way: what starts when, what is repeated, what is given up, and what has ended."""

from __future__ import annotations

import heapq
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..waiting import LONGEST_SLEEP
from .call_records import EnvironmentCall, Outcome
from .errors import EnvironmentDied
from .faults import seconds_to_wait

if TYPE_CHECKING:
    from .calls import EnvironmentCaller


@dataclass(slots=True, eq=False)
class _Entry:
    """One call: the key under which its outcome is returned, and its present attempt."""

    key: Any
    call: EnvironmentCall
    counted: bool
    attempts: int = 0
    deadline: float = 0.0
    asynchronous: bool = False

    def __lt__(self, other: _Entry) -> bool:  # two that wait until the same moment
        return False


class RunningCalls:
    """
    Calls that were added and have not ended, at most `concurrency` of them at the same time. One thread uses it, but for
    [`~RunningCalls.wake`].

    Args:
        caller ([`EnvironmentCaller`]):
            Begins and ends single attempts, and counts.
    """

    def __init__(self, caller: EnvironmentCaller):
        self._caller = caller
        self._waiting: deque[_Entry] = deque()
        self._delayed: list[tuple[float, _Entry]] = []
        self._running: dict[Future[Any], _Entry] = {}
        self._busy: set[int] = set()  # threads with a call that runs or is to be repeated
        self._ended: SimpleQueue[Future[Any] | None] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._delayed) + len(self._running)

    def add(self, key: Any, call: EnvironmentCall, counted: bool = True) -> None:
        """Let a call begin as soon as it can; its outcome comes with `key`. `counted`: see [`EnvironmentCaller.run`]."""
        self._waiting.append(_Entry(key, call, counted))

    def wake(self) -> None:
        """End the present wait of [`~RunningCalls.step`]; any thread may say so."""
        self._ended.put(None)

    def step(self) -> list[tuple[Any, Outcome]]:
        """
        Start what can start, and wait until something ends or a little while has passed.

        Returns:
            `list[tuple[Any, Outcome]]`: Key and outcome of the calls that have ended for good.

        Raises:
            `KeyboardInterrupt`: If an environment interrupts.
            `ImportError`: If an environment needs a package that cannot be imported, see [`ends_the_run`].
        """
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            entry = heapq.heappop(self._delayed)[1]
            self._busy.discard(id(entry.call.thread))
            self._waiting.appendleft(entry)
        finished = [(entry, outcome) for entry in self._startable() if (outcome := self._start(entry)) is not None]
        for future in [] if finished else self._wait():
            entry = self._running.pop(future)
            self._busy.discard(id(entry.call.thread))
            outcome = self._caller.end(future, entry.call, entry.asynchronous)
            if self._caller.goes_again(entry.call, outcome.error, entry.attempts):
                self._busy.add(id(entry.call.thread))
                pause = seconds_to_wait(entry.attempts, self._caller.jitter)
                heapq.heappush(self._delayed, (time.monotonic() + pause, entry))
            else:
                finished.append((entry, outcome))
        for entry, outcome in finished:
            if entry.counted:
                self._caller.count(entry.call, outcome)
        return [(entry.key, outcome) for entry, outcome in finished]

    def abandon(self) -> None:
        """Wait for nothing any more: environments of which a call runs cannot be used again."""
        for entry in self._running.values():
            entry.call.thread.dead = True

    def _startable(self) -> list[_Entry]:
        """Take out of those that wait what can start now: of each thread its first, as many as there is room for."""
        room = self._caller.settings.concurrency - len(self._running)
        chosen: list[_Entry] = []
        passed: list[_Entry] = []
        threads = set(self._busy)
        while self._waiting and len(chosen) < room:
            entry = self._waiting.popleft()
            (passed if id(entry.call.thread) in threads else chosen).append(entry)
            threads.add(id(entry.call.thread))
        self._waiting.extendleft(reversed(passed))
        return chosen

    def _start(self, entry: _Entry) -> Outcome | None:
        """Begin an attempt; the outcome if there can be none."""
        if entry.call.thread.dead:
            return Outcome(error=EnvironmentDied("an earlier call of this environment never ended"))
        self._busy.add(id(entry.call.thread))
        entry.attempts += 1
        future, entry.deadline, entry.asynchronous = self._caller.begin(entry.call)
        self._running[future] = entry
        future.add_done_callback(self._ended.put)
        return None

    def _wait(self) -> list[Future[Any]]:
        """Wait until calls end, run out of time or are to be repeated; returns those that have ended or must."""
        moments = [entry.deadline for entry in self._running.values()] + [moment for moment, _ in self._delayed[:1]]
        if not moments:
            return []
        seconds = min(max(0.0, min(moments) - time.monotonic()), LONGEST_SLEEP)
        found: list[Future[Any] | None] = []
        try:
            found.append(self._ended.get(timeout=seconds))
            while True:
                found.append(self._ended.get_nowait())
        except Empty:
            pass
        now = time.monotonic()
        found += [future for future, entry in self._running.items() if now >= entry.deadline]
        # The others timed out before
        return [future for future in dict.fromkeys(found) if future is not None and future in self._running]
