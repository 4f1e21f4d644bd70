"""Means with their standard error and bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
            Standard error of the mean, `s / sqrt(count)` with the sample standard deviation `s`. 0 for a single value, since its
            spread is unknown.
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


def summarize(values: Sequence[float], seed: int = 0, resamples: int = 2000, confidence: float = 0.95) -> Statistic:
    """
    Mean, standard error and percentile bootstrap interval (Efron and Tibshirani, 1993, chapter 13).

    `resamples` times, it draws `count` values with replacement; the interval contains the middle `confidence` of their means.
    Values are assumed to be independent: the same task played twice is one task, not two.

    Args:
        values (`Sequence[float]`):
            At least one finite number.
        seed (`int`, *optional*, defaults to `0`):
            Seed for the bootstrap. Lists of equal length are resampled in the same way, so that their intervals can be compared.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of bootstrap means.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the means that lie inside the interval.

    Returns:
        [`Statistic`]

    Raises:
        `ValueError`: if there is no value, or a value is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("A mean needs at least one value, and all values must be finite: leave missing ones out.")
    stderr = float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else 0.0
    low, high = bootstrap_interval(bootstrap_means(array, seed, resamples), confidence)
    return Statistic(float(array.mean()), stderr, low, high, array.size)


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
