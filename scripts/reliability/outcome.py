"""The outcome of one category: how many cases were tried, how many held, and what the others were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

KEPT = 5
"""Failures that are described; the others are counted."""


@dataclass
class Outcome:
    """
    Cases that were tried.

    Attributes:
        tried (`int`):
            Number of cases.
        failed (`int`):
            Those that did not hold.
        skipped (`int`):
            Number of cases that cannot be tried on this machine; `tried` does not count them.
        failures (`list[str]`):
            What the first of the failed cases were.
        note (`str`):
            What was measured, if it is a number.
    """

    tried: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def held(self) -> int:
        return self.tried - self.failed

    @contextmanager
    def case(self, what: object) -> Iterator[None]:
        """One case, which holds unless something is raised inside. `what` repeats it."""
        self.tried += 1
        try:
            yield
        except Exception as error:
            self.fail(f"{what}: {type(error).__name__}: {error}")

    def fail(self, description: str) -> None:
        """Count a case that did not hold; the first ones are described."""
        self.failed += 1
        if len(self.failures) < KEPT:
            self.failures.append(description[:600])


def equal(found: object, expected: object, what: str) -> None:
    """Raises unless both are the same; unlike `assert`, also where Python runs with `-O`."""
    if found != expected:
        raise AssertionError(f"{what} is {found!r}, expected {expected!r}")


def holds(condition: object, what: str) -> None:
    """Raises unless the condition is true."""
    if not condition:
        raise AssertionError(what)
