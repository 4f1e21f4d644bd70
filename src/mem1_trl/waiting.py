"""Waits that Ctrl-C ends."""

from __future__ import annotations

from collections.abc import Callable

LONGEST_SLEEP = 0.5
"""
Seconds after which a thread that waits looks for an interrupt. A signal that comes in the moment before a wait does not end it, and
on some systems none does.
"""


def wait_until(over: Callable[[float], object]) -> None:
    """
    Wait as long as it takes, in the main thread so that an interrupt ends it.

    Args:
        over (`Callable[[float], object]`):
            Waits at most so many seconds, and returns whether what is waited for has happened.
    """
    while not over(LONGEST_SLEEP):
        pass
