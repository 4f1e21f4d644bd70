"""The gate of reward functions: not asked about episodes that failed, and held to a finite number or `None` for all others."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..environment_runtime.faults import as_reward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..trajectory import Trajectory


class RewardGate:
    """
    What the reward functions of one batch of this process are asked, and what is taken from them.

    Reward functions are written for episodes; one that never began has no turns, perhaps no environment, and gets 0. What they
    return is held to the same rule as `get_reward` of an environment. Reward models get texts only and are asked as they are.

    For an episode a function may give a list in place of a number: one number (or `None`) for each of its turns. TRL is then told their sum.

    Args:
        failed (`list[bool]`):
            Which episodes failed.
        turns (`list[int]`):
            Number of turns of each episode.

    Attributes:
        problems (`dict[int, str]`):
            Index of each episode that a reward function gave a number for that is not finite, and what it gave.
        turn_rewards (`dict[tuple[int, int], list[float]]`):
            What functions gave for single turns, 0 for `None`, by the index of the function and of the episode.
    """

    def __init__(self, failed: list[bool], turns: list[int]):
        self.failed = failed
        self.turns = turns
        self.kept = [index for index, one in enumerate(failed) if not one]
        self.problems: dict[int, str] = {}
        self.turn_rewards: dict[tuple[int, int], list[float]] = {}

    def guard(self, function: Any, name: str, column: int = 0) -> Any:
        """
        A function that may take the place of a reward function in TRL, the one of index `column`.

        Raises:
            `TypeError`: From the function that is returned, if a reward is neither a number nor a list of numbers.
            `ValueError`: From it, if there are more or fewer rewards than episodes it was asked about, or than turns of one.
            `Exception`: Whatever the function itself raises, with a note that names it.
        """
        if isinstance(function, torch.nn.Module):
            return function
        if _is_asynchronous(function):

            async def ask(**kwargs: Any) -> list[Any]:
                with _named(name):
                    values = await function(**self._chosen(kwargs)) if self.kept else []
                return self._taken(values, name, column)

            return ask

        def call(**kwargs: Any) -> list[Any]:
            with _named(name):
                values = function(**self._chosen(kwargs)) if self.kept else []
            return self._taken(values, name, column)

        return call

    def of_turns(self, index: int) -> list[tuple[int, list[float]]]:
        """What functions gave for the turns of an episode: indices of functions, each with its numbers."""
        return sorted((column, numbers) for (column, row), numbers in self.turn_rewards.items() if row == index)

    def weighted_turns(self, index: int, weights: Sequence[float]) -> list[float] | None:
        """The weighted sums of what functions gave for the turns of an episode, `None` if they gave nothing."""
        columns = [(weights[column], numbers) for column, numbers in self.of_turns(index)]
        if not columns:
            return None
        return [sum(weight * numbers[place] for weight, numbers in columns) for place in range(self.turns[index])]

    def take(self, index: int, other: RewardGate, place: int) -> None:
        """Forget an episode, and know of it what another gate knows of the one at `place`."""
        self.failed[index], self.turns[index] = other.failed[place], other.turns[place]
        self.problems.pop(index, None)
        if place in other.problems:
            self.problems[index] = other.problems[place]
        self.turn_rewards = {key: numbers for key, numbers in self.turn_rewards.items() if key[1] != index}
        self.turn_rewards |= {(column, index): numbers for column, numbers in other.of_turns(place)}

    def check_models(self, functions: Sequence[Any], names: Sequence[str], rewards: torch.Tensor) -> None:
        """
        Note what reward models gave.

        Args:
            functions, names (`Sequence`):
                The reward functions and their names.
            rewards (`torch.Tensor`):
                Shape `(B, F)`: what TRL took from each for the episodes of this process.
        """
        for column, (function, name) in enumerate(zip(functions, names, strict=True)):
            if isinstance(function, torch.nn.Module):
                for index in (~rewards[:, column].isfinite()).nonzero().flatten().tolist():
                    if not self.failed[index]:
                        self.problems[index] = f"The reward model {name!r} gave {float(rewards[index, column])}"

    def _taken(self, values: Any, name: str, column: int) -> list[Any]:
        if isinstance(values, (str, bytes, Mapping)) or not _is_row(values):
            raise TypeError(
                f"The reward function '{name}' must return a list with one number for each of {len(self.kept)} completions, got a "
                f"{type(values).__name__}."
            )
        values = list(values)
        if len(values) != len(self.kept):
            raise ValueError(
                f"The reward function '{name}' returned {len(values)} rewards, but {len(self.kept)} were expected: one for "
                "each completion that it is asked about."
            )
        rewards: list[Any] = [0.0] * len(self.failed)
        for index, value in zip(self.kept, values):
            if getattr(value, "ndim", 0) == 1:  # rewards of turns as an array or a tensor
                value = value.tolist()
            if isinstance(value, (list, tuple)) and len(value) != self.turns[index]:
                raise ValueError(
                    f"The reward function '{name}' returned a list of {len(value)} for row {index} of the batch: it must have one "
                    f"number for each of the {self.turns[index]} turns, or be one number for the episode."
                )
            try:
                if isinstance(value, (list, tuple)):
                    rewards[index] = self._sum_of_turns(value, name, (column, index))
                else:
                    rewards[index] = as_reward(value, f"The reward function {name!r}")
            except TypeError as error:
                raise TypeError(f"{error} (row {index} of the batch).") from None
            except ValueError as error:
                # Such an episode is left out of the update; None would make TRL say that nothing was returned
                rewards[index], self.problems[index] = 0.0, str(error)
        return rewards

    def _sum_of_turns(self, values: Sequence[Any], name: str, place: tuple[int, int]) -> float | None:
        """The sum of the rewards of the turns of an episode, which are noted; `None` if all are."""
        numbers = [as_reward(one, f"The reward function {name!r}, for turn {n},") for n, one in enumerate(values, 1)]
        if all(number is None for number in numbers):
            return None
        total = as_reward(
            sum(number or 0.0 for number in numbers), f"The reward function {name!r}, summed over turns,"
        )
        self.turn_rewards[place] = [number or 0.0 for number in numbers]
        return total

    def _chosen(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments about the episodes that did not fail."""
        if len(self.kept) == len(self.failed):
            return kwargs
        rows = {key: [v[i] for i in self.kept] if self._is_column(v) else v for key, v in kwargs.items()}
        if "log_extra" in kwargs:

            def log_extra(column: str, values: Any) -> None:
                everywhere: list[Any] = [None] * len(self.failed)
                for index, value in zip(self.kept, values, strict=True):
                    everywhere[index] = value
                kwargs["log_extra"](column, everywhere)

            rows["log_extra"] = log_extra
        return rows

    def _is_column(self, value: Any) -> bool:
        return isinstance(value, list) and len(value) == len(self.failed)


def note_turn_rewards(trajectories: Sequence[Trajectory], gate: RewardGate, weights: Sequence[float]) -> None:
    """
    Set the rewards of turns to the weighted sums of what reward functions gave for them.

    Args:
        trajectories (`Sequence[Trajectory]`):
            The episodes that the gate knows.
        gate ([`RewardGate`]):
            What was given.
        weights (`Sequence[float]`):
            One for each reward function.
    """
    for index, trajectory in enumerate(trajectories):
        rewards = gate.weighted_turns(index, weights)
        if rewards is not None and trajectory.error is None:
            turns = zip(trajectory.turns, rewards, strict=True)
            trajectory.turns[:] = [dataclasses.replace(turn, reward=reward) for turn, reward in turns]


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of a reward function say which one it was: two of them may be made by the same code, or call the same library."""
    try:
        yield
    except Exception as error:
        error.add_note(f"In the reward function {name!r}")
        raise


def _is_row(values: Any) -> bool:
    """Whether something can be iterated over; a tensor or an array of no dimension says only then that it cannot."""
    try:
        iter(values)
    except TypeError:
        return False
    return True


def _is_asynchronous(function: Any) -> bool:
    """Whether TRL awaits what a function returns: an `async def`, an object called by one, or a partial of either."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
