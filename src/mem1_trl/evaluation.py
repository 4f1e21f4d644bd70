"""Plays an agent over a data set and measures what it answered and what it cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .metrics import aggregate
from .rewards import exact_match, f1

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .agent import Mem1Agent
    from .trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Evaluation:
    """
    What an evaluation found.

    Attributes:
        trajectories (`list[Trajectory]`):
            Every episode, in the order of the rows; `metrics` holds its own `exact_match`, `f1` and `seconds`.
        metrics (`dict[str, float]`):
            Means over episodes, as [`mem1_trl.metrics.aggregate`] gives them. If the rows carry `answers`, `exact_match` and
            `f1` are summed over the objectives of a task (0 to N, as in the paper), and `exact_match_per_objective` and
            `f1_per_objective` are divided by N.
    """

    trajectories: list[Trajectory]
    metrics: dict[str, float]


def evaluate_agent(
    agent: Mem1Agent,
    rows: Iterable[Mapping[str, Any]],
    environment_factory: Callable[[], Any],
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """
    Play one episode per row.

    Args:
        agent ([`Mem1Agent`]):
            The agent; its temperature decides whether it decodes greedily.
        rows (`Iterable[Mapping]`):
            Dataset rows with `prompt` and whatever `reset` wants; with `answers` (a list of accepted answers for each
            objective) the answers are scored.
        environment_factory (`Callable`):
            Makes an environment.
        batch_size (`int`, *optional*, defaults to `32`):
            Episodes played at once.
        on_batch (`Callable[[int], None]`, *optional*):
            Called with the number of episodes after each batch, for a progress bar.

    Returns:
        [`Evaluation`]
    """
    rows = [dict(row) for row in rows]
    if not rows:
        raise ValueError("There is nothing to evaluate: the data set has no rows.")
    environments: list[Any] = []
    trajectories: list[Trajectory] = []
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        while len(environments) < len(chunk):
            environments.append(environment_factory())
        began = time.perf_counter()
        played = agent.run_batch(chunk, environments[: len(chunk)])
        seconds = (time.perf_counter() - began) / len(chunk)
        for row, trajectory in zip(chunk, played):
            trajectory.metrics["seconds"] = seconds
            _score(trajectory, row.get("answers"))
        trajectories.extend(played)
        if on_batch is not None:
            on_batch(len(chunk))
    return Evaluation(trajectories, aggregate(trajectories))


def _score(trajectory: Trajectory, answers: Sequence[Any] | None) -> None:
    if answers is None:
        return
    for name, score in (("exact_match", exact_match), ("f1", f1)):
        value = score(trajectory.answer, answers)
        trajectory.metrics[name] = value
        trajectory.metrics[f"{name}_per_objective"] = value / len(answers)
