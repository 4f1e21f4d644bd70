"""Environments that a server makes: each in a thread of its own, reset as everywhere, and closed when its answer is there or fails."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import time

import pytest
from support.reading_agent import reading
from support.serving import PLAIN, SETTINGS, Talk, served

from mem1_trl import Mem1Agent

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


class Shelf:
    """What all instances of a test do, written down by number."""

    def __init__(self):
        self.made, self.closed, self.threads = 0, [], {}

    def note(self, environment):
        """Say in which thread an instance was used."""
        self.threads.setdefault(environment.number, set()).add(threading.get_ident())


@pytest.fixture
def shelf():
    return Shelf()


def library(shelf, resets=lambda number: None):
    """A class of environments with a connection that may not leave its thread, and a count as state."""

    class Library:
        def __init__(self):
            self.number, shelf.made = shelf.made, shelf.made + 1
            self.rows = sqlite3.connect(":memory:")
            self.rows.execute("create table found (query text)")
            shelf.note(self)

        def reset(self, **row) -> None:
            shelf.note(self)
            resets(self.number)
            self.index = {"tea": "green"}

        def search(self, query: str) -> str:
            """Search."""
            shelf.note(self)
            self.rows.execute("insert into found values (?)", (query,))
            return f"{self.index[query]} {self.mem1_state}"

        @property
        def mem1_state(self):
            return self.rows.execute("select count(*) from found").fetchone()[0]

        @mem1_state.setter
        def mem1_state(self, count):
            shelf.note(self)
            self.rows.executemany("insert into found values (?)", [("before",)] * count)

        def close(self) -> None:
            shelf.note(self)
            self.rows.close()
            shelf.closed.append(self.number)

    return Library


def test_an_instance_is_made_used_and_closed_in_one_thread(agent, shelf):
    reading(agent)
    with served(agent, environment_factory=library(shelf)) as client:
        talk = Talk(client)
        told = [talk.say("tool tea").choices[0].message.content for _ in range(3)]
    assert [text.count("green") for text in told] == [1, 2, 3] and told[-1].endswith("green 3"), "the state goes on"
    assert shelf.closed == [0, 1, 2] and [len(shelf.threads[one]) for one in range(3)] == [1, 1, 1]


def test_what_is_asynchronous_is_awaited_in_every_answer(agent, shelf):
    class Library:
        def __init__(self):
            shelf.made += 1

        async def reset(self, **row) -> None:
            self.index = {"tea": "green"}

        async def search(self, query: str) -> str:
            """Search."""
            return self.index[query]

        async def close(self) -> None:
            shelf.closed.append(self)

    reading(agent)
    with served(agent, environment_factory=Library) as client:
        talk = Talk(client)
        for number in range(1, 4):
            assert talk.say("tool tea").choices[0].message.content.count("green") == number
            assert shelf.made == len(shelf.closed) == number


def test_a_reset_that_fails_is_repeated_with_another_instance(agent, shelf):
    def resets(number):
        if number == 1:
            raise ConnectionError("not yet")

    reading(agent)
    with served(agent, environment_factory=library(shelf, resets)) as client:
        talk = Talk(client)
        assert talk.say("a").choices[0].message.content == "a"
        assert talk.say("tool tea").choices[0].message.content == "a tool tea green 1"
    until = time.monotonic() + 20
    while len(shelf.closed) < 3 and time.monotonic() < until:  # the one that failed is not waited for
        time.sleep(0.01)
    assert shelf.made == 3 and sorted(shelf.closed) == [0, 1, 2]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_reset_that_keeps_failing_is_the_fault_of_the_server(agent, shelf, failing):
    def resets(number):
        if number >= failing:
            raise ValueError("no such shelf")

    reading(agent)
    with served(agent, environment_factory=library(shelf, resets)) as client:
        talk = Talk(client)
        for _ in range(failing):
            talk.say("a")
        with pytest.raises(openai.InternalServerError, match="could not be reset: ValueError: no such shelf") as error:
            talk.say("b")
        assert error.value.status_code == 502
    assert shelf.made == len(shelf.closed) == failing + 1


def test_a_factory_that_fails_is_the_fault_of_the_server(agent):
    def make():
        raise ValueError("no room")

    reading(agent)
    with served(agent, environment_factory=make) as client:
        with pytest.raises(openai.InternalServerError, match="could not be made: ValueError: no room") as error:
            Talk(client).say("a")
        assert error.value.status_code == 502


def test_a_reset_has_a_time_limit_in_every_answer(actor, tokenizer, shelf):
    free = threading.Event()

    def resets(number):
        if number == 1:
            free.wait(60)

    hurried = Mem1Agent(actor, tokenizer, PLAIN, environment_timeout=0.3, environment_retries=0, **SETTINGS)
    reading(hurried)
    with served(hurried, environment_factory=library(shelf, resets)) as client:
        talk = Talk(client)
        talk.say("a")
        with pytest.raises(openai.InternalServerError, match=r"could not be reset: .*no answer within 0\.3 seconds"):
            talk.say("b")
        free.set()


def test_a_request_that_fails_or_is_left_closes_what_was_made_for_it(agent, shelf):
    model = reading(agent, lambda context: f"<think>s</think><answer>{'b' * 250}</answer>")
    with served(agent, environment_factory=library(shelf)) as client:
        agent.settings = dataclasses.replace(agent.settings, max_context_length=120)
        with pytest.raises(openai.BadRequestError, match="at most 120 tokens"):
            Talk(client).say("long " * 60)
        assert shelf.closed == [0]
        agent.settings = dataclasses.replace(agent.settings, max_context_length=None)
        model.gate.clear()
        ask = {"model": "mem1", "messages": [{"role": "user", "content": "a"}], "stream": True}
        stream = client.chat.completions.create(**ask)
        next(iter(stream))
        stream.close()
        until = time.monotonic() + 20
        while len(shelf.closed) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert shelf.closed == [0, 1] and model.told < 250


def test_the_reward_of_training_is_not_asked_for(agent):
    """It may need what only a row of the data has."""

    class Shop:
        def reset(self, prompt=None, goal=None):
            self.goal = goal

        def search(self, query: str) -> str:
            """Search."""
            return query

        def get_reward(self):
            return float(self.goal["price"] > 1)

    reading(agent, lambda context: "<think>s</think><answer>Oslo</answer>")
    with served(agent, environment_factory=Shop) as client:
        assert Talk(client).say("capital?").choices[0].message.content == "Oslo"
