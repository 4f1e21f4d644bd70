"""Plain functions as the actions of an environment."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from .actions import RESERVED
from .arguments import type_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESERVED_NAMES = (*RESERVED, "close", "done")
"""Names that no tool can have."""


def is_action_name(name: str) -> bool:
    """Whether a tool may have a name."""
    return name.isidentifier() and not name.startswith("_") and name not in RESERVED_NAMES


def environment_of(tools: Sequence[Callable[..., Any]]) -> Any:
    """
    An environment whose actions are functions: `[search, read]` become its actions `search` and `read`.

    Args:
        tools (`Sequence[Callable]`):
            Functions, synchronous or not, with docstrings as in [`~trl.GRPOTrainer`]. Bound methods and callable objects with a
            `__name__` do as well. None at all is an environment without actions, in which an agent can only answer.

    Returns:
        `Any`: An environment without `reset` and reward, which keeps no state of its own.

    Raises:
        `TypeError`: If one cannot be called.
        `ValueError`: If one has no name that an action can have, or two have the same.
    """
    if callable(tools):
        raise TypeError(f"`tools` must be a list of functions, got the function {_name(tools)!r}: put it into a list.")
    members: dict[str, Any] = {}
    for tool in tools:
        if not callable(tool) or inspect.isclass(tool):
            raise TypeError(f"Each of `tools` must be a function, got {tool!r:.80}.")
        name = _name(tool)
        if not is_action_name(name):
            raise ValueError(
                f"A tool must have a name that an action can have, got {name!r}: define it with `def`, under a name that does "
                f"not begin with an underscore and is none of {', '.join(RESERVED_NAMES)}."
            )
        if name in members:
            raise ValueError(f"Each tool must have a name of its own, got two named {name!r}.")
        members[name] = staticmethod(tool if inspect.isfunction(tool) else _function(tool, name))
    return type("Tools", (), members)()


def _name(tool: Any) -> str:
    inner = _inner(tool)
    return str(getattr(inner, "__name__", type(inner).__name__))


def _inner(tool: Any) -> Any:
    """What a partial is one of."""
    while isinstance(tool, functools.partial):
        tool = tool.func
    return tool


def _function(tool: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function that calls a bound method or another callable, with its signature and docstring."""

    inner: Any = _inner(tool)
    inner = inner if inspect.isroutine(inner) else inner.__call__

    async def call_and_wait(*args: Any, **kwargs: Any) -> Any:
        return await tool(*args, **kwargs)

    def call_at_once(*args: Any, **kwargs: Any) -> Any:
        return tool(*args, **kwargs)

    call: Callable[..., Any] = call_and_wait if inspect.iscoroutinefunction(inner) else call_at_once
    functools.update_wrapper(call, tool)
    call.__name__ = name
    call.__doc__ = inspect.getdoc(_inner(tool))  # that of a partial is about partials
    call.__annotations__ = type_hints(inner)
    return call
