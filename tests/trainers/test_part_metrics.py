"""Metrics of a micro-batch that is trained in parts, by hand."""

from __future__ import annotations

import math

import pytest

from mem1_trl.trainers.trl_seam.part_metrics import Weights, combined

NAN = math.nan
LOGGED = [
    {"kl": [0.1], "clip_ratio/low_mean": [0.0], "clip_ratio/low_min": [0.0], "clip_ratio/high_max": [0.5], "policy_loss": [3.0]},
    {"kl": [0.5], "clip_ratio/low_mean": [1.0], "clip_ratio/low_min": [0.2], "clip_ratio/high_max": [NAN], "value/loss": [2.0]},
    {"kl": [NAN], "clip_ratio/low_mean": [9.0]},
]  # fmt: skip


@pytest.mark.parametrize(("by_row", "clipped"), [(False, 0.25), (True, 2 / 3)])
def test_a_part_weighs_as_much_as_it_trains(by_row, clipped):
    whole = combined(LOGGED, Weights([30, 10, 0], [1, 2, 0], [1, 1, 0], [0, 0, 0]), by_row)
    assert whole == {
        "kl": pytest.approx((0.1 * 30 + 0.5 * 10) / 40),
        "clip_ratio/low_mean": pytest.approx(clipped),
        "clip_ratio/low_min": 0.0,
        "clip_ratio/high_max": 0.5,
        "value/loss": 2.0,
    }


def test_what_no_part_knows_is_no_number():
    assert math.isnan(
        combined([{"kl": [NAN]}, {"kl": [1.0]}], Weights([5, 0], [1, 0], [5, 0], [5, 0]), by_row=False)["kl"]
    )


def test_numbers_of_a_critic_weigh_by_the_values_that_it_learns():
    """With one value for each turn, a part of few long turns weighs little."""
    logged = [{"value/loss": [1.0], "kl": [1.0]}, {"value/loss": [4.0], "kl": [4.0]}]
    whole = combined(logged, Weights([80, 20], [1, 1], [1, 3], [80, 20]), by_row=False)
    assert whole == {"value/loss": pytest.approx(13 / 4), "kl": pytest.approx(1.6)}


def test_gaps_to_a_teacher_weigh_by_the_tokens_that_it_has_scored():
    """It does not score a turn that is longer than its positions."""
    logged = [{"distillation/gap": [1.0], "kl": [1.0]}, {"distillation/gap": [4.0], "kl": [4.0]}]
    whole = combined(logged, Weights([80, 20], [1, 1], [80, 20], [10, 20]), by_row=False)
    assert whole == {"distillation/gap": pytest.approx(3.0), "kl": pytest.approx(1.6)}


def test_extremes_over_rows_are_not_those_of_their_pieces():
    whole = combined(LOGGED, Weights([30, 10, 0], [1, 2, 0], [1, 1, 0], [0, 0, 0]), by_row=False, cut=True)
    assert set(whole) == {"kl", "clip_ratio/low_mean", "value/loss"}
