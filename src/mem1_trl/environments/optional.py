"""What the environments share: optional packages with a clear sentence, and methods that are not actions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import MethodType
from typing import Any


def require(module: str, extra: str, purpose: str) -> Any:
    """
    Import an optional package.

    Args:
        module (`str`):
            What to import, such as `"gymnasium"`.
        extra (`str`):
            The extra of this package that installs it.
        purpose (`str`):
            Who needs it, the beginning of the sentence that is raised.

    Raises:
        `ImportError`: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f'{purpose} needs the package {package}, which cannot be imported ({error}): pip install "mem1-trl[{extra}]".'
        ) from error


class hidden_method:
    """
    A public method that is no action: TRL and this package offer an agent every plain function of a class, and this is none.

    For what the program calls and an agent must not, such as `close`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self.function, instance)

    def __call__(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
        return self.function(instance, *args, **kwargs)


def joined_prompt(prompt: Any, observation: str) -> str:
    """What `reset` returns: the first observation, apart from the task prompt that it is appended to, if there is one."""
    return observation if prompt is None else f"\n\n{observation}"
