"""The errors of environments: which pass by themselves, which are refusals, and how they are described."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from ..printable import one_line
from ..retrying import TRANSIENT_ERRORS

_MAX_DESCRIPTION = 500  # characters of an error that are kept

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

_QUOTED = re.compile(r"'([^']+)'")  # the names in the message of an ImportError

Function = TypeVar("Function", bound=Callable[..., Any])


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
        of_written_code (`bool`, *optional*, defaults to `False`):
            What [`is_of_written_code`] said of it there.
    """

    def __init__(self, names: list[str], message: str, of_written_code: bool = False):
        super().__init__(names, message, of_written_code)
        self.names = names
        self.message = message
        self.of_written_code = of_written_code

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
    # A static method that is decorated hides its own attributes from whoever calls it
    marked: Any = getattr(method, "__func__", method)
    marked.idempotent = True
    return method


def error_names(error: BaseException) -> list[str]:
    if isinstance(error, RemoteError):
        return error.names
    return [kind.__name__ for kind in type(error).__mro__]


def is_refusal(error: BaseException) -> bool:
    """Whether an action says that its input is wrong, which is a `ValueError`, rather than that the environment failed."""
    return "ValueError" in error_names(error)


def is_transient(error: BaseException) -> bool:
    """Whether an environment says that a server did not answer. A call that exceeds `environment_timeout` is not transient."""
    return not isinstance(error, CallTimedOut) and bool(TRANSIENT_ERRORS & set(error_names(error)))


def is_of_written_code(error: BaseException) -> bool:
    """Whether it was raised in code that is in no file, such as what an agent wrote and an action runs with `exec`."""
    if isinstance(error, RemoteError):
        return error.of_written_code
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(file.startswith("<") and not file.startswith("<frozen ") for file in files)


def ends_the_run(error: BaseException, written: str = "") -> bool:
    """
    Whether every later episode would meet the same error: a package of the environment cannot be imported on this machine.

    Then there is nothing that an agent could learn. An import that the agent itself has asked for does not count.

    Args:
        error (`BaseException`):
            What a call of an environment raised.
        written (`str`, *optional*, defaults to `""`):
            What an agent wrote into the call.
    """
    if "ImportError" not in error_names(error) or is_of_written_code(error):
        return False
    named = _QUOTED.findall(str(error))
    return not any(name in written for name in named)


def may_repeat(error: BaseException, repeatable: bool) -> bool:
    """
    Whether a call that failed is worth another attempt, and safe to be made again.

    Args:
        error (`BaseException`):
            What it raised.
        repeatable (`bool`):
            Whether calling twice does what calling once does: `reset`, `get_reward` and actions marked with [`idempotent`].
            They are repeated unless the error would come again (a `TypeError`, say); other actions only if a server did not
            answer.
    """
    if isinstance(error, EnvironmentDied) or not isinstance(error, Exception):
        return False
    if is_transient(error):
        return True
    return repeatable and not is_hopeless(error)


def is_hopeless(error: BaseException) -> bool:
    """Whether an error is of a kind that the same call would meet again, such as a `TypeError`, and not that of a server."""
    return not is_transient(error) and bool({kind.__name__ for kind in _HOPELESS} & set(error_names(error)))


def message_of(error: BaseException) -> str | None:
    """What an exception says; `None` if its message cannot be made into text."""
    try:
        return str(error)
    except Exception:
        return None


def error_text(error: BaseException) -> str:
    """Class and message of an exception, as the agent reads it."""
    if isinstance(error, RemoteError):
        return str(error)
    name = error_names(error)[0]
    if isinstance(error, CallTimedOut):
        name = "TimeoutError"
    message = message_of(error)
    return name if message is None else f"{name}: {message}"


def describe_error(error: BaseException) -> str:
    """An exception in one line of at most 500 characters, for people."""
    return one_line(error_text(error), _MAX_DESCRIPTION)
