"""The evaluations in a trainer's log, each with the step of the weights that were evaluated."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

LOADED_STEP = "loaded_step"
"""Key of a log entry: the step of the checkpoint whose weights the model has from this entry on."""

_OF_TRAINERS = ("eval_", "test_")
"""What `evaluate` and `predict` of a trainer put before the name of a metric."""

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


def given_evaluations(metrics: Mapping[str, Any], known: Collection[str]) -> list[LoggedEvaluation]:
    """
    The evaluations in metrics that a user passes.

    Args:
        metrics (`Mapping[str, Any]`):
            By their own names, or by those that `evaluate` and `predict` of a trainer give them. One dictionary may be of several data sets.
        known (`Collection[str]`):
            Names of metrics. Where one of them is a key as it stands, all names are their own.
    """
    if any(name in metrics for name in known):
        return [LoggedEvaluation(None, "", dict(metrics))]
    prefixes = dict.fromkeys(prefix for name in metrics if (prefix := _prefix_of(name)) is not None)
    return [LoggedEvaluation(None, _without_prefix(one), _episode_metrics(metrics, one)) for one in prefixes]


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

    "evaluated at 1, evaluated at 2, checkpoint 1 loaded, evaluated at 2" ends with an evaluation at 1. An evaluation with a prefix of its own, such as
    `"test"`, is that of a data set with this name.
    """
    loaded, found = None, []
    for entry in map(_as_data_set, log):
        found.append(entry if loaded is None else {**entry, "step": loaded})
        loaded = entry.get(LOADED_STEP, loaded)
    return found


def metric_prefix(data: str) -> str:
    """What is logged before each metric of an evaluation on this data set."""
    return f"eval_{data}_" if data else "eval_"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a logged value can be shown; the log contains `None` instead of NaN."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _as_data_set(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"eval_test_reward": 1.0}` of `{"test_reward": 1.0}`: each evaluation has its time and metrics of its episodes."""
    timed = [key.removesuffix("runtime") for key in entry if key.endswith("_runtime")]
    own = next((head for head in timed if any(key.startswith(f"{head}episode/") for key in entry)), "eval_")
    if own.startswith("eval_"):
        return entry
    return {f"eval_{key}" if key.startswith(own) else key: value for key, value in entry.items()}


def _data_name(entry: Mapping[str, Any]) -> str:
    """`"hard"` if the entry has `eval_hard_episode/turns`: metrics of episodes are in each evaluation."""
    heads = (key.partition("episode/") for key in entry if key.startswith("eval_"))
    return next((_without_prefix(head) for head, found, _ in heads if found), "")


def _prefix_of(name: str) -> str | None:
    """What stands before the reward, or before a metric of episodes; `None` for the name of another metric."""
    head, found, _ = name.partition("episode/")
    if found:
        return head
    is_reward = name.startswith(_OF_TRAINERS) and name.endswith("_reward") and "/" not in name
    return name.removesuffix("reward") if is_reward else None


def _without_prefix(head: str) -> str:
    """The name of the data set in what stands before a metric."""
    prefix = next((one for one in _OF_TRAINERS if head.startswith(one)), "")
    return head.removeprefix(prefix).removesuffix("_")


def _episode_metrics(entry: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found = {"reward": entry.get(f"{prefix}reward")}
    episode = f"{prefix}episode/"
    found |= {key.removeprefix(episode): value for key, value in entry.items() if key.startswith(episode)}
    return {name: float(value) for name, value in found.items() if is_number(value)}
