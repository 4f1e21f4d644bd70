"""Means, standard errors and bootstrap intervals, against numbers known without them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
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


def test_a_task_that_was_played_four_times_is_one_task():
    once = summarize([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    values, tasks = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 4, list("abcdef") * 4
    four = summarize(values, tasks=tasks)
    assert four == replace(once, count=24)
    assert four.stderr == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 5))
    assert summarize(values).high - summarize(values).low < four.high - four.low


def test_a_task_that_was_played_more_often_than_others_weighs_more():
    """By hand: the residuals of the two tasks are 3 * (1 - .75) and 0 - .75."""
    statistic = summarize([1.0, 1.0, 1.0, 0.0], tasks=["a", "a", "a", "b"])
    assert statistic.mean == 0.75 and (statistic.low, statistic.high) == (0.0, 1.0)
    assert statistic.stderr == pytest.approx(math.sqrt(2 * (0.75**2 + 0.75**2)) / 4)


def test_a_single_task_played_often_tells_how_its_episodes_differ():
    values = [1.0, 0.0, 1.0, 1.0]
    assert summarize(values, tasks=["a"] * 4) == summarize(values)


def test_questions_that_no_two_tasks_share_change_nothing():
    values = [1.0, 0.5, 0.0, 1.0]
    assert summarize(values, questions=[["a", "b"], ["c"], [], ["d"]]) == summarize(values)


def test_tasks_that_ask_the_same_two_by_two_are_half_as_many():
    """Each question decides its two tasks, so the standard error is that of the questions."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=400)
    twice = summarize([*values, *values], questions=[[str(number)] for number in range(400)] * 2)
    once = summarize(values)
    assert twice.stderr == pytest.approx(once.stderr, rel=0.01)
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.1)


@pytest.mark.parametrize(("number", "per_task", "count"), [(564, 16, 200), (60, 2, 150)])
def test_intervals_cover_the_truth_where_questions_are_asked_again(number, per_task, count):
    """Of an agent that knows half of all questions of a kind, of which so many are asked."""
    generator = np.random.default_rng(0)
    tasks = [generator.choice(number, per_task, replace=False) for _ in range(count)]
    names = [[f"q{one}" for one in task] for task in tasks]
    hits, naive, trials = 0, 0, 100
    for _ in range(trials):
        knows = (generator.random(number) < 0.5).astype(float)
        scores = [knows[task].mean() for task in tasks]
        told, alone = summarize(scores, resamples=200, questions=names), summarize(scores, resamples=200)
        hits += told.low <= 0.5 <= told.high
        naive += alone.low <= 0.5 <= alone.high
    assert hits >= 0.88 * trials > 0.75 * trials > naive


def test_bounds_stay_within_the_values():
    values = [1.0] * 30 + [0.0] * 2
    statistic = summarize(values, questions=[["a"]] * 30 + [["b"]] * 2)
    assert statistic.high == 1.0 and statistic.low < summarize(values).low


def test_questions_that_all_tasks_ask_say_nothing():
    values = [1.0, 0.0, 1.0]
    assert summarize(values, questions=[["a", "b"]] * 3) == summarize(values)
