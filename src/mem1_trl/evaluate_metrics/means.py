"""What the metrics of this folder share: means over tasks, of sums over the objectives and of shares of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import evaluate
from datasets import Features, List, Value


class OverObjectives(evaluate.Metric):
    """A score over the objectives of a task, each of which has one accepted answer or a list of them."""

    key: str
    """What the score is called in the result."""
    meaning: str
    score: Callable[..., float]
    """Gives the sum over the objectives of a task."""

    def _info(self) -> evaluate.MetricInfo:
        text = Value("string")
        return evaluate.MetricInfo(
            description=self.meaning,
            citation="arXiv 2506.15841",
            inputs_description=_INPUTS.format(name=self.key),
            features=Features({"predictions": text, "references": List(List(text))}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one task. `evaluate` adds to this text."""
        super().add(prediction=prediction, reference=_listed(reference), **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add tasks. `evaluate` adds to this text."""
        # `datasets` would make a text of the lists in a task that has both forms
        given = references if references is None else [_listed(one) for one in references]
        super().add_batch(predictions=predictions, references=given, **kwargs)

    def _compute(self, predictions: list[str], references: list[Any], **kwargs: Any) -> dict[str, float]:
        return mean_scores(self.key, self.score, predictions, references)


def _listed(accepted: Any) -> Any:
    """A list of accepted answers for each objective, of which some may have been given one alone."""
    if not isinstance(accepted, (list, tuple)):
        return accepted  # which is refused by its type
    return [one if isinstance(one, (list, tuple)) else [one] for one in accepted]


_INPUTS = """
Args:
    predictions (`list[str]`): answers; the answers to several objectives are separated by semicolons, in order.
    references (`list[list[list[str] or str]]`): for each objective, its accepted answers or its only answer.
Returns:
    {name} (`float`): mean over tasks of the sum over objectives, 0 to N.
    {name}_per_objective (`float`): the same with each task divided by its number of objectives, 0 to 1.
"""


def mean_scores(
    name: str, score: Callable[[str, Any], float], predictions: list[str], references: list[Any]
) -> dict[str, float]:
    """
    Means of a score over tasks, and of the score of one objective.

    Args:
        name (`str`):
            What the score is called.
        score (`Callable`):
            Gives the sum over the objectives of a task.
        predictions, references (`list`):
            Answer and accepted answers of each task.

    Raises:
        `ValueError`: If there is no task.
    """
    if not predictions:
        raise ValueError(f"{name} needs at least one prediction, got none.")
    scores = [score(answer, answers) for answer, answers in zip(predictions, references, strict=True)]
    shares = [one / len(answers) for one, answers in zip(scores, references)]
    return {name: sum(scores) / len(scores), f"{name}_per_objective": sum(shares) / len(shares)}
