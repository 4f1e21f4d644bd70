"""Tests of waiting and trying again: one list of what passes by itself, and random numbers of its own."""

from __future__ import annotations

import random
from email.utils import formatdate

import pytest

from mem1_trl import retrying
from mem1_trl.retrying import asked_to_wait, backoff, with_retries


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", found.append)
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


def test_waiting_draws_no_global_random_numbers(pauses):
    state = random.getstate()
    backoff(1, 1.0)
    with pytest.raises(OSError):
        with_retries(lambda: (_ for _ in ()).throw(OSError()), 3, lambda error, n: backoff(n, 1.0))
    assert random.getstate() == state
