"""
Reward functions for states: what was found is retained, and the length stays within a budget.

Each measures a sign of a good memory, not its use, and can be had without one; `docs/credit.md` says how. Use them with a small weight
beside the reward of the task, and watch that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..trajectory import Trajectory, Turn
from .answers import Answers, references_of
from .containing import contains_answer


def retained_reward(
    completions: list[Any], trajectories: list[Trajectory], answers: list[Answers] | None = None, **kwargs: Any
) -> list[list[float | None]]:
    """
    TRL reward function: for each turn, the share of the answers that observations have shown so far which its state holds.

    With answers `Paris` and `26`, of which the observation of turn 1 shows `Paris`, the state of turn 2 has reward 1 if it contains
    `Paris`, else 0. What an action such as `rewrite` says in place of the past belongs to the state. A turn before which nothing was found has none. Answers are searched for by [`contains_answer`]; what the
    task itself says does not count as found, but a hint in an observation does.

    Args:
        completions (`list`):
            One completion for each episode.
        trajectories (`list[Trajectory]`):
            The episodes, which the trainers pass.
        answers (`list`, *optional*):
            Column `answers` of the data set: for each objective, the accepted answer or its aliases.
        kwargs (*optional*):
            Further arguments that TRL passes.

    Returns:
        `list[list[float | None]]`: For each episode, one number from 0 to 1 for each turn, or `None`.

    Raises:
        `ValueError`: If the data set has no column `answers`, or a row of it holds something else.
    """
    if answers is None:
        raise ValueError("The dataset has no column 'answers': build it with mem1_trl.compose_objectives.")
    return [_retained(trajectory.turns, golds) for trajectory, golds in zip(trajectories, answers, strict=True)]


def _retained(turns: list[Turn], golds: Answers | None) -> list[float | None]:
    if golds is None:  # a row that says nothing about answers
        return [None] * len(turns)
    aliases = references_of(golds)
    found: set[int] = set()
    rewards: list[float | None] = []
    for turn in turns:
        held = [contains_answer(turn.kept_text, aliases[index]) for index in sorted(found)]
        rewards.append(sum(held) / len(held) if held else None)
        found |= {index for index, gold in enumerate(aliases) if contains_answer(turn.observation, gold)}
    return rewards


def state_budget_penalty(max_tokens: int, per_token: float = 0.01) -> Callable[..., list[list[float]]]:
    """
    A TRL reward function that takes off `per_token` for each token of a state beyond `max_tokens`, turn by turn.

    Args:
        max_tokens (`int`):
            Tokens of a state, its tags included, that cost nothing.
        per_token (`float`, *optional*, defaults to `0.01`):
            Cost of each token more, in units of the reward.

    Returns:
        `Callable`: A reward function, `reward_funcs=[state_budget_penalty(200)]`, which gives 0 or less for each turn.

    Raises:
        `ValueError`: If `max_tokens` is negative, or `per_token` is not above 0.
    """
    if max_tokens < 0:
        raise ValueError(f"max_tokens must be at least 0, got {max_tokens}.")
    if not 0.0 < per_token < float("inf"):
        raise ValueError(f"per_token must be a finite number above 0, got {per_token}.")

    def state_budget(completions: list[Any], trajectories: list[Trajectory], **kwargs: Any) -> list[list[float]]:
        return [
            [-per_token * max(0, turn.state_tokens - max_tokens) for turn in trajectory.turns]
            for trajectory in trajectories
        ]

    return state_budget
