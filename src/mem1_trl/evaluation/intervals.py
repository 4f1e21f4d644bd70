"""Means with their standard error and bootstrap interval."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .dependence import by_task, reuse_factor

# Numbers drawn in one call, so that a long list of values does not need a matrix of gigabytes
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Statistic:
    """
    The mean of a number over episodes.

    Attributes:
        mean (`float`):
            Arithmetic mean.
        stderr (`float`):
            Standard error of the mean: of independent values `s / sqrt(count)` with the sample standard deviation `s`. 0 for a
            single value, since its spread is unknown.
        low, high (`float`):
            Bounds of the percentile bootstrap interval.
        count (`int`):
            Number of values.
    """

    mean: float
    stderr: float
    low: float
    high: float
    count: int


def summarize(
    values: Sequence[float],
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
    *,
    tasks: Sequence[Hashable] | None = None,
    questions: Sequence[Collection[str]] | None = None,
) -> Statistic:
    """
    Mean, standard error and percentile bootstrap interval (Efron and Tibshirani, 1993, chapter 13).

    `resamples` times, it draws as many tasks as there are with replacement; the interval contains the middle `confidence` of their means.
    The same task played several times is one task. Tasks that have questions in common are not independent either: standard error
    and interval are widened for them, see [`mem1_trl.evaluation.dependence.reuse_factor`].

    Args:
        values (`Sequence[float]`):
            At least one finite number.
        seed (`int`, *optional*, defaults to `0`):
            Seed for the bootstrap. Lists of equal length are resampled in the same way, so that their intervals can be compared.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of bootstrap means.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the means that lie inside the interval.
        tasks (`Sequence[Hashable]`, *optional*):
            Of which task each value is. `None` means that each is of another one; so does a single task, of which the interval then
            tells how its episodes differ.
        questions (`Sequence[Collection[str]]`, *optional*):
            What the task of each value asks.

    Returns:
        [`Statistic`]

    Raises:
        `ValueError`: if there is no value, or a value is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("A mean needs at least one value, and all values must be finite: leave missing ones out.")
    mean = float(array.mean())
    if tasks is not None and len(set(tasks)) == 1:
        tasks = None
    sums, counts, first = by_task(array, tasks)
    means = bootstrap_means(sums, seed, resamples) / bootstrap_means(counts, seed, resamples)  # drawn alike
    low, high = bootstrap_interval(means, confidence)
    residuals = sums - counts * mean
    if len(sums) == 1:
        return Statistic(mean, 0.0, low, high, array.size)
    stderr = float(np.sqrt(residuals @ residuals * len(sums) / (len(sums) - 1))) / array.size
    factor = 1.0 if questions is None else reuse_factor(residuals, [questions[index] for index in first])
    low, high = widened(mean, low, high, factor, array)
    return Statistic(mean, stderr * factor, low, high, array.size)


def widened(mean: float, low: float, high: float, factor: float, values: np.ndarray) -> tuple[float, float]:
    """An interval that is `factor` times as far from the mean, within the range of the values, as each bootstrap mean is."""
    if factor == 1.0:
        return low, high
    return max(mean - factor * (mean - low), float(values.min())), min(
        mean + factor * (high - mean), float(values.max())
    )


def bootstrap_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of values of shape `(count,)` drawn with replacement, shape `(resamples,)`."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    count = values.size
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    return np.concatenate(
        [
            values[generator.integers(0, count, size=(min(rows, resamples - start), count))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )


def bootstrap_interval(means: np.ndarray, confidence: float) -> tuple[float, float]:
    """The bounds of the middle `confidence` of the means."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, such as 0.95, got {confidence}.")
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
