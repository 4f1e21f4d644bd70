"""Tests of waiting and trying again: one list of what passes by itself, and random numbers of its own."""

from __future__ import annotations

import random
import threading
import time
from email.utils import formatdate

import pytest

from mem1_trl.retrying import Cancellation, asked_to_wait, backoff, ending_with_cancellation, with_retries


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(Cancellation, "wait", lambda self, seconds: found.append(seconds))
    return found


def test_waits_double_up_to_a_minute():
    numbers = random.Random(0)
    for attempt, middle in ((1, 0.5), (2, 1.0), (3, 2.0), (8, 48.0), (400, 48.0)):
        waits = [backoff(attempt, 0.5, 0.25, numbers) for _ in range(200)]
        assert 0.75 * middle <= min(waits) < 0.8 * middle and 1.2 * middle < max(waits) <= min(1.25 * middle, 60.0)


def test_a_server_may_ask_for_a_wait():
    assert asked_to_wait({"Retry-After": "7"}) == asked_to_wait({"retry-after": 7}) == 7.0
    assert asked_to_wait({"Retry-After": "86400"}) == 60.0
    assert asked_to_wait({"Retry-After": "soon"}) is asked_to_wait({}) is asked_to_wait(None) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2.5", 2.5),
        ("86400", 60.0),
        ("1e400", 60.0),
        ("-5", 0.0),
        (formatdate(1_000_010, usegmt=True), 10.0),
        (formatdate(999_000, usegmt=True), 0.0),
        (formatdate(2_000_000, usegmt=True), 60.0),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Mon, 99 Jan 99999 99:99:99 GMT", None),
    ],
)
def test_a_wait_may_be_a_fraction_or_a_date_and_is_bounded(value, seconds):
    assert asked_to_wait({"Retry-After": value}, now=lambda: 1_000_000.0) == seconds


def test_calls_are_repeated_while_that_helps(pauses):
    left = [ConnectionError("a"), ConnectionError("b")]

    def attempt():
        if left:
            raise left.pop(0)
        return 7

    seen = []
    assert with_retries(attempt, 2, lambda error, n: 0.5 * n, lambda error, s: seen.append((str(error), s))) == 7
    assert pauses == [0.5, 1.0] and seen == [("a", 0.5), ("b", 1.0)]


@pytest.mark.parametrize(("waits", "attempts"), [(1.0, 3), (None, 1)])
def test_the_last_failure_is_raised(pauses, waits, attempts):
    made = []

    def attempt():
        made.append(len(made))
        raise ConnectionError(f"attempt {len(made)}")

    with pytest.raises(ConnectionError, match=f"attempt {attempts}"):
        with_retries(attempt, 2, lambda error, n: waits)
    assert len(made) == attempts and len(pauses) == attempts - 1


def test_a_wait_ends_at_once_when_the_answer_is_no_longer_wanted():
    cancellation, made, waits = Cancellation(), [], threading.Event()
    failures = []

    def attempt():
        made.append(len(made))
        raise ConnectionError(f"attempt {len(made)}")

    def ask():
        with pytest.raises(ConnectionError) as caught:
            with_retries(attempt, 5, lambda error, n: 600.0, lambda error, seconds: waits.set(), cancellation)
        failures.append(str(caught.value))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert waits.wait(60)
    cancellation.cancel()
    thread.join(60)
    assert failures == ["attempt 1"] and made == [0]
    waits.clear()
    ask()  # after the cancellation: asked once, and not waited for
    assert failures == ["attempt 1", "attempt 2"] and not waits.is_set()


def test_exchanges_of_a_thread_end_with_its_cancellation():
    cancellation, ended = Cancellation(), []
    with ending_with_cancellation(lambda: ended.append("of no cancellation")):
        pass
    with cancellation.applied(), ending_with_cancellation(lambda: ended.append("over before")):
        pass
    with cancellation.applied(), ending_with_cancellation(lambda: ended.append("under way")):
        threading.Thread(target=cancellation.cancel).start()
        assert cancellation.wait(60)
        while not ended:
            time.sleep(0.01)
    assert ended == ["under way"]
    with cancellation.applied(), ending_with_cancellation(lambda: ended.append("begun after it")):
        assert ended == ["under way", "begun after it"]


def test_waiting_draws_no_global_random_numbers(pauses):
    state = random.getstate()
    backoff(1, 1.0)
    with pytest.raises(OSError):
        with_retries(lambda: (_ for _ in ()).throw(OSError()), 3, lambda error, n: backoff(n, 1.0))
    assert random.getstate() == state
