"""What tasks of an evaluation have in common: the same task played several times, and questions that several tasks ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence

import numpy as np


def by_task(values: np.ndarray, tasks: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """
    Values of the same task put together, since they are one task and not several.

    Args:
        values (`np.ndarray`):
            Shape `(count,)`.
        tasks (`Sequence[Hashable]`, *optional*):
            Of each value what it is of. `None`: each value is a task of its own.

    Returns:
        `tuple[np.ndarray, np.ndarray, list[int]]`: for each task, in the order in which they first occur, the sum of its values, how
        many they are, both of shape `(tasks,)`, and the index of the first.
    """
    if tasks is None:
        tasks = range(values.size)
    first: dict[Hashable, int] = {}
    for index, task in enumerate(tasks):
        first.setdefault(task, index)
    place = {task: number for number, task in enumerate(first)}
    of_value = [place[task] for task in tasks]
    sums = np.bincount(of_value, weights=values, minlength=len(first))
    return sums, np.bincount(of_value, minlength=len(first)).astype(np.float64), list(first.values())


def reuse_factor(residuals: np.ndarray, questions: Sequence[Collection[str]]) -> float:
    """
    By how much the standard error of a mean over tasks grows because tasks ask the same questions.

    A score is taken for a mean plus an effect of each question that the task asks plus a rest of its own. The variances of both are
    estimated by their moments (Henderson, 1953, method 1): the sum of the squared residuals, and that of the squared sums over
    the tasks of each question, are set to what the model expects of them. A question that a single task asks belongs to its rest.

    Args:
        residuals (`np.ndarray`):
            Shape `(tasks,)`: what the score of each task has above the mean.
        questions (`Sequence[Collection[str]]`):
            Questions of each task.

    Returns:
        `float`: at least 1; 1 if no question occurs twice.
    """
    uses = Counter(question for asked in questions for question in set(asked))
    place = {question: number for number, question in enumerate(q for q, count in uses.items() if count > 1)}
    count = residuals.size
    if not place or count < 3 or not residuals.any():
        return 1.0
    asks = np.zeros((count, len(place)))
    for row, asked in enumerate(questions):
        asks[row, [place[question] for question in set(asked) if question in place]] = 1.0
    totals = asks.sum(0)
    centered = asks - totals / count  # the mean is estimated, too
    gram = centered.T @ centered if len(place) < count else centered @ centered.T
    expected = np.array([[np.trace(gram), count - 1.0], [np.square(gram).sum(), np.trace(gram)]])
    found = np.array([residuals @ residuals, np.square(asks.T @ residuals).sum()])
    if abs(np.linalg.det(expected)) < 1e-9 * expected[0, 0] ** 2 + 1e-12:  # all tasks ask the same
        return 1.0
    of_question, of_rest = np.linalg.solve(expected, found)
    variance = max(of_question, 0.0) * (totals @ totals) / count**2 + max(of_rest, 0.0) / count
    alone = found[0] / (count - 1) / count
    return float(max(1.0, np.sqrt(variance / alone)))
