"""What may go wrong in an environment, what is done about it, and how often it was. No threads here."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

ON_ENVIRONMENT_ERROR = ("observe", "drop_group")

FIRST_WAIT = 0.5
"""Seconds before the first repetition of a call; each further wait is twice as long."""

LONGEST_WAIT = 60.0
"""Seconds that no wait exceeds."""

_MAX_DESCRIPTION = 500  # characters of an error that are kept

# Libraries have classes of their own for "nobody answered"; what they share with the built-in ones is the name.
# requests, urllib3, httpx, aiohttp, openai and huggingface_hub, in this order
_TRANSIENT = frozenset(
    ("ConnectionError", "TimeoutError", "Timeout", "ProtocolError", "TransportError", "ClientConnectionError")
    + ("APIConnectionError", "InferenceTimeoutError")
)

# What a second attempt with the same arguments meets again
_HOPELESS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    ValueError,
)

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class FaultSettings:
    """
    How calls of an environment are run, and what a failure of one does.

    Attributes:
        timeout (`float` or `None`):
            Seconds that `reset`, an action or `get_reward` may take. `None` waits forever.
        retries (`int`):
            How often a call is repeated after a failure that may pass, see [`may_repeat`].
        concurrency (`int`):
            Most calls at once.
        on_error (`str`):
            `"observe"` shows the error of an action to the agent; `"drop_group"` ends the episode.
    """

    timeout: float | None = 300.0
    retries: int = 2
    concurrency: int = 64
    on_error: str = "observe"

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"environment_timeout={self.timeout} lets no call finish: use seconds above 0, or None.")
        if self.retries < 0:
            raise ValueError(f"environment_retries={self.retries} is negative: use 0 to try once.")
        if self.concurrency < 1:
            raise ValueError(f"environment_concurrency={self.concurrency} lets no call start: use 1 or more.")
        if self.on_error not in ON_ENVIRONMENT_ERROR:
            raise ValueError(
                f"on_environment_error={self.on_error!r} is unknown: use one of "
                f"{', '.join(map(repr, ON_ENVIRONMENT_ERROR))}."
            )


@dataclass(slots=True)
class FaultCounts:
    """
    How often what happened.

    Attributes:
        calls (`int`):
            Calls of `reset`, actions and `get_reward`, a repeated one once.
        errors (`int`):
            Those that failed in the end. An action that raised `ValueError` refused its input and is none of them.
        timeouts (`int`):
            Attempts that took longer than allowed.
        retries (`int`):
            Attempts after the first.
        restarts (`int`):
            Instances that took the place of one that failed.
    """

    calls: int = 0
    errors: int = 0
    timeouts: int = 0
    retries: int = 0
    restarts: int = 0

    def take(self) -> dict[str, int]:
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
        `timeouts`, `retries` and `restarts`.
    """
    total = {
        name: sum(count[name] for count in counts) for name in ("calls", "errors", "timeouts", "retries", "restarts")
    }
    rate = total["errors"] / total["calls"] if total["calls"] else 0.0
    return {"error_rate": rate, **{name: float(total[name]) for name in ("timeouts", "retries", "restarts")}}


class CallTimedOut(TimeoutError):
    """A call took longer than `environment_timeout`."""


class EnvironmentDied(RuntimeError):
    """An environment cannot be called any more: its process is gone, or a call of it never came back."""


class RemoteError(Exception):
    """
    An exception of another process, where its class may not exist.

    Args:
        names (`list[str]`):
            Names of its class and of its base classes.
        message (`str`):
            What it said.
    """

    def __init__(self, names: list[str], message: str):
        super().__init__(names, message)
        self.names = names
        self.message = message

    def __str__(self) -> str:
        return f"{self.names[0]}: {self.message}"


def idempotent(method: Function) -> Function:
    """
    Declare that an action may be repeated: calling it twice does what calling it once does, as a search does.

    Example:

    ```python
    class Library:
        @idempotent
        def search(self, query: str) -> str:
            '''Search the catalogue.'''
            return self.client.search(query)
    ```
    """
    method.idempotent = True  # type: ignore[attr-defined]
    return method


def error_names(error: BaseException) -> list[str]:
    if isinstance(error, RemoteError):
        return error.names
    return [kind.__name__ for kind in type(error).__mro__]


def is_refusal(error: BaseException) -> bool:
    """Whether an action says that its input is wrong, which is a `ValueError`, rather than that the environment failed."""
    return "ValueError" in error_names(error)


def is_transient(error: BaseException) -> bool:
    """Whether an environment says that somebody it talks to did not answer. Running out of our own time is not that."""
    return not isinstance(error, CallTimedOut) and bool(_TRANSIENT & set(error_names(error)))


def may_repeat(error: BaseException, repeatable: bool) -> bool:
    """
    Whether a call that failed is worth another attempt, and safe to be made again.

    Args:
        error (`BaseException`):
            What it raised.
        repeatable (`bool`):
            Whether calling twice does what calling once does: `reset`, `get_reward` and actions marked with [`idempotent`].
            They are repeated unless the error would come again (a `TypeError`, say); other actions only if somebody did not
            answer.
    """
    if isinstance(error, EnvironmentDied) or not isinstance(error, Exception):
        return False
    if is_transient(error):
        return True
    hopeless = {kind.__name__ for kind in _HOPELESS}
    return repeatable and not hopeless & set(error_names(error))


def seconds_to_wait(attempt: int, jitter: random.Random) -> float:
    """
    Back-off before attempt `attempt` + 1: 0.5, 1, 2, ... seconds, at most a minute, each by up to a half more or less.

    The jitter has random numbers of its own, so that a run draws the same ones whether calls failed or not.
    """
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (attempt - 1)) * jitter.uniform(0.5, 1.5)


def error_text(error: BaseException) -> str:
    """Class and message of an exception, as the agent reads it."""
    if isinstance(error, RemoteError):
        return str(error)
    name = error_names(error)[0]
    if isinstance(error, CallTimedOut):
        name = "TimeoutError"
    try:
        return f"{name}: {error}"
    except Exception:  # a message that cannot be made into text
        return name


def describe_error(error: BaseException) -> str:
    """An exception in one line of at most 500 characters, for people."""
    return " ".join(error_text(error)[: 4 * _MAX_DESCRIPTION].split())[:_MAX_DESCRIPTION]


def as_reward(value: Any, source: str = "get_reward") -> float | None:
    """
    What `get_reward` returned, as a number; `None` stays `None`, "not scored".

    Raises:
        `TypeError`: If it is no number.
        `ValueError`: If it is not finite.
    """
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not hasattr(type(value), "__float__"):
        raise TypeError(
            f"{source} gave a {type(value).__name__}: return a float, or None if there is nothing to score"
        )
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"{source} gave {number}")
    return number
