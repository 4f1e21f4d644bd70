"""Metrics of an episode, against numbers worked out by hand."""

import pytest

from mem1_trl.metrics import (
    aggregate,
    dependency_length,
    generated_tokens,
    peak_tokens,
    state_tokens,
    trajectory_metrics,
    turns,
    valid_action_rate,
)
from mem1_trl.trajectory import StopReason, Trajectory, Turn


def make_trajectory(shape, **kwargs):
    """`shape` lists (context tokens, generated tokens, state tokens, action) per turn."""
    return Trajectory(
        turns=[
            Turn(prompt_ids=(7,) * context, completion_ids=(9,) * generated, state_tokens=state, action=action)
            for context, generated, state, action in shape
        ],
        **kwargs,
    )


@pytest.fixture
def trajectory():
    return make_trajectory([(10, 4, 3, "search"), (30, 6, 2, None), (20, 9, 4, "answer")])


def test_single_metrics(trajectory):
    assert turns(trajectory) == 3
    assert generated_tokens(trajectory) == 4 + 6 + 9
    assert peak_tokens(trajectory) == 36  # the second turn, 30 + 6
    assert peak_tokens(trajectory, include_prompt=False) == 26  # without the 10 tokens of the task
    assert dependency_length(trajectory) == (10 + 2) * 4 + (30 + 3) * 6 + (20 + 4.5) * 9 == 466.5
    assert state_tokens(trajectory) == (3 + 2 + 4) / 3
    assert valid_action_rate(trajectory) == pytest.approx(2 / 3)


def test_dependency_length_of_a_constant_context_is_linear_in_turns():
    # The point of MEM1: contexts that do not grow cost linearly; an appended history costs quadratically.
    compact = [dependency_length(make_trajectory([(10, 5, 0, None)] * n)) for n in (1, 2, 4)]
    assert compact == [62.5, 125.0, 250.0]
    appended = dependency_length(make_trajectory([(10 + 5 * t, 5, 0, None) for t in range(4)]))
    assert appended == 250.0 + 5 * 5 * (0 + 1 + 2 + 3)


def test_trajectory_metrics_has_stable_keys(trajectory):
    assert trajectory_metrics(trajectory) == {
        "turns": 3.0,
        "generated_tokens": 19.0,
        "peak_tokens": 36.0,
        "peak_tokens_without_prompt": 26.0,
        "dependency_length": 466.5,
        "state_tokens": 3.0,
        "valid_action_rate": pytest.approx(2 / 3),
    }


def test_aggregate(trajectory):
    short = make_trajectory([(8, 2, 0, None)], stop_reason=StopReason.INVALID_ACTION, reward=0.0)
    short.metrics = {"seconds": 4.0, "turns": 99.0}
    trajectory.reward = 1.5
    unscored = make_trajectory([(8, 2, 0, "answer")])
    means = aggregate([trajectory, short, unscored])
    assert means["turns"] == pytest.approx(5 / 3)  # over episodes, and computed, not the stored 99
    assert means["peak_tokens"] == pytest.approx((36 + 10 + 10) / 3)
    assert means["valid_action_rate"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert means["reward"] == 0.75  # of the two scored episodes
    assert means["seconds"] == 4.0
    shares = {key: value for key, value in means.items() if key.startswith("stop_reason/")}
    assert set(shares) == {f"stop_reason/{reason}" for reason in StopReason}
    assert shares["stop_reason/answer"] == pytest.approx(2 / 3)
    assert shares["stop_reason/invalid_action"] == pytest.approx(1 / 3)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_aggregate_without_scores_has_no_reward(trajectory):
    assert "reward" not in aggregate([trajectory])
    with pytest.raises(ValueError, match="at least one"):
        aggregate([])
