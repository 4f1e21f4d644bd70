"""What the states of evaluated episodes are worth, by turn and by the age of what they hold."""

from __future__ import annotations

import dataclasses
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..rewards import are_answers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..agent import Mem1Agent
    from .result import EvaluatedTask, Evaluation

_NUMBERS = ("next_turn", "next_action", "answer")


def measure_memory(
    agent: Mem1Agent, evaluation: Evaluation, replace: str = "blank", batch_size: int = 8
) -> Evaluation:
    """
    An evaluation in which every state has its worth in nats, see [`mem1_trl.update.memory_value.memory_values`].

    Its tasks have further scores, the means over the states of an episode that another turn read: `memory_value/next_turn`,
    `memory_value/next_action` and, where there are references, `memory_value/answer`. `memory_value` of the result has them by turn, and
    `answer` by the age of what is held.

    Args:
        agent ([`Mem1Agent`]):
            Whose model scores, at temperature 1; the one that played, to measure what its states are worth to itself.
        evaluation ([`Evaluation`]):
            What was played, just now or long ago.
        replace (`str`, *optional*, defaults to `"blank"`):
            What takes the place of a state: nothing, or what the same turn of the next episode wrote (`"swap"`).
        batch_size (`int`, *optional*, defaults to `8`):
            Episodes in one forward pass.

    Raises:
        `ValueError`: If the model of the agent is behind a server, which cannot be asked for log-probs of given tokens, or `replace`
            is unknown.
    """
    from ..update.memory_value import memory_values

    if agent.model is None:
        raise ValueError("measure_memory needs a model that is loaded here, and the agent's is behind a server.")
    answers = [
        task.task.get("answers") if are_answers(task.task.get("answers")) else None for task in evaluation.tasks
    ]
    found = memory_values(agent.model, evaluation.trajectories, agent.syntax, answers, replace, batch_size=batch_size)
    tasks = []
    for task, values in zip(evaluation.tasks, found, strict=True):
        means = {f"memory_value/{name}": numbers for name in _NUMBERS if (numbers := _of(values, name))}
        others = {name: score for name, score in task.scores.items() if not name.startswith("memory_value/")}
        scores = {**others, **{name: fmean(numbers) for name, numbers in means.items()}}
        tasks.append(dataclasses.replace(task, scores=scores, memory_values=tuple(values)))
    seed = evaluation.settings.get("seed", 0)
    settings = {**evaluation.settings, "memory_value": replace}
    measured = type(evaluation).from_tasks(
        tasks, evaluation.agent, settings, seed if isinstance(seed, int) else 0, environment=evaluation.environment
    )
    # Other scores are what they were, and so are their intervals, of however many resamples
    before = {name: one for name, one in evaluation.statistics.items() if not name.startswith("memory_value/")}
    return dataclasses.replace(measured, statistics={**measured.statistics, **before})


def summarize_memory(tasks: Sequence[EvaluatedTask]) -> dict[str, list[dict[str, Any]]]:
    """
    Means of the worth of states, in nats; empty if it was not measured.

    Returns:
        `dict`: `by_turn`, with `turn` (that wrote the state), `next_turn`, `next_action` (of those that an action followed, `None`
        without any), `answer` (`None` without references) and `count`, the number of states; and `by_age`, with `age` (turns since an answer was first seen, as in
        [`mem1_trl.evaluation.retention.retention_curve`]), `answer` (of that objective alone) and `count`.
    """
    by_turn: dict[int, list[Any]] = {}
    by_age: dict[int, list[float]] = {}
    for task in tasks:
        for value in task.memory_values:
            if value is None:
                continue
            by_turn.setdefault(value.turn, []).append(value)
            for trace, nats in zip(task.objectives_detail, value.objectives):
                if trace.first_seen_turn is not None and trace.first_seen_turn < value.turn:
                    by_age.setdefault(value.turn - trace.first_seen_turn, []).append(nats)
    if not by_turn:
        return {}
    turns = [
        {
            "turn": turn,
            **{name: fmean(numbers) if (numbers := _of(values, name)) else None for name in _NUMBERS},
            "count": len(values),
        }
        for turn, values in sorted(by_turn.items())
    ]
    ages = [{"age": age, "answer": fmean(nats), "count": len(nats)} for age, nats in sorted(by_age.items())]
    return {"by_turn": turns, "by_age": ages}


def _of(values: Sequence[Any], name: str) -> list[float]:
    return [number for value in values if value is not None and (number := getattr(value, name)) is not None]
