"""What the metrics of this folder share: means over tasks, of sums over the objectives and of shares of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
