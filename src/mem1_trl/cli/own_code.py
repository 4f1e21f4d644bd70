"""What a user names by its import path, and whether an agent can be played with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .options import CommandError

if TYPE_CHECKING:
    from ..protocol.protocol import Mem1Protocol


def imported(path: str, option: str) -> Any:
    """
    What an import path such as `my_shop.ShopEnvironment` names.

    Args:
        path (`str`):
            The import path.
        option (`str`):
            Where it was given.

    Raises:
        `CommandError`: If there is no such module, or nothing of that name in it.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    if not module:
        raise CommandError(f"{option} must be an import path such as my_module.name, got {path!r}")
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        raise CommandError(f"{option}={path!r} cannot be imported: {error}") from None
    except Exception as error:  # the code is the user's
        raise CommandError(f"{option}={path!r} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return getattr(loaded, name)
    except AttributeError:
        raise CommandError(f"{option}={path!r} cannot be imported: {module} has no {name!r}") from None


def check_environment(
    protocol: Mem1Protocol, source: str, factory: Callable[[], Any] | None, talks: bool = False
) -> None:
    """
    Refuse an environment in which an agent could not take one turn, before its model is loaded.

    Args:
        protocol ([`Mem1Protocol`]):
            How the agent is spoken to.
        source (`str`):
            Where the protocol comes from, such as `"saved with runs/shop"`.
        factory (`Callable`, *optional*):
            Makes the environment. `None` gives the agent nothing that it may do.
        talks (`bool`, *optional*, defaults to `False`):
            Whether the task is a message, so that `reset` gets nothing but the `prompt`.

    Raises:
        `CommandError`: If the environment cannot be made, has no action that the protocol calls, or needs more than a prompt.
    """
    from ..environment_runtime.calls import EnvironmentCaller
    from ..environment_runtime.environment_thread import EnvironmentThread

    if factory is None:
        for name in (protocol.action_tags or {}).values():
            raise CommandError(
                f"the protocol {source} has the action {name!r}, but the agent is given nothing that it may do: add --corpus facts, "
                "a corpus or an --environment of yours, or --protocol default"
            )
        return
    caller, thread = EnvironmentCaller(), EnvironmentThread(factory=factory)
    try:
        (failed,) = caller.make([thread])
        if failed is not None:  # the code is the user's
            raise CommandError(f"the environment cannot be made: {type(failed).__name__}: {failed}") from failed
        _check_made(thread.environment, protocol, source, talks)
    finally:
        caller.close([thread])


def _check_made(environment: Any, protocol: Mem1Protocol, source: str, talks: bool) -> None:
    """Refuse an environment that has no action that the protocol calls, or needs more than a prompt."""
    from ..environment_runtime.actions import action_methods

    kind, methods = type(environment).__name__, action_methods(environment)
    for name in (protocol.action_tags or {}).values():
        if name not in methods:
            raise CommandError(
                f"the protocol {source} has the action {name!r}, but {kind} has {', '.join(sorted(methods)) or 'none'}: give an "
                "environment that has it, or --protocol default, whose actions are those of the environment"
            )
    needed = _needed(getattr(environment, "reset", None)) if talks else []
    if needed:
        raise CommandError(
            f"reset of {kind} needs {', '.join(map(repr, needed))}, but a message brings the prompt only: give it a default"
        )


def _needed(reset: Any) -> list[str]:
    """Arguments that `reset` cannot do without, besides the prompt."""
    if not callable(reset):
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(reset).parameters.items()
    return [name for name, one in found if name != "prompt" and one.default is one.empty and one.kind not in optional]
