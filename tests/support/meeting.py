"""A proof that calls overlap, whatever the machine is busy with."""

from __future__ import annotations

import asyncio
import threading
import time

PATIENCE = 60.0


class Meeting:
    """
    A barrier for threads and coroutines alike: none passes until `count` have arrived, and then the next round begins.

    Calls that run one after the other never meet, and the first of them fails after a minute.

    Args:
        count (`int`):
            How many must be there at the same time.
    """

    def __init__(self, count: int):
        self.count = count
        self.arrived = 0
        self._lock = threading.Lock()

    def _arrive(self) -> tuple[int, float]:
        """How many must have arrived for the caller to pass, and when it gives up."""
        with self._lock:
            self.arrived += 1
            return -(-self.arrived // self.count) * self.count, time.monotonic() + PATIENCE

    def _may_pass(self, needed: int, deadline: float) -> bool:
        if time.monotonic() > deadline:
            raise AssertionError(
                f"{self.count} calls must overlap, but only {self.count - (needed - self.arrived)} did"
            )
        return self.arrived >= needed

    def wait(self) -> None:
        """Wait for the others, in a thread."""
        arrived = self._arrive()
        while not self._may_pass(*arrived):
            time.sleep(0.001)

    async def wait_async(self) -> None:
        """Wait for the others, in a coroutine."""
        arrived = self._arrive()
        while not self._may_pass(*arrived):
            await asyncio.sleep(0.001)
