"""Tests of calling environments: time limits, retries, concurrency, and what is left when an instance is lost."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import pytest
from support.meeting import Meeting

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime import faults
from mem1_trl.environment_runtime.actions import action_methods, run_calls
from mem1_trl.environment_runtime.calls import USE_SETTINGS, EnvironmentCall, EnvironmentCaller
from mem1_trl.environment_runtime.environment_thread import EnvironmentThread
from mem1_trl.environment_runtime.errors import (
    CallTimedOut,
    EnvironmentDied,
    RemoteError,
    describe_error,
    idempotent,
    is_transient,
    may_repeat,
)
from mem1_trl.environment_runtime.faults import FaultSettings, as_reward, fault_metrics
from mem1_trl.environment_runtime.pool import EnvironmentPool, GivenEnvironments


class Echo:
    """Answers, in the way of its row."""

    made = 0

    def __init__(self):
        type(self).made += 1

    def reset(self, prompt=None, **row):
        self.row = row

    def say(self, text: str) -> str:
        """Say it."""
        return text

    def get_reward(self):
        return 1.0


def pool_of(kind, **settings) -> EnvironmentPool:
    return EnvironmentPool(kind, Mem1Protocol(), FaultSettings(**settings))


# What is worth another attempt


@pytest.mark.parametrize(
    ("error", "once", "repeatable"),
    [
        (ConnectionResetError("x"), True, True),
        (TimeoutError("x"), True, True),
        (RemoteError(["ReadTimeout", "Timeout", "RequestException", "OSError"], "x"), True, True),
        (OSError("disk"), False, True),
        (RuntimeError("x"), False, True),
        (CallTimedOut("x"), False, True),
        (ValueError("x"), False, False),
        (TypeError("x"), False, False),
        (KeyError("x"), False, False),
        (RemoteError(["KeyError", "LookupError", "Exception"], "x"), False, False),
        (EnvironmentDied("x"), False, False),
        (KeyboardInterrupt(), False, False),
    ],
)
def test_what_is_repeated(error, once, repeatable):
    assert may_repeat(error, repeatable=False) is once
    assert may_repeat(error, repeatable=True) is repeatable


@pytest.mark.parametrize(
    ("library", "name", "transient"),
    [
        ("requests.exceptions", "ConnectTimeout", True),
        ("requests.exceptions", "ConnectionError", True),
        ("requests.exceptions", "HTTPError", False),
        ("urllib3.exceptions", "ReadTimeoutError", True),
        ("aiohttp", "ServerDisconnectedError", True),
        ("httpx", "ReadTimeout", True),
        ("httpx", "HTTPStatusError", False),
    ],
)
def test_errors_of_libraries_are_known_by_name(library, name, transient):
    kind = getattr(pytest.importorskip(library), name)
    assert is_transient(kind.__new__(kind)) is transient


@pytest.mark.parametrize(("share", "waits"), [(1.0, [0.5, 1.0, 2.0, 40.0, 40.0]), (1.5, [0.75, 1.5, 3.0, 60.0, 60.0])])
def test_waits_double_and_none_is_longer_than_a_minute(monkeypatch, share, waits):
    class Fixed:
        def uniform(self, low, high):
            assert (low, high) == (0.5, 1.5)
            return share

    monkeypatch.setattr(faults, "FIRST_WAIT", 0.5)
    assert [faults.seconds_to_wait(n, Fixed()) for n in (1, 2, 3, 8, 30)] == pytest.approx(waits)


def test_a_description_is_one_short_line():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    assert describe_error(RuntimeError("a\n  b")) == "RuntimeError: a b"
    assert len(describe_error(RuntimeError("x" * 10_000_000))) == 500
    assert describe_error(Mute()) == "Mute"


def test_several_numbers_are_not_a_reward():
    import numpy as np
    import torch

    for value in (np.ones(2), torch.ones(2), np.ones((1, 2))):
        with pytest.raises(TypeError, match=rf"get_reward gave a \w+ of shape \({value.shape[0]}"):
            as_reward(value)


@pytest.mark.parametrize("value", ["1", b"1", [1.0], {"a": 1}, object()])
def test_a_reward_is_a_number(value):
    with pytest.raises(TypeError, match=f"get_reward gave a {type(value).__name__}: return a float"):
        as_reward(value)


def test_a_reward_is_finite_and_may_be_of_any_library():
    import numpy as np
    import torch

    assert [as_reward(v) for v in (None, True, 2, np.float32(0.5), torch.tensor(0.25))] == [None, 1.0, 2.0, 0.5, 0.25]
    for value in (float("nan"), float("-inf"), np.nan):
        with pytest.raises(ValueError, match="get_reward gave"):
            as_reward(value)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"timeout": 0.0}, r"environment_timeout must be positive or None, got 0\.0\."),
        ({"timeout": float("nan")}, r"environment_timeout must be positive or None, got nan\."),
        ({"retries": -1}, r"environment_retries must be at least 0, got -1\."),
        ({"concurrency": 0}, r"environment_concurrency must be at least 1, got 0\."),
        ({"timeout": "300"}, "environment_timeout must be a number or null, got '300'"),
        ({"retries": 1.5}, r"environment_retries must be a whole number, got 1\.5"),
        ({"retries": "2"}, "environment_retries must be a whole number, got '2'"),
        ({"concurrency": True}, "environment_concurrency must be a whole number, got True"),
        ({"on_error": "raise"}, "on_environment_error='raise' is unknown: use one of 'observe', 'drop_group'"),
    ],
)
def test_settings_are_checked(kwargs, words):
    with pytest.raises(ValueError, match=words):
        FaultSettings(**kwargs)


def test_metrics_are_of_all_processes():
    one = {"calls": 3, "errors": 1, "action_errors": 1, "reset_errors": 0, "timeouts": 1, "retries": 2, "restarts": 0}
    other = {
        "calls": 1,
        "errors": 1,
        "action_errors": 0,
        "reset_errors": 1,
        "timeouts": 0,
        "retries": 0,
        "restarts": 4,
    }
    assert fault_metrics([one, other]) == {
        "error_rate": 0.5, "action_errors": 1.0, "reset_errors": 1.0, "timeouts": 1.0, "retries": 2.0, "restarts": 4.0
    }  # fmt: skip
    assert fault_metrics([dict.fromkeys(one, 0)])["error_rate"] == 0.0


# Actions


class Failing(Echo):
    """Fails a number of times before it answers."""

    def reset(self, kind=ConnectionError, times=1, **row):
        self.kind, self.left, self.attempts = kind, times, 0

    def _fail(self):
        self.attempts += 1
        if self.left > 0:
            self.left -= 1
            raise self.kind("away")

    def act(self) -> str:
        """Act."""
        self._fail()
        return "done"

    @idempotent
    def look(self) -> str:
        """Look."""
        self._fail()
        return "seen"

    async def wait(self) -> str:
        """Wait."""
        self._fail()
        return "waited"


@pytest.mark.parametrize(
    ("method", "kind", "times", "attempts", "text"),
    [
        ("act", ConnectionError, 2, 3, "done"),
        ("act", ConnectionError, 3, 3, "Error: ConnectionError: away"),
        ("act", OSError, 1, 1, "Error: OSError: away"),
        ("look", OSError, 1, 2, "seen"),
        ("look", ValueError, 1, 1, "Error: ValueError: away"),
        ("wait", TimeoutError, 1, 2, "waited"),
    ],
)
def test_actions_are_repeated_where_that_is_safe(method, kind, times, attempts, text):
    environment = Failing()
    environment.reset(kind, times)
    caller = EnvironmentCaller(FaultSettings(retries=2))
    (result,) = run_calls([(getattr(environment, method), {})], caller)
    assert (result.text, environment.attempts) == (text, attempts)
    failed = text.startswith("Error")
    assert result.failed is failed and not result.fatal
    counts = caller.counts.reset()
    assert (counts["calls"], counts["retries"]) == (1, attempts - 1)
    # A refusal is an answer, for which the environment is not to blame
    assert counts["errors"] == (failed and kind is not ValueError)
    assert (result.error is None) is (not failed or kind is ValueError)


@pytest.mark.parametrize(
    ("limits", "attempts"), [({}, 3), ({"retries": USE_SETTINGS}, 3), ({"retries": None}, 1), ({"retries": 1}, 2)]
)
def test_a_call_may_have_limits_of_its_own(limits, attempts):
    made = []

    def fail():
        made.append(True)
        raise ConnectionError("away")

    caller = EnvironmentCaller(FaultSettings(retries=2))
    (outcome,) = caller.run([EnvironmentCall(EnvironmentThread(), fail, **limits)])
    assert isinstance(outcome.error, ConnectionError) and len(made) == attempts


def test_a_call_may_have_no_time_limit():
    release = threading.Event()
    caller = EnvironmentCaller(FaultSettings(timeout=0.2))
    calls = [EnvironmentCall(EnvironmentThread(), lambda: release.wait(20), timeout=None)]
    calls.append(EnvironmentCall(EnvironmentThread(), lambda: release.wait(20)))
    threading.Timer(0.5, release.set).start()
    unlimited, limited = caller.run(calls)
    assert unlimited.value is True and isinstance(limited.error, CallTimedOut)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (7, "7"), ({"a": 1}, "{'a': 1}"), (b"caf\xc3\xa9 \xff", "café \ufffd"), ("\ud800", "\ud800")],
)
def test_whatever_an_action_returns_is_text(value, text):
    (result,) = run_calls([(lambda: value, {})])
    assert result.text == text and not result.failed


def test_a_result_that_cannot_be_shown_is_an_error():
    class Mute:
        def __str__(self):
            raise RuntimeError("no words")

    (result,) = run_calls([(Mute, {})])
    assert result.text == "Error: RuntimeError: no words" and result.error == "RuntimeError: no words"


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError, GeneratorExit])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_exception_ends_the_run_but_an_interrupt(kind, asynchronous):
    def leave():
        raise kind("bye")

    async def leave_later():
        raise kind("bye")

    (result,) = run_calls([(leave_later if asynchronous else leave, {})])
    assert result.failed and result.error
    interrupted = leave_later if asynchronous else leave
    kind = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_calls([(interrupted, {})])


def test_a_hanging_action_costs_its_episode_and_no_other():
    release, ended = threading.Event(), []

    class Stuck(Echo):
        def wait(self) -> str:
            """Wait."""
            ended.append(release.wait(60))
            return "late"

    stuck, sound = Stuck(), Stuck()
    caller = EnvironmentCaller(FaultSettings(timeout=0.3))
    results = run_calls([(stuck.wait, {}), (sound.say, {"text": "a"}), (stuck.say, {"text": "b"})], caller)
    assert not ended, "the end of the hanging call was not waited for"
    assert [r.text for r in results] == [
        "Error: TimeoutError: no answer within 0.3 seconds",
        "a",
        "Error: EnvironmentDied: an earlier call of this environment never ended",
    ]
    assert [r.fatal for r in results] == [True, False, True]
    assert caller.counts.timeouts == 1 and caller.counts.errors == 2
    assert run_calls([(sound.say, {"text": "c"})], caller)[0].text == "c"
    release.set()


def test_an_asynchronous_action_is_cancelled_and_the_episode_goes_on():
    cleaned = []

    class Slow(Echo):
        async def wait(self) -> str:
            """Wait."""
            try:
                await asyncio.sleep(30)
            finally:
                cleaned.append(True)

    slow = Slow()
    caller = EnvironmentCaller(FaultSettings(timeout=0.2))
    results = run_calls([(slow.wait, {}), (slow.say, {"text": "b"})], caller)
    assert [r.text for r in results] == ["Error: TimeoutError: no answer within 0.2 seconds", "b"]
    assert not results[0].fatal and cleaned == [True]


def test_a_coroutine_that_blocks_the_loop_is_left_to_itself():
    release = threading.Event()

    class Rude(Echo):
        async def block(self) -> str:
            """Block."""
            release.wait(20)

        async def wait(self) -> str:
            """Wait."""
            await asyncio.sleep(0.01)
            return "fine"

    caller = EnvironmentCaller(FaultSettings(timeout=0.2))
    rude, other = Rude(), Rude()
    (result,) = run_calls([(rude.block, {})], caller)
    assert result.fatal and "no answer within" in result.text
    assert run_calls([(other.wait, {})], caller)[0].text == "fine"
    release.set()


def test_sessions_of_one_event_loop_live_across_turns():
    class Session(Echo):
        async def open(self) -> str:
            """Open."""
            self.queue: asyncio.Queue = asyncio.Queue()
            self.task = asyncio.ensure_future(self.queue.get())  # belongs to the loop, as a connection does
            return "open"

        async def use(self) -> str:
            """Use."""
            await self.queue.put("used")
            return await self.task

    session, caller = Session(), EnvironmentCaller()
    assert [run_calls([(m, {})], caller)[0].text for m in (session.open, session.use)] == ["open", "used"]


def test_all_calls_of_an_instance_are_made_in_one_thread():
    class Database(Echo):
        def __init__(self):
            self.connection = sqlite3.connect(":memory:")  # refuses every other thread

        def reset(self, **row):
            self.connection.execute("create table if not exists t (x)")

        def say(self, text: str) -> str:
            """Say."""
            self.connection.execute("insert into t values (?)", (text,))
            return str(self.connection.execute("select count(*) from t").fetchone()[0])

        def get_reward(self):
            return self.connection.execute("select count(*) from t").fetchone()[0]

        def close(self):
            self.connection.close()
            closed.append(True)

    closed = []
    pool = pool_of(Database)
    started = pool.start([{}, {}])
    environments = [s.environment for s in started]
    assert [s.error for s in started] == [None, None]
    for expected in "12":
        results = run_calls([(e.say, {"text": "x"}) for e in environments], pool.caller)
        assert [r.text for r in results] == [expected, expected]
    assert pool.score(environments) == [(2.0, None), (2.0, None)]
    pool.close()
    assert closed == [True, True]


def test_calls_of_one_environment_keep_their_order_and_those_of_others_overlap():
    log, meeting, third = [], Meeting(2), threading.Event()

    class Writer(Echo):
        def write(self, text: str):
            """Write."""
            if text == "b":
                third.wait(60)
            else:
                meeting.wait()
            log.append(text)
            if text == "c":
                third.set()

    one, other = Writer(), Writer()
    results = run_calls([(one.write, {"text": "a"}), (one.write, {"text": "b"}), (other.write, {"text": "c"})])
    assert not any(result.failed for result in results), "the first calls of both ran at the same time"
    assert sorted(log) == ["a", "b", "c"] and log.index("a") < log.index("b") and log.index("c") < 2


def test_concurrency_is_bounded():
    now, most = [], []

    def count():
        now.append(1)
        most.append(len(now))
        time.sleep(0.02)
        now.pop()

    caller = EnvironmentCaller(FaultSettings(concurrency=3))
    assert len(caller.run([EnvironmentCall(EnvironmentThread(), count) for _ in range(12)])) == 12
    assert max(most) == 3
    order = []
    caller = EnvironmentCaller(FaultSettings(concurrency=1))
    caller.run([EnvironmentCall(EnvironmentThread(), lambda i=i: order.append(i)) for i in range(20)])
    assert order == list(range(20))


# Sixty-four episodes at the same time


class Meets(Echo):
    meeting = Meeting(64)

    def reset(self, **row):
        self.meeting.wait()

    def say(self, text: str) -> str:
        """Say."""
        self.meeting.wait()
        return text

    def get_reward(self):
        self.meeting.wait()
        return 0.0


class MeetsAsync(Echo):
    meeting = Meeting(64)

    async def reset(self, **row):
        await self.meeting.wait_async()

    async def say(self, text: str) -> str:
        """Say."""
        await self.meeting.wait_async()
        return text

    async def get_reward(self):
        await self.meeting.wait_async()
        return 0.0


@pytest.mark.parametrize("kind", [Meets, MeetsAsync])
def test_sixty_four_episodes_run_at_the_same_time(kind):
    pool = pool_of(kind)
    started = pool.start([{}] * 64)
    assert [one.error for one in started] == [None] * 64
    environments = [one.environment for one in started]
    for turn in range(3):
        results = run_calls([(e.say, {"text": f"{turn} {i}"}) for i, e in enumerate(environments)], pool.caller)
        assert [r.text for r in results] == [f"{turn} {i}" for i in range(64)]
    assert pool.score(environments) == [(0.0, None)] * 64
    assert kind.meeting.arrived == 5 * 64


# The pool


def test_a_reset_that_fails_is_repeated_in_a_new_instance():
    class Moody(Echo):
        made, closed = 0, SimpleQueue()

        def __init__(self):
            super().__init__()
            self.number = Moody.made

        def reset(self, **row):
            if self.number <= 2:
                raise OSError("no luck")
            return f"instance {self.number}"

        def close(self):
            Moody.closed.put(self.number)

    pool = pool_of(Moody, retries=2)
    (started,) = pool.start([{}])
    assert started.observation == "instance 3" and started.error is None and started.environment.number == 3
    expected = {
        **dict.fromkeys(("errors", "action_errors", "reset_errors", "timeouts"), 0),
        "calls": 1,
        "retries": 2,
        "restarts": 2,
    }
    assert pool.caller.counts.reset() == expected
    pool.close()
    # Those that failed are closed in their own time
    assert sorted(Moody.closed.get(timeout=60) for _ in range(3)) == [1, 2, 3]


def test_a_reset_that_cannot_pass_is_not_repeated():
    class Wrong(Echo):
        def reset(self, **row):
            raise ValueError("bad row")

    pool = pool_of(Wrong)
    (started,) = pool.start([{}])
    assert str(started.error) == "bad row" and pool.caller.counts.retries == 0 and pool.caller.counts.errors == 1


@pytest.mark.parametrize("value", [7, {"a": 1}, b"x", ["y"]])
def test_a_reset_returns_text_or_nothing(value):
    class Odd(Echo):
        def reset(self, **row):
            return value

    (started,) = pool_of(Odd).start([{}])
    assert isinstance(started.error, TypeError) and f"got a {type(value).__name__}" in str(started.error)


def test_a_hanging_reset_is_given_up_and_the_instance_replaced():
    release, ended = threading.Event(), []

    class Stuck(Echo):
        made = 0

        def __init__(self):
            super().__init__()
            self.number = Stuck.made

        def reset(self, prompt=None, **row):
            if self.number == 1:
                ended.append(release.wait(60))
            return str(self.number)

    pool = pool_of(Stuck, timeout=0.3)
    first, second = pool.start([{}, {}])
    assert not ended, "the end of the hanging reset was not waited for"
    release.set()
    assert (first.observation, second.observation) == ("3", "2")
    assert pool.caller.counts.timeouts == 1 and pool.caller.counts.restarts == 1


def test_a_failed_instance_is_replaced_in_the_next_batch():
    class Judged(Echo):
        def get_reward(self):
            raise RuntimeError("judge is down")

    pool = pool_of(Judged, retries=0)
    before = [s.environment for s in pool.start([{}, {}])]
    [(reward, failure)] = pool.score(before[:1])
    assert (reward, describe_error(failure)) == (None, "RuntimeError: judge is down")
    after = [s.environment for s in pool.start([{}, {}])]
    assert after[0] is not before[0] and after[1] is before[1]
    pool.discard(after[1])
    assert pool.start([{}, {}])[1].environment is not after[1]


def test_an_environment_that_cannot_be_made_again_fails_its_episode_only():
    class Scarce(Echo):
        made = 0

        def __init__(self):
            super().__init__()
            if Scarce.made > 2:
                raise RuntimeError("no more licences")

    pool = pool_of(Scarce, retries=1, concurrency=1)  # two at once would count each other
    started = pool.start([{}] * 3)
    assert [s.error is None for s in started] == [True, True, False] and started[2].environment is None


def test_each_row_has_an_environment_of_its_own():
    one, caller = Echo(), EnvironmentCaller()
    with pytest.raises(ValueError, match="must have an environment of its own, got one twice"):
        GivenEnvironments([one, Echo(), one], Mem1Protocol(), caller)
    given = GivenEnvironments([one, Echo()], Mem1Protocol(), caller)
    assert [started.error for started in given.start([{}, {}])] == [None, None]
    given.release()


def test_environments_of_one_batch_are_played_by_one_loop():
    class Owner(Echo):
        closed = 0

        def mem1_plays(self, rollout, episodes):
            """Plays them."""

        def close(self):
            Owner.closed += 1

    words = r"must be played by one loop, but a program owns that of some \(Echo, Owner\)"
    with pytest.raises(ValueError, match=words):
        pool_of({"plain": Echo, "own": Owner})
    assert Owner.closed == 1
    with pytest.raises(ValueError, match=words):
        GivenEnvironments([Echo(), Owner()], Mem1Protocol(), EnvironmentCaller())
    pool_of({"one": Owner, "other": Owner}).close()
    pool_of({"one": Echo, "other": type("Other", (Echo,), {})}).close()


def test_what_would_hit_every_row_is_an_error_at_construction():
    class Broken:
        def __init__(self):
            raise FileNotFoundError("no game file")

    with pytest.raises(FileNotFoundError, match="no game file"):
        pool_of(Broken)


def test_close_is_called_once_and_new_instances_come_after_it():
    class Closing(Echo):
        closed = []  # noqa: RUF012

        async def close(self):
            """Even with a docstring it is no action."""
            Closing.closed.append(id(self))

    pool = pool_of(Closing)
    assert "close" not in action_methods(Closing())
    first = [s.environment for s in pool.start([{}, {}])]
    pool.close()
    pool.close()
    assert sorted(Closing.closed) == sorted(map(id, first))
    again = [s.environment for s in pool.start([{}, {}])]
    assert not {id(e) for e in again} & {id(e) for e in first}


def test_a_method_close_with_arguments_is_an_action():
    class Browser(Echo):
        def close(self, tab: str) -> str:
            """Close a tab."""
            return f"closed {tab}"

    assert "close" in action_methods(Browser())
    pool_of(Browser).close()


# An interrupt

INTERRUPTED = """
import signal, sys, threading, time
from mem1_trl.environment_runtime.actions import run_calls
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background passes on that it ignores Ctrl-C
class Stuck:
    def hang(self):
        print("hanging", flush=True)
        time.sleep(600)
    async def ahang(self):
        print("hanging", flush=True)
        time.sleep(600)
try:
    run_calls([(Stuck().%s, {})])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise SystemExit(5)
"""


@pytest.mark.parametrize("method", ["hang", "ahang"])
def test_an_interrupt_ends_a_run_whose_environment_hangs(method):
    command = [sys.executable, "-c", INTERRUPTED % method]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout.readline() == "hanging\n"
    process.send_signal(signal.SIGINT)
    assert (
        process.wait(timeout=120) == 5
    )  # the thread that hangs for 600 seconds does not hold up the end of the program
    assert process.stdout.read() == "interrupted\n"


def test_a_factory_makes_a_new_environment_for_each_episode():
    """In a shared one two episodes would play at once, and both would have the reward of the later."""
    shared = Echo()
    pool = EnvironmentPool(lambda: shared, Mem1Protocol())
    with pytest.raises(ValueError, match="must return a new environment at every call, got the same Echo twice"):
        pool.start([{}, {}])
    pool.close()
    with pytest.raises(ValueError, match="must return a new environment at every call"):
        EnvironmentPool({"a": lambda: shared, "b": lambda: shared}, Mem1Protocol())
    with pytest.raises(TypeError, match="must return an environment, got the class Echo: pass the class itself"):
        EnvironmentPool(lambda: Echo, Mem1Protocol())


def test_a_factory_may_return_an_environment_again_that_was_given_back():
    kept = Echo()
    pool = EnvironmentPool(lambda: kept, Mem1Protocol())
    (first,) = pool.start([{}])
    pool.discard(first.environment)
    (second,) = pool.start([{}])
    assert second.environment is kept and second.error is None
    pool.close()


def test_a_static_method_may_be_marked_on_either_side():
    class Library:
        @idempotent
        @staticmethod
        def outside():
            """Search."""

        @staticmethod
        @idempotent
        def inside():
            """Search."""

    assert Library().outside.idempotent and Library().inside.idempotent
