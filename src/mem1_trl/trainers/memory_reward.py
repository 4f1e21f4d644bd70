"""A reward of turns: what the states that they wrote are worth to the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..rewards import are_answers, form_of_answers
from ..update.memory_value import memory_values
from .run_stopped import RunStopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..trajectory import Trajectory
    from .mem1 import Mem1Trainer


def memory_value_reward(trainer: Mem1Trainer) -> Callable[..., list[list[float | None]]]:
    """
    A reward function `memory_value` that asks the policy of a trainer, at the moment it is called.

    It gives each turn the nats of the right answers that its state carries, or those of the next action for rows without `answers`;
    `None` for a turn whose state no other turn read and, for rows without `answers`, where the turn that read it took no action. The
    log-probs that it compares are plain numbers: no gradient flows through them.
    """

    def memory_value(trajectories: list[Trajectory], answers: Any = None, **kwargs: Any) -> list[list[float | None]]:
        golds = answers or [None] * len(trajectories)
        for one in golds:
            if one is not None and not are_answers(one):  # of a stream, whose rows nothing has looked at
                raise RunStopped(
                    f"A row has {form_of_answers(one)}. memory_value_weight needs them, or a row without `answers`."
                )
        found = memory_values(
            trainer.accelerator.unwrap_model(trainer.model),
            trajectories,
            trainer.rollout.syntax,
            golds,
            **trainer.scoring,
        )
        return [
            [None if one is None else one.next_action if one.answer is None else one.answer for one in values]
            for values in found
        ]

    return memory_value
