"""Environment instances for a batch of episodes: made once, reset often, chosen by the row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .actions import ActionSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .protocol import Mem1Protocol

EnvironmentFactory = Callable[[], Any]
"""Makes one environment: `reset(**row) -> str | None`, actions, optionally `get_reward() -> float` and `done`."""


class EnvironmentPool:
    """
    Hands out one environment per episode, as `GRPOTrainer(environment_factory=...)` does.

    Args:
        factory (`EnvironmentFactory` or `dict[str, EnvironmentFactory]`):
            Makes an environment. With a dictionary, each row names its environment in the column `environment`.
        protocol ([`Mem1Protocol`]):
            Gives actions their tags.
    """

    def __init__(self, factory: EnvironmentFactory | Mapping[str, EnvironmentFactory], protocol: Mem1Protocol):
        self.routed = isinstance(factory, Mapping)
        self.factories: dict[str | None, EnvironmentFactory] = {}
        if isinstance(factory, Mapping):
            self.factories.update(factory)
        else:
            self.factories[None] = factory
        if not self.factories:
            raise ValueError("`environment_factory` is an empty dictionary: give it at least one environment.")
        for name, make in self.factories.items():
            if not callable(make):
                raise TypeError(
                    f"`environment_factory`{'' if name is None else f'[{name!r}]'} is a {type(make).__name__}: pass a "
                    "class or function without arguments that returns a new environment."
                )
        self._instances: dict[str | None, list[Any]] = {name: [make()] for name, make in self.factories.items()}
        self.actions = {name: ActionSet(made[0], protocol) for name, made in self._instances.items()}

    def name_of(self, row: Mapping[str, Any]) -> str | None:
        """Name of the environment that a dataset row asks for."""
        if not self.routed:
            return None
        name = row.get("environment")
        if name not in self.factories:
            raise ValueError(
                f"A row has environment={name!r}, which is none of {', '.join(map(repr, self.factories))}: correct the "
                "column `environment` of the dataset."
            )
        return name

    def example(self) -> tuple[Any, ActionSet]:
        """One environment with its actions, to be looked at only."""
        name = next(iter(self.factories))
        return self._instances[name][0], self.actions[name]

    def take(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ActionSet]]:
        """One environment for each row, no two alike, with its actions. They are not reset yet."""
        taken: dict[str | None, int] = {}
        result = []
        for row in rows:
            name = self.name_of(row)
            index = taken.get(name, 0)
            taken[name] = index + 1
            if index == len(self._instances[name]):
                self._instances[name].append(self.factories[name]())
            result.append((self._instances[name][index], self.actions[name]))
        return result

    def discard(self, environment: Any) -> None:
        """Hand an environment out no more, for instance because it failed; a new one takes its place."""
        for instances in self._instances.values():
            instances[:] = [instance for instance in instances if instance is not environment]

    def reset(self, environment: Any, row: Mapping[str, Any]) -> str | None:
        """Start an episode of `environment` from a row; returns what `reset` returns."""
        arguments = {key: value for key, value in row.items() if not (self.routed and key == "environment")}
        observation = environment.reset(**arguments)
        if observation is not None and not isinstance(observation, str):
            raise TypeError(
                f"`reset` of {type(environment).__name__} returned a {type(observation).__name__}: return a string that "
                "belongs to the task prompt, or None. Images are not supported."
            )
        return observation

    def reward_functions(self) -> list[Callable[..., Any]]:
        """One TRL reward function, named after its class, for each class of environment that has `get_reward`."""
        functions: list[Callable[..., Any]] = []
        for kind in dict.fromkeys(type(made[0]) for made in self._instances.values()):
            if callable(getattr(kind, "get_reward", None)):
                functions.append(_reward_function(kind))
        return functions


def _reward_function(kind: Any) -> Callable[..., Any]:
    function: Callable[..., Any]
    if inspect.iscoroutinefunction(kind.get_reward):

        async def ask(environments: list[Any], **kwargs: Any) -> list[float | None]:
            return [await e.get_reward() if type(e) is kind else None for e in environments]

        function = ask
    else:

        def read(environments: list[Any], **kwargs: Any) -> list[float | None]:
            return [e.get_reward() if type(e) is kind else None for e in environments]

        function = read
    function.__name__ = kind.__name__
    return function
