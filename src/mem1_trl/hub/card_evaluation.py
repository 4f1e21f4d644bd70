"""The evaluation on a model card: its section, and the metadata that the Hub reads (`model-index`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult

from .logged_evaluations import (
    Log,
    LoggedEvaluation,
    evaluations_of_weights,
    given_evaluations,
    is_number,
    loaded_step,
)
from .markdown import markdown_table

# Metrics that the card shows, with their unit; others are only in the logs
_METRICS = {
    "reward": "reward",
    "exact_match": "exact match, summed over the objectives of a task",
    "exact_match_per_objective": "exact match per objective",
    "f1": "F1, summed over the objectives of a task",
    "f1_per_objective": "F1 per objective",
    "success": "share of tasks solved",
    "turns": "turns per episode",
    "peak_tokens": "peak context in tokens",
    "dependency_length": "dependency length in attention pairs",
    "valid_action_rate": "share of turns with a valid action",
}


def card_evaluations(given: Mapping[str, float] | None, log: Log) -> list[LoggedEvaluation]:
    """
    The evaluations on the card: the metrics that were passed, or else those that the trainer logged of the weights that it saves.

    Args:
        given (`Mapping[str, float]` or `None`):
            Metrics by the names of an [`~mem1_trl.evaluation.Evaluation`] (`"reward"`, `"success"`), or by those that `evaluate` and `predict` of a
            trainer give them (`"eval_reward"`, `"test_episode/success"`).
        log (`Sequence[Mapping]`):
            `trainer.state.log_history`.

    Raises:
        `ValueError`: If none of the metrics that were passed is one that a card shows.
    """
    if given is None:
        return [one for one in evaluations_of_weights(log) if _shown(one)]
    found = [one for one in given_evaluations(given, _METRICS) if _shown(one)]
    if not found:
        raise ValueError(
            f"The evaluation of a model card must have a finite number for at least one of {', '.join(_METRICS)}, as the metrics of an Evaluation "
            f"and of `trainer.evaluate()` have, got {', '.join(map(str, given)) or 'no metric'}."
        )
    return found


def evaluation_results(
    evaluations: Sequence[LoggedEvaluation], task: str = "Agent over several turns"
) -> list[EvalResult]:
    """
    The evaluations as Hub metadata, one block for each data set. The name that `create_model_card` is given is that of the tasks of training.

    Args:
        evaluations (`Sequence[LoggedEvaluation]`):
            As [`card_evaluations`] gives them.
        task (`str`, *optional*):
            What the model is to do, in words.

    Returns:
        `list[EvalResult]`: One result for each metric and data set.
    """
    return [
        EvalResult(
            task_type="text-generation",
            task_name=task,
            dataset_type="custom",
            dataset_name=one.data or "evaluation tasks of the run",
            # By the name alone the Hub does not tell blocks apart
            dataset_config=one.data or None,
            metric_type=metric,
            metric_name=_METRICS[metric],
            metric_value=float(one.metrics[metric]),
        )
        for one in evaluations
        for metric in _shown(one)
    ]


def evaluation_section(evaluations: Sequence[LoggedEvaluation], log: Log) -> str:
    """The evaluations as a section of the card: after which step, and a column of numbers for each data set; empty without any."""
    if not evaluations:
        return ""
    rows = [
        (label, *(_digits(one.metrics[metric]) if metric in _shown(one) else "" for one in evaluations))
        for metric, label in _METRICS.items()
        if any(metric in _shown(one) for one in evaluations)
    ]
    table = markdown_table(("metric", *(one.data or "value" for one in evaluations)), rows)
    return "\n\n".join(part for part in ("## Evaluation", _when(evaluations[0].step, log), table) if part)


def _when(step: int | None, log: Log) -> str:
    """A sentence about the weights that were evaluated; empty if the log does not know them."""
    if step is None:
        return ""
    if loaded_step(log) is None:
        return f"The last evaluation of the run, after optimizer step {step}."
    return f"Of the best checkpoint, after optimizer step {step}, whose weights these are."


def _shown(evaluation: LoggedEvaluation) -> list[str]:
    return [metric for metric in _METRICS if is_number(evaluation.metrics.get(metric))]


def _digits(value: float) -> str:
    """A number as a reader writes it, not as a power of ten."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
