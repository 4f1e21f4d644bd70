"""Which functions score an episode, and with which weights: those of the user, the environment's, and those of settings."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .distillation import no_reward
from .memory_reward import memory_value_reward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..trajectory import Trajectory
    from .mem1 import Mem1Trainer


@dataclass(frozen=True, slots=True)
class RewardFunctions:
    """
    What TRL is given as `reward_funcs` and `reward_weights`.

    Attributes:
        given (`list`):
            The user's functions, models and names of models.
        own (`list[tuple[Callable, float]]`):
            Those that come after them, with their weights.
        weights (`list[float]` or `None`):
            One for each of both. `None` leaves them all at 1.
    """

    given: list[Any]
    own: list[tuple[Any, float]]
    weights: list[float] | None

    @property
    def all(self) -> list[Any]:
        """The functions of both, in the order of their weights."""
        return [*self.given, *(function for function, _ in self.own)]

    def tokenizers(self, given: Any) -> list[Any]:
        """TRL's `reward_processing_classes` for all of them, if the user gave one, or a list with one for each of theirs."""
        return [*(given if isinstance(given, list) else [given]), *([None] * len(self.own))]


def collect_reward_functions(trainer: Mem1Trainer, args: Any, given: Any) -> RewardFunctions:
    """
    All that scores the episodes of a trainer.

    Args:
        trainer ([`Mem1Trainer`]):
            Its `pool` has the environment's rewards. It need not be complete: functions that need it ask it when they are called.
        args ([`Mem1GRPOConfig`]):
            Its weights.
        given (`RewardFunc | list[RewardFunc]`, *optional*):
            The user's functions.

    Raises:
        `ValueError`: If nothing scores an episode, or if `reward_weights` is not one finite number for each of the user's functions.
    """
    given = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    from_environment = [] if trainer.pool is None else trainer.pool.reward_functions()
    if not given and not from_environment and not args.distillation_weight:
        raise ValueError(
            "There is no reward: pass `reward_funcs`, or an environment with a `get_reward() -> float` or "
            "`get_turn_reward() -> float` method."
        )
    own = [(function, args.task_reward_weight) for function in from_environment]
    if args.memory_value_weight:
        own.append((memory_value_reward(trainer), args.task_reward_weight * args.memory_value_weight))
    if args.distillation_weight and args.distillation_in_reward and trainer.rewards_by_turns:
        own.append((_distillation_reward(trainer), args.distillation_weight))
    elif not given and not own:
        own.append((no_reward, 1.0))
    _check_weights(args.reward_weights, len(given))
    if args.reward_weights is None and not args.memory_value_weight and not args.distillation_weight:
        return RewardFunctions(given, own, None)
    of_given = [args.task_reward_weight * weight for weight in args.reward_weights or [1.0] * len(given)]
    return RewardFunctions(given, own, [*of_given, *(weight for _, weight in own)])


def distinct(names: Sequence[str]) -> list[str]:
    """Names of reward functions, of which each stands once: metrics are kept by them, and two lambdas have the same."""
    found: list[str] = []
    for name in names:
        number, chosen = 1, name
        while chosen in found:
            number += 1
            chosen = f"{name}_{number}"
        found.append(chosen)
    return found


_GIVEN = ("prompts", "completions", "completion_ids", "trajectories", "trainer_state", "log_extra", "log_metric")
"""What a reward function is called with, by name, beside `environments` and the columns of the data set."""

_NOT_GIVEN = ("prompt", "completion", "completion_ids")
"""Columns that TRL keeps from reward functions."""


def check_signatures(
    given: Any, columns: Sequence[str], has_environment: bool, dataset: str = "train dataset"
) -> None:
    """
    Refuse reward functions that could not be called, before a model is loaded.

    Args:
        given (`RewardFunc | list[RewardFunc]`, *optional*):
            The user's functions; models and names of models are passed over.
        columns (`Sequence[str]`):
            Those of a data set; empty if they are not known.
        has_environment (`bool`):
            Whether functions are given `environments`.
        dataset (`str`, *optional*, defaults to `"train dataset"`):
            What messages call the data set.

    Raises:
        `ValueError`: If one does not take what it will be given, by name, or if a column has the name of something else that it is given.
    """
    arguments = [*_GIVEN, *(["environments"] if has_environment else [])]
    names = [*arguments, *(name for name in columns if name not in (*_NOT_GIVEN, *arguments))]
    for function in given if isinstance(given, (list, tuple)) else [given]:
        if not callable(function) or isinstance(function, torch.nn.Module):
            continue
        taken = next((name for name in columns if name in arguments), None)
        if taken is not None:
            raise ValueError(
                f"The {dataset} has a column {taken!r}, and reward functions are given something else by this name: rename the column."
            )
        try:
            signature = inspect.signature(function)
        except ValueError:  # built in C
            continue
        try:
            (signature.bind if columns else signature.bind_partial)(**dict.fromkeys(names))
        except TypeError as error:
            name = getattr(function, "__name__", type(function).__name__)
            raise ValueError(
                f"The reward function {name!r} must take {', '.join(names)} by name for the {dataset}, got a signature {signature}: "
                f"{error}; add `**kwargs` for those that it does not use, or the column that is missing."
            ) from error


def _check_weights(weights: list[float] | None, functions: int) -> None:
    if weights is None:
        return
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"reward_weights must be finite numbers, got {weights}.")
    if len(weights) != functions:
        raise ValueError(
            f"reward_weights has {len(weights)} numbers for {functions} reward functions: give one for "
            "each (an environment's own reward has weight 1)."
        )


def _distillation_reward(trainer: Mem1Trainer) -> Any:
    def distillation(trajectories: list[Trajectory], **kwargs: Any) -> list[list[float | None]]:
        assert trainer.distillation is not None
        return trainer.distillation.reward(trajectories)

    return distillation
