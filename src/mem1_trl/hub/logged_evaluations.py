"""The evaluations in a trainer's log, each with the step of the weights that were evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

LOADED_STEP = "loaded_step"
"""Key of a log entry: the step of the checkpoint whose weights the model has from this entry on."""

Log = Sequence[Mapping[str, Any]]
"""`trainer.state.log_history`."""


@dataclass(frozen=True)
class LoggedEvaluation:
    """
    One evaluation of a trainer.

    Attributes:
        step (`int` or `None`):
            Optimizer step of the weights that were evaluated; `None` if the log does not say it.
        data (`str`):
            Name of the data set; empty if the trainer has one only.
        metrics (`dict[str, float]`):
            The reward and the metrics of the episodes, as `"reward"`, `"success"` and so on.
    """

    step: int | None
    data: str
    metrics: dict[str, float]


def logged_evaluations(log: Log) -> list[LoggedEvaluation]:
    """The evaluations of a log, in its order."""
    return [
        LoggedEvaluation(entry.get("step"), data := _data_name(entry), _episode_metrics(entry, metric_prefix(data)))
        for entry in with_weight_steps(log)
        if any(key.startswith("eval_") for key in entry)
    ]


def evaluations_of_weights(log: Log) -> list[LoggedEvaluation]:
    """
    The evaluations of the weights that a trainer has at the end of its log: of each data set the last one.

    They are those of the checkpoint that was loaded last, or else those of the last step with an evaluation.
    """
    found = logged_evaluations(log)
    if not found:
        return []
    loaded = loaded_step(log)
    step = found[-1].step if loaded is None else loaded
    return list({one.data: one for one in found if one.step == step}.values())


def loaded_step(log: Log) -> int | None:
    """Step of the checkpoint whose weights were loaded at the end of training; `None` if the weights are those of the last step."""
    return next((entry[LOADED_STEP] for entry in reversed(log) if LOADED_STEP in entry), None)


def with_weight_steps(log: Log) -> list[Mapping[str, Any]]:
    """
    The log with the step of the weights in each entry, not the one that the run had come to.

    "evaluated at 1, evaluated at 2, checkpoint 1 loaded, evaluated at 2" ends with an evaluation at 1.
    """
    loaded, found = None, []
    for entry in log:
        found.append(entry if loaded is None else {**entry, "step": loaded})
        loaded = entry.get(LOADED_STEP, loaded)
    return found


def metric_prefix(data: str) -> str:
    """What is logged before each metric of an evaluation on this data set."""
    return f"eval_{data}_" if data else "eval_"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a logged value can be shown; the log contains `None` instead of NaN."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _data_name(entry: Mapping[str, Any]) -> str:
    """`"hard"` if the entry has `eval_hard_episode/turns`: metrics of episodes are in each evaluation."""
    heads = (key.partition("episode/") for key in entry if key.startswith("eval_"))
    return next((head.removeprefix("eval_").removesuffix("_") for head, found, _ in heads if found), "")


def _episode_metrics(entry: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found = {"reward": entry.get(f"{prefix}reward")}
    episode = f"{prefix}episode/"
    found |= {key.removeprefix(episode): value for key, value in entry.items() if key.startswith(episode)}
    return {name: float(value) for name, value in found.items() if is_number(value)}
