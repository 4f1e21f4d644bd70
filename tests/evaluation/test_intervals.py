"""Means, standard errors and bootstrap intervals, against numbers known without them."""

from __future__ import annotations

import math

import pytest

from mem1_trl.evaluation.intervals import Statistic, summarize


def test_mean_and_standard_error_by_hand():
    statistic = summarize([1.0, 2.0, 3.0, 6.0])
    assert statistic.mean == 3.0 and statistic.count == 4
    # Deviations -2, -1, 0, 3: sample variance 14 / 3
    assert statistic.stderr == pytest.approx(math.sqrt(14 / 3) / 2)


def test_interval_of_a_coin_is_that_of_the_binomial():
    # The mean of n resampled coins is Binomial(n, p) / n, of which the normal approximation is good to 0.01 here
    statistic = summarize([1.0] * 120 + [0.0] * 280, resamples=20_000)
    spread = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert statistic.low == pytest.approx(0.3 - spread, abs=0.005)
    assert statistic.high == pytest.approx(0.3 + spread, abs=0.005)
    narrow = summarize([1.0] * 120 + [0.0] * 280, resamples=20_000, confidence=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * math.sqrt(0.3 * 0.7 / 400), abs=0.005)


def test_intervals_cover_the_truth_as_often_as_they_say():
    import numpy as np

    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        statistic = summarize(generator.normal(2.0, 1.0, size=60), resamples=500)
        covered += statistic.low <= 2.0 <= statistic.high
    assert 0.9 < covered / 300 < 0.985


def test_one_seed_one_interval():
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 3.0]
    assert summarize(values, seed=1) == summarize(values, seed=1)
    assert summarize(values, seed=1).low != summarize([v + 0.5 for v in values], seed=2).low - 0.5 or (
        summarize(values, seed=1).high != summarize([v + 0.5 for v in values], seed=2).high - 0.5
    )


def test_chunks_do_not_change_the_draws(monkeypatch):
    import mem1_trl.evaluation.intervals as intervals

    values = [float(i % 7) for i in range(50)]
    whole = summarize(values, resamples=101)
    monkeypatch.setattr(intervals, "_CHUNK", 130)
    assert summarize(values, resamples=101) == whole


def test_edges():
    assert summarize([0.25]) == Statistic(0.25, 0.0, 0.25, 0.25, 1)
    assert summarize([2.0, 2.0, 2.0]) == Statistic(2.0, 0.0, 2.0, 2.0, 3)
    with pytest.raises(ValueError, match="at least one value"):
        summarize([])
    with pytest.raises(ValueError, match="finite"):
        summarize([1.0, math.nan])
    with pytest.raises(ValueError, match=r"confidence must be between 0 and 1, such as 0\.95, got 95"):
        summarize([1.0], confidence=95)
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        summarize([1.0], resamples=0)
