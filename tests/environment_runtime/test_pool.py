"""Rewards of environments that a pool has made."""

from __future__ import annotations

from types import SimpleNamespace

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.pool import EnvironmentPool


def made_anew():
    """An environment whose class is another object each time."""

    class Env:
        def reset(self, prompt=None, **row):
            return None

        def act(self, x: str) -> str:
            """Act."""
            return x

        def get_reward(self):
            return 1.0

        def get_turn_reward(self):
            return 0.5

    return Env()


def test_a_class_that_the_factory_defines_is_scored_in_every_episode():
    pool = EnvironmentPool(made_anew, Mem1Protocol())
    environments = [one.environment for one in pool.start([{"prompt": "a"}] * 3)]
    pool.score(environments)
    trajectories = [SimpleNamespace(turns=[SimpleNamespace(reward=0.5)])] * 3
    found = [each(environments=environments, trajectories=trajectories) for each in pool.reward_functions()]
    assert found == [[1.0] * 3, [[0.5]] * 3]
    pool.close()
