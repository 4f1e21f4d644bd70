"""Settings and counts of failures of environments. No threads here."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..retrying import backoff
from ..typed_fields import described, fits, type_hints

ON_ENVIRONMENT_ERROR = ("observe", "drop_group")

LARGEST_REWARD = 3.4028234663852886e38
"""The largest number of float32, in which rewards are trained on."""

FIRST_WAIT = 0.5
"""Seconds before the first repetition of a call; each further wait is twice as long, up to a minute."""


@dataclass(frozen=True, slots=True)
class FaultSettings:
    """
    How calls of an environment are run, and what a failure of one does.

    Attributes:
        timeout (`float` or `None`):
            Seconds that `reset`, an action or `get_reward` may take. `None` waits forever.
        retries (`int`):
            Maximum number of repetitions of a call after a failure that may pass, see [`may_repeat`].
        concurrency (`int`):
            Maximum number of calls at the same time.
        on_error (`str`):
            `"observe"` shows the error of an action to the agent; `"drop_group"` ends the episode.
    """

    timeout: float | None = 300.0
    retries: int = 2
    concurrency: int = 64
    on_error: str = "observe"

    def __post_init__(self) -> None:
        hints = type_hints(FaultSettings)
        for name in ("timeout", "retries", "concurrency"):
            if not fits(getattr(self, name), hints[name]):
                raise ValueError(f"environment_{name} must be {described(hints[name])}, got {getattr(self, name)!r}.")
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"environment_timeout must be positive or None, got {self.timeout}.")
        if self.retries < 0:
            raise ValueError(f"environment_retries must be at least 0, got {self.retries}.")
        if self.concurrency < 1:
            raise ValueError(f"environment_concurrency must be at least 1, got {self.concurrency}.")
        if self.on_error not in ON_ENVIRONMENT_ERROR:
            raise ValueError(
                f"on_environment_error={self.on_error!r} is unknown: use one of "
                f"{', '.join(map(repr, ON_ENVIRONMENT_ERROR))}."
            )


@dataclass(slots=True)
class FaultCounts:
    """
    Numbers of calls of environments, and of their failures.

    Attributes:
        calls (`int`):
            Calls of `reset`, actions and `get_reward`, a repeated one once.
        errors (`int`):
            Those that failed in the end. An action that raised `ValueError` refused its input and does not count.
        action_errors (`int`):
            Those of `errors` that were actions.
        reset_errors (`int`):
            Those of `errors` that were calls of `reset`, each of which is an episode that could not begin.
        timeouts (`int`):
            Attempts that took longer than allowed.
        retries (`int`):
            Attempts after the first.
        restarts (`int`):
            Instances that took the place of one that failed.
    """

    calls: int = 0
    errors: int = 0
    action_errors: int = 0
    reset_errors: int = 0
    timeouts: int = 0
    retries: int = 0
    restarts: int = 0

    def reset(self) -> dict[str, int]:
        """The numbers since the last call of this method, by name."""
        numbers = asdict(self)
        for name in numbers:
            setattr(self, name, 0)
        return numbers


def fault_metrics(counts: list[Mapping[str, int]]) -> dict[str, float]:
    """
    Numbers to log from the counts of all processes.

    Returns:
        `dict[str, float]`: `error_rate`, the share of calls that failed in the end (0 if there were none), and the numbers of
        `action_errors`, `reset_errors`, `timeouts`, `retries` and `restarts`.
    """
    names = [one.name for one in fields(FaultCounts)]
    total = {name: sum(count[name] for count in counts) for name in names}
    calls, errors = total.pop("calls"), total.pop("errors")
    return {"error_rate": errors / calls if calls else 0.0, **{name: float(value) for name, value in total.items()}}


def seconds_to_wait(attempt: int, jitter: random.Random) -> float:
    """
    Back-off before attempt `attempt` + 1: 0.5, 1, 2, ... seconds, each by up to a half more or less, at most a minute.

    The jitter has random numbers of its own, so that a run draws the same ones whether calls failed or not.
    """
    return backoff(attempt, FIRST_WAIT, spread=0.5, numbers=jitter)


def as_reward(value: Any, source: str = "get_reward") -> float | None:
    """
    What `get_reward` or a reward function returned, as a number; `None` stays `None`, "not scored".

    Raises:
        `TypeError`: If it is not a number.
        `ValueError`: If it is not finite in float32.
    """
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not hasattr(type(value), "__float__"):
        raise TypeError(
            f"{source} gave a {type(value).__name__}: return a float, or None if there is nothing to score"
        )
    try:
        number = float(value)
    except OverflowError:  # of an integer
        number = float("inf")
    except (TypeError, ValueError, RuntimeError):  # an array or a tensor of several numbers
        raise TypeError(
            f"{source} gave a {type(value).__name__} of shape {tuple(getattr(value, 'shape', ()))}: return a float, or None if there is nothing "
            "to score"
        ) from None
    if not abs(number) <= LARGEST_REWARD:  # NaN is not, either
        raise ValueError(f"{source} gave {number}")
    return number
