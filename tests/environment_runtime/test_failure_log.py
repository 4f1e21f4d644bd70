"""Tests of the log of failures: one traceback for each method, then counts, apart for actions and resets."""

from __future__ import annotations

import logging

from support.fault_environments import Misbehaving

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.actions import run_calls
from mem1_trl.environment_runtime.calls import EnvironmentCaller
from mem1_trl.environment_runtime.faults import FaultSettings
from mem1_trl.environment_runtime.pool import EnvironmentPool
from mem1_trl.environment_runtime.process import ProcessEnvironment


class Fragile:
    def reset(self, prompt=None, fails=False, **row):
        if fails:
            raise KeyError("no such task")

    def search(self, query: str) -> str:
        """Search."""
        raise self._error(query)

    def _error(self, query):
        return ValueError("refused") if query == "refuse" else RuntimeError(f"index of {query}")

    def get_reward(self):
        raise OSError("judge")


def tracebacks(caplog) -> list[str]:
    return [logging.Formatter().format(record) for record in caplog.records if record.exc_info]


def test_the_first_failure_of_a_method_has_its_traceback(caplog):
    pool = EnvironmentPool(Fragile, Mem1Protocol(), FaultSettings(retries=0))
    environments = [start.environment for start in pool.start([{}, {}, {}])]
    for query in ("a", "refuse", "b"):
        run_calls([(e.search, {"query": query}) for e in environments], pool.caller, environments)
    pool.start([{"fails": True}, {}, {"fails": True}])
    pool.score(environments[1:2])
    search, reset, reward = tracebacks(caplog)
    assert search.startswith("`search` of Fragile failed.") and "raise self._error(query)" in search
    assert search.endswith("RuntimeError: index of a")
    assert reset.startswith("`reset` of Fragile failed.") and reset.endswith("KeyError: 'no such task'")
    assert reward.startswith("`get_reward` of Fragile failed.") and reward.endswith("OSError: judge")
    assert pool.caller.failures.later() == "`search` of Fragile 5 times, `reset` of Fragile 1 time"
    assert pool.caller.failures.later() == ""
    counts = pool.caller.counts.reset()
    # A refusal is no failure
    assert (counts["errors"], counts["action_errors"], counts["reset_errors"]) == (6 + 2 + 1, 6, 2)
    assert counts["calls"] == 9 + 6 + 1
    pool.close()


def test_the_traceback_of_another_process_is_shown(caplog):
    environment = ProcessEnvironment.factory(Misbehaving)()
    environment.reset()
    run_calls([(environment.search, {"query": "raise"})], EnvironmentCaller(FaultSettings(retries=0)))
    environment.close()
    (shown,) = tracebacks(caplog)
    assert "In the process of the environment:" in shown and 'raise KeyError("lost")' in shown
