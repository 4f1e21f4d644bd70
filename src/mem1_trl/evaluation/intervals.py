"""A mean with what is known about it: standard error and bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Numbers drawn at once, so that a long list of values does not need a matrix of gigabytes
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Statistic:
    """
    The mean of a number over episodes.

    Attributes:
        mean (`float`):
            Arithmetic mean.
        stderr (`float`):
            Standard error of the mean, `s / sqrt(count)` with the sample standard deviation `s`. 0 for one value, whose
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

    `resamples` times, as many values as there are are drawn with replacement; the interval holds the middle `confidence` of
    their means. Values are taken as independent: the same task played twice is one task, not two.

    Args:
        values (`Sequence[float]`):
            At least one finite number.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws. Lists of equal length are resampled alike, so that their intervals can be compared.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of means drawn.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the means inside the interval.

    Returns:
        [`Statistic`]

    Raises:
        `ValueError`: if there is no value, or one is not finite.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, such as 0.95.")
    if resamples < 1:
        raise ValueError(f"resamples={resamples} draws nothing: use 1 or more, such as 2000.")
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("A mean needs at least one value, and all of them finite: leave missing ones out.")
    count = array.size
    stderr = float(array.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    means = np.concatenate(
        [
            array[generator.integers(0, count, size=(min(rows, resamples - start), count))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Statistic(float(array.mean()), stderr, float(low), float(high), count)
