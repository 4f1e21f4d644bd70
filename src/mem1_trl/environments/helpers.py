"""What the environments share: public methods that are not actions, and how a first observation joins its task."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any


class hidden_method:
    """
    A public method that is not an action. TRL and this package offer every plain function of a class to the agent as an action;
    a method that is wrapped in this class is not a plain function.

    For methods that only the program may call, such as `close`, and for `get_turn_reward` where `GRPOTrainer` shall use the environment, too.

    Example:

    ```python
    >>> from mem1_trl.environments import hidden_method
    >>> class Shop:
    ...     @hidden_method
    ...     def get_turn_reward(self):
    ...         return 1.0
    >>> Shop().get_turn_reward()
    1.0
    ```
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self.function, instance)

    def __call__(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
        return self.function(instance, *args, **kwargs)


def joined_prompt(prompt: Any, observation: str) -> str:
    """The return value of `reset`: the first observation, after a blank line if it is appended to a task prompt."""
    return observation if prompt is None else f"\n\n{observation}"
