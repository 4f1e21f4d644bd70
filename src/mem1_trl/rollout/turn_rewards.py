"""The reward that an environment gives for a single turn."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ..environment_runtime.errors import describe_error
from ..trajectory import StopReason

if TYPE_CHECKING:
    from ..environment_runtime.call_records import EnvironmentCall, Outcome
    from .episode import Episode


def note_turn_reward(episode: Episode, call: EnvironmentCall, outcome: Outcome) -> None:
    """
    Note in the last turn what `get_turn_reward` has returned.

    An episode whose environment fails in it ends, as one does whose `get_reward` fails: it has an `error` and no reward.

    Args:
        episode ([`Episode`]):
            The episode whose last turn called its environment.
        call ([`EnvironmentCall`][mem1_trl.environment_runtime.call_records.EnvironmentCall]):
            The call of `get_turn_reward`.
        outcome ([`Outcome`][mem1_trl.environment_runtime.call_records.Outcome]):
            What it returned, or how it failed.
    """
    if outcome.error is not None:
        call.thread.failed = True
        episode.error = describe_error(outcome.error)
        episode.stop_reason = episode.stop_reason or StopReason.ERROR
    elif outcome.value is not None:
        episode.turns[-1] = dataclasses.replace(episode.turns[-1], reward=outcome.value)
