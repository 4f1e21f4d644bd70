"""Tests of environments in processes of their own: real hangs, real crashes."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from support.fault_environments import Misbehaving, Unclear, Unfinished
from support.processes import alive, ends
from support.scripted_agent import scripted

from mem1_trl import Mem1Agent, Mem1Protocol
from mem1_trl.environment_runtime import process
from mem1_trl.environment_runtime.actions import ActionSet, run_calls
from mem1_trl.environment_runtime.calls import EnvironmentCaller
from mem1_trl.environment_runtime.errors import EnvironmentDied, RemoteError
from mem1_trl.environment_runtime.faults import FaultSettings
from mem1_trl.environment_runtime.pool import EnvironmentPool, GivenEnvironments
from mem1_trl.environment_runtime.process import ProcessEnvironment


@pytest.fixture(scope="module")
def environment():
    made = ProcessEnvironment.factory(Misbehaving, "n")()
    yield made
    made.close()


def test_it_has_the_actions_of_the_environment_and_no_others(environment):
    wrapped, plain = ActionSet(environment, Mem1Protocol()), ActionSet(Misbehaving(), Mem1Protocol())
    assert wrapped.tags == plain.tags and wrapped.describe() == plain.describe()
    assert wrapped.arguments("browse", " 3 ") == {"page": 3}
    assert type(environment).__name__ == "Misbehaving"
    assert inspect.getdoc(environment.search) == inspect.getdoc(Misbehaving.search)
    assert inspect.signature(environment.search) == inspect.signature(Misbehaving().search)
    # TRL's own rule, by which a method `close` would be an action
    functions = {name for name, _ in inspect.getmembers(type(environment), inspect.isfunction) if name[0] != "_"}
    assert functions == {"reset", "search", "browse", "get_reward"}


def test_it_answers_as_the_environment_does(environment):
    assert environment.reset(prompt="p", fails="speaks", other=1) == "ready n"
    assert environment.search("a", times=2) == "n a 2 1"
    assert environment.browse(page=3) == "page 3"  # asynchronous in there
    assert environment.get_reward() == 1.0 and environment.steps == 1 and environment.done is False
    environment.search("finish")
    assert environment.done is True
    environment.reset()
    assert environment.done is False and not hasattr(environment, "nothing")


def test_what_is_set_is_set_in_the_process(environment):
    """A saved episode goes on where it was, see docs/agent.md."""
    given = GivenEnvironments([environment], Mem1Protocol(), EnvironmentCaller())
    environment.reset()
    environment.search("a")
    assert given.state_of(environment) == 1
    given.set_state(environment, 5)
    assert environment.search("b") == "n b 1 6" and given.state_of(environment) == 6
    environment.steps = 2
    assert environment.search("c") == "n c 1 3"
    given.release()


def test_what_cannot_leave_the_process_is_text_and_odd_errors_keep_their_names(environment):
    environment.reset()
    assert environment.search("unpicklable") == "a note"
    for query, text in (
        ("raise", "KeyError: 'lost'"),
        ("odd error", "OddError: odd"),
        ("refuse", "ValueError: no such page"),
    ):
        with pytest.raises(RemoteError) as caught:
            environment.search(query)
        assert str(caught.value) == text
    calls = [(environment.search, {"query": "refuse"}), (environment.search, {"query": "raise"})]
    refused, failed = run_calls(calls)
    assert refused.error is None and refused.text == "Error: ValueError: no such page"
    assert failed.error == "KeyError: 'lost'" and not failed.fatal
    assert len(environment.search("big")) == 1_000_000


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("sys.exit", "RuntimeError: SystemExit: bye"),
        ("cancel", "RuntimeError: CancelledError: bye"),
        ("leave", "RuntimeError: GeneratorExit: bye"),
        ("mute error", "MuteError: "),
        (
            "no text",
            "TypeError: an action must return text, or a value that `str` makes one of, got <unlocked _thread.lock",
        ),
    ],
)
def test_an_error_that_a_thread_survives_does_not_end_the_process(environment, query, text):
    environment.reset()
    (result,) = run_calls([(environment.search, {"query": query})])
    assert result.text.startswith(f"Error: {text}") and not result.fatal
    assert environment.search("a") == "n a 1 2"


def test_an_error_of_an_attribute_has_its_traceback_too(environment):
    environment.reset()
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'nothing'") as caught:
        environment.search("attribute")
    assert "return None.nothing" in caught.value.__notes__[0]


def test_an_action_may_start_processes(environment):
    environment.reset()
    assert environment.search("children") == "[1, 2]"


def test_it_loads_no_more_than_the_environment_needs(environment):
    assert environment.search("modules").startswith("[]") or environment.search("modules") == "[]"


def test_a_crash_is_survived_and_reset_starts_a_new_process(environment):
    environment.reset()
    for query, code in (("exit", "exit code 7"), ("segfault", "SIGSEGV")):
        with pytest.raises(EnvironmentDied, match=code):
            environment.search(query)
        with pytest.raises(EnvironmentDied, match="is gone"):
            environment.search("a")
        assert environment.reset(fails="speaks") == "ready n" and environment.search("b") == "n b 1 1"


@pytest.mark.parametrize("end", ["close", "stubborn", "crash", "terminate"])
def test_what_a_process_has_started_ends_with_it(monkeypatch, end):
    monkeypatch.setattr(process, "_CLOSING", 0.5)
    made = ProcessEnvironment.factory(Misbehaving, end)()
    pids = made._process.pid, int(made.search("leave a child"))
    assert all(map(alive, pids))
    if end == "crash":
        with pytest.raises(EnvironmentDied):
            made.search("exit")
        made.reset()
        assert ends(pids[1])
        made.close()
    elif end == "terminate":
        made._terminate()
    else:
        made.close()
    assert all(map(ends, pids))


def test_a_hang_is_killed_and_the_pool_goes_on():
    pool = EnvironmentPool(
        ProcessEnvironment.factory(Misbehaving, "p"), Mem1Protocol(), FaultSettings(timeout=15.0, retries=1)
    )
    environments = [started.environment for started in pool.start([{}, {}])]
    pids = [e._process.pid for e in environments]
    object.__setattr__(pool.caller.settings, "timeout", 1.0)
    calls = [(environments[0].search, {"query": "spin"}), (environments[1].search, {"query": "a"})]
    stuck, sound = run_calls(calls, pool.caller)
    assert stuck.fatal and stuck.text == "Error: TimeoutError: no answer within 1 seconds" and sound.text == "p a 1 1"
    assert ends(pids[0]) and alive(pids[1])
    object.__setattr__(pool.caller.settings, "timeout", 30.0)
    # In the next batch a new process stands in for it; one that dies in `reset` is tried again, in vain
    first, second = pool.start([{"fails": "speaks"}, {"fails": "reset"}])
    assert first.observation == "ready p" and first.environment is not environments[0]
    assert isinstance(second.error, EnvironmentDied) and "exit code 3" in str(second.error)
    (result,) = run_calls([(first.environment.search, {"query": "exit"})], pool.caller)
    assert result.fatal and "exit code 7" in result.text
    left = [e._process.pid for e in (first.environment, second.environment) if e is not None]
    pool.close()
    assert not any(alive(pid) for pid in [*pids, *left])


def test_a_process_that_dies_in_reset_costs_its_own_episode(actor, tokenizer):
    agent = scripted(Mem1Agent(actor, tokenizer, Mem1Protocol(), max_turns=1), tokenizer, ["<answer>a</answer>"])
    pool = EnvironmentPool(ProcessEnvironment.factory(Misbehaving, "p"), agent.protocol, FaultSettings(retries=0))
    rows = [{"prompt": "a"}, {"prompt": "b", "fails": "reset"}]
    try:
        played = agent.run_batch(rows, pool, keep_failures=True)
    finally:
        pool.close()
    assert [trajectory.answer for trajectory in played] == ["a", None]
    assert played[0].error is None and "exit code 3" in played[1].error


def test_what_cannot_be_sent_or_known_is_refused_at_once():
    class Local(Misbehaving):
        """Found in no module."""

    with pytest.raises(TypeError, match="Local and its arguments cannot be sent to another process"):
        ProcessEnvironment.factory(Local)
    with pytest.raises(TypeError, match="environment must be a class, got "):
        ProcessEnvironment.factory(lambda: Misbehaving())
    kind = ProcessEnvironment.factory(partial(Misbehaving, name="q"))
    assert kind.__name__ == "Misbehaving" and issubclass(kind, ProcessEnvironment)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
print("script runs", flush=True)
from mem1_trl.process_environment import ProcessEnvironment
import support.fault_environments, support.late_environments
kind = support.late_environments.Late if sys.argv[2] != "at once" else support.fault_environments.Misbehaving
environment = ProcessEnvironment.factory(kind)()
print(environment._process.pid, environment.search("leave a child"), environment.search("a"), flush=True)
import os, signal, threading, time
if sys.argv[2] == "within an action":
    threading.Thread(target=environment.doze, daemon=True).start()
    time.sleep(0.2)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "interrupted":
    os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize("noticed", ["at once", "late", "within an action"])
@pytest.mark.parametrize(("end", "status"), [("normal", 0), ("killed", -9), ("interrupted", -2)])
def test_no_process_outlives_the_program_which_needs_no_guard(end, status, noticed, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, str(script), end, noticed], capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert done.returncode == status, done.stderr
    first, second = done.stdout.splitlines()  # the script ran once, not again in the process
    pid, child, *answer = second.split()
    assert first == "script runs" and answer == ["m", "a", "1", "2"]
    assert ends(int(pid)) and ends(int(child))


def test_what_is_refused_in_a_thread_is_refused_in_a_process():
    with pytest.raises(ValueError, match="The action 'many' of Unfinished must return its result, but it yields"):
        ActionSet(ProcessEnvironment.factory(Unfinished)(), Mem1Protocol())


def test_a_done_without_a_truth_value_is_not_done():
    environment = ProcessEnvironment.factory(Unclear)()
    assert environment.reset() is None and environment.search("a") == "a" and environment.done is not True
    environment.close()
