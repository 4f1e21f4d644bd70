"""Both ways in which episodes are played."""

from __future__ import annotations

import functools

import pytest

from mem1_trl.rollout.settings import ROLLOUT_MODES
from mem1_trl.rollout.turn_loop import Rollout


@pytest.fixture(params=ROLLOUT_MODES)
def rollout_mode(request, monkeypatch):
    """The test runs once with each of the modes, which all its rollouts have (processes that generate together play in lockstep)."""
    begin = Rollout.__init__

    @functools.wraps(begin)
    def begin_in_mode(self, *args, **kwargs):
        mode = "lockstep" if "running_anywhere" in kwargs else request.param
        begin(self, *args, **{**kwargs, "mode": mode, "batch_wait": 10.0})

    monkeypatch.setattr(Rollout, "__init__", begin_in_mode)
    return request.param
