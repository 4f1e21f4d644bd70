"""Metrics of an episode, against numbers worked out by hand."""

import pytest

from mem1_trl.metrics import (
    dependency_length,
    generated_tokens,
    peak_tokens,
    repeated_actions,
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


def test_an_episode_that_could_not_be_started_has_no_tokens():
    failed = Trajectory([], stop_reason=StopReason.ERROR)
    assert peak_tokens(failed) == peak_tokens(failed, include_prompt=False) == 0


def test_a_turn_without_state_counts_in_the_mean():
    assert state_tokens(make_trajectory([(10, 4, 6, "search"), (10, 4, 0, None), (10, 4, 3, "answer")])) == 3.0


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
        "repeated_actions": 0.0,
    }


def test_actions_that_were_taken_before_are_counted():
    taken = [("search", "a"), ("search", "b"), (None, None), ("search", "a"), ("search", "a"), ("answer", "a")]
    episode = Trajectory(
        turns=[
            Turn(prompt_ids=(7,), completion_ids=(9,), action=action, action_input=given) for action, given in taken
        ]
    )
    assert repeated_actions(episode) == pytest.approx(2 / 5)


def test_an_episode_without_turns_has_all_numbers(trajectory):
    none = trajectory_metrics(Trajectory([], stop_reason=StopReason.ERROR))
    assert none.keys() == trajectory_metrics(trajectory).keys() and none["state_tokens"] == 0
