"""A call of an environment, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from .environment_thread import EnvironmentThread


class _Default(Enum):
    USE_SETTINGS = "as the settings say"


USE_SETTINGS = _Default.USE_SETTINGS
"""Value of a limit of [`EnvironmentCall`] that is taken from the [`FaultSettings`]."""


@dataclass(slots=True)
class EnvironmentCall:
    """
    One call.

    Attributes:
        thread ([`EnvironmentThread`]):
            Whose environment it calls. Calls of one thread run one after the other, in their order.
        function (`Callable[[], Any]`):
            What to call. A coroutine function runs in the event loop, any other in this thread.
        repeatable (`bool`):
            Whether calling twice does what calling once does, see [`may_repeat`].
        may_refuse (`bool`):
            Whether a `ValueError` is an answer rather than a failure.
        retries (`int` or `None`, *optional*, defaults to `USE_SETTINGS`):
            Maximum number of repetitions; `None` for none.
        timeout (`float` or `None`, *optional*, defaults to `USE_SETTINGS`):
            Seconds that it may take; `None` for no limit.
        name (`str`, *optional*, defaults to `""`):
            What is called, for messages, such as "`search` of Library"; empty if its failure never ends a run, as that of closing.
        written (`str`, *optional*, defaults to `""`):
            What an agent wrote into it.
    """

    thread: EnvironmentThread
    function: Callable[[], Any]
    repeatable: bool = False
    may_refuse: bool = False
    retries: int | Literal[_Default.USE_SETTINGS] | None = USE_SETTINGS
    timeout: float | Literal[_Default.USE_SETTINGS] | None = USE_SETTINGS
    name: str = ""
    written: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a call: its `value`, or the `error` of its last attempt."""

    value: Any = None
    error: Exception | None = None
