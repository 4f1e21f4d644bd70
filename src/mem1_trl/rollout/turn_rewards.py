"""The rewards that environments give for single turns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ..environment_runtime.errors import describe_error
from ..environment_runtime.pool import ask_rewards
from ..trajectory import StopReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..environment_runtime.calls import EnvironmentCaller
    from .episode import Episode


def reward_turns(caller: EnvironmentCaller, episodes: Sequence[Episode]) -> None:
    """
    Ask the environments for the rewards of the turns that have just acted in them, and note these in the turns.

    An episode whose environment fails in it ends, as one does whose `get_reward` fails: it has an `error` and no reward.

    Args:
        caller ([`EnvironmentCaller`]):
            Runs the calls.
        episodes (`Sequence[Episode]`):
            Episodes whose last turn called their environment. Those without a method `get_turn_reward` are left as they are.
    """
    scores = ask_rewards(caller, [episode.environment for episode in episodes], "get_turn_reward")
    for episode, (reward, failure) in zip(episodes, scores, strict=True):
        if failure is not None:
            episode.error = describe_error(failure)
            episode.stop_reason = episode.stop_reason or StopReason.ERROR
        elif reward is not None:
            episode.turns[-1] = dataclasses.replace(episode.turns[-1], reward=reward)
