"""F1 over the objectives of a task, as a metric of the `evaluate` library. Its own file, since `evaluate.load` takes a file."""

from __future__ import annotations

from typing import Any

import evaluate
from datasets import Features, List, Value

from mem1_trl.evaluate_metrics.means import mean_scores
from mem1_trl.rewards import f1

_DESCRIPTION = """F1 over the sets of normalised words, best alias per objective, summed over objectives; 0 unless each objective has one answer."""

_INPUTS = """
Args:
    predictions (`list[str]`): answers; the answers to several objectives are separated by semicolons, in order.
    references (`list[list[list[str]]]` or `list[list[str]]`): for each objective, its accepted answers or its only answer.
Returns:
    f1 (`float`): mean over tasks of the sum over objectives, 0 to N.
    f1_per_objective (`float`): the same with each task divided by its number of objectives, 0 to 1.
"""


class F1(evaluate.Metric):
    """
    F1 over sets of words, summed over objectives, see [`mem1_trl.rewards.f1`].

    Takes `predictions`, a list of answers, and `references`, the accepted answers to the objectives of each task.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="arXiv 2506.15841",
            inputs_description=_INPUTS,
            features=[
                Features({"predictions": text, "references": List(List(text))}),
                Features({"predictions": text, "references": List(text)}),
            ],
        )

    def _compute(self, predictions: list[str], references: list[Any], **kwargs: Any) -> dict[str, float]:
        return mean_scores("f1", f1, predictions, references)
