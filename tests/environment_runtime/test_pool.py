"""Rewards of environments that a pool has made."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.calls import EnvironmentCaller
from mem1_trl.environment_runtime.pool import EnvironmentPool, GivenEnvironments


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


class Browser:
    """Counts how many are open."""

    open = 0

    def __init__(self, name="a"):
        Browser.open += 1

    def reset(self, prompt=None, **row):
        return None

    def search(self, query: str) -> str:
        """Search."""
        return query

    def close(self):
        Browser.open -= 1


class NoDocs(Browser):
    """Has an action that cannot be offered."""

    def think(self, text: str) -> str:
        """Think."""
        return text


def broken():
    raise RuntimeError("no display")


@pytest.mark.parametrize("other", [broken, NoDocs, lambda: Browser])
def test_what_was_made_is_closed_where_another_environment_cannot_be(other):
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        EnvironmentPool({"a": Browser, "b": other}, Mem1Protocol())
    assert Browser.open == 0


@pytest.mark.parametrize(
    ("given", "made"), [(Browser, "Browser"), (made_anew(), "Env"), (partial(Browser, "b"), "factory")]
)
def test_what_is_no_list_of_environments_says_how_to_make_one(given, made):
    with pytest.raises(TypeError, match=rf"pass \[{made}\(\) for _ in rows\]"):
        GivenEnvironments(given, Mem1Protocol(), EnvironmentCaller())
