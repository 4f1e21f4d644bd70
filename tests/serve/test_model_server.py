"""`mem1 serve` in front of a model on another server, which hangs, is busy, or breaks off."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
import urllib.request

import pytest
from support.chat_server import serve
from support.serving import PLAIN, SETTINGS, served

from mem1_trl import Mem1Agent

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

WireLimits = pytest.importorskip("mem1_trl.wire.app").WireLimits

TURN = "<think>secret</think><answer>The capital is Paris</answer>"
ASKED = {"model": "mem1", "messages": [{"role": "user", "content": "capital of France?"}]}
PATIENCE = 60


class Moody:
    """
    A model server that has its moods.

    Args:
        server ([`ChatServer`]): The server.

    Attributes:
        hangs (`threading.Event`): Whether requests hang from now on.
        before (`bool`): Whether they hang before the status of their answers, and not after its first piece.
        begun (`threading.Event`): Set when one hangs.
        ended (`threading.Event`): Set when none hangs any more.
    """

    def __init__(self, server, monkeypatch):
        self.server = server
        self.before = False
        self.hangs, self.begun, self.ended = threading.Event(), threading.Event(), threading.Event()
        whole = server.RequestHandlerClass.stream

        def stream(handler, answer):
            if self.hangs.is_set():
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                handler.wfile.write(b'data: {"choices": [{"text": "<think>"}]}\n\n')
                self.hang()
            whole(handler, answer)

        monkeypatch.setattr(server.RequestHandlerClass, "stream", stream)

    def hang(self):
        self.begun.set()
        self.ended.wait(600)


@pytest.fixture
def moody(monkeypatch, tokenizer):
    """A model server that answers well until it is told otherwise."""

    def write(text):
        if found.hangs.is_set() and found.before:
            found.hang()
        return TURN

    with serve(lambda messages: TURN, complete=write, tokenizer=tokenizer) as server:
        found = Moody(server, monkeypatch)
        yield found
        found.ended.set()


def agent_of(moody, tokenizer, client=None):
    client = moody.server.url if client is None else client
    return Mem1Agent("m", tokenizer, PLAIN, client=client, backend="completions", batch_size=1, **SETTINGS)


@contextlib.contextmanager
def asking(client):
    """A connection on which a request is under way."""
    address = f"{client.base_url.host}:{client.base_url.port}"
    with contextlib.closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
        body, about = json.dumps(ASKED), {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, about)
        yield connection


def answered_again(client):
    """The next answer, which may come late or find no place for a while."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return client.chat.completions.create(**ASKED).choices[0].message.content
        except openai.APIStatusError as error:
            assert error.status_code in (429, 504)
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


MOODS = ["asked what it offers", "before an answer", "within an answer", "busy"]


@pytest.mark.parametrize("library", ["ours", "openai"])
@pytest.mark.parametrize("mood", MOODS)
@pytest.mark.parametrize("ends", ["left", "late"])
def test_who_does_not_wait_any_more_frees_the_place_though_the_model_hangs(
    moody, tokenizer, library, mood, ends, caplog
):
    """Such a request kept its place until the time-outs of the model server and all its attempts were over."""
    other = openai.OpenAI(base_url=moody.server.url, api_key="none", max_retries=0)
    agent = agent_of(moody, tokenizer, other if library == "openai" else None)
    limits = WireLimits(max_running=1, max_waiting=0, **({"answer_timeout": 3.0} if ends == "late" else {}))
    with other, served(agent, limits) as client:
        if mood != MOODS[0]:
            assert answered_again(client) == "The capital is Paris"
        moody.before = mood in MOODS[:2]
        if mood == "busy":
            moody.server.requests.clear()
            moody.server.failures, moody.server.headers = [503] * 99, {"Retry-After": "60"}
        else:
            moody.hangs.set()
        with asking(client) as connection:
            if ends == "late":
                answer = connection.getresponse()
                assert (answer.status, json.loads(answer.read())["error"]["code"]) == (504, "timeout")
            until = time.monotonic() + PATIENCE
            while not (moody.begun.is_set() or (mood == "busy" and moody.server.requests)):
                assert time.monotonic() < until
                time.sleep(0.01)
            moody.hangs.clear()
        moody.server.failures, moody.server.headers = [], {}
        assert answered_again(client) == "The capital is Paris"
    assert not [record for record in caplog.records if record.levelname == "ERROR"], "it is not a fault of the server"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_breaks_off_is_neither_told_twice_nor_with_its_state(moody, tokenizer, monkeypatch, stream):
    with served(agent_of(moody, tokenizer)) as client:
        assert client.chat.completions.create(**ASKED).choices[0].message.content == "The capital is Paris"
        moody.server.requests.clear()

        def fail(handler, answer):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            events = [{"choices": [{"text": TURN[:42]}]}, {"error": {"message": "engine restarted", "code": 500}}]
            handler.wfile.write("".join(f"data: {json.dumps(one)}\n\n" for one in events).encode())
            handler.close_connection = True

        monkeypatch.setattr(moody.server.RequestHandlerClass, "stream", fail)
        told = ""
        with pytest.raises(openai.APIError, match="broke off its answer after a part of it was told") as error:
            answer = client.chat.completions.create(**ASKED, stream=stream)
            for chunk in answer:
                told += chunk.choices[0].delta.content or "" if chunk.choices else ""
        assert stream or error.value.status_code == 502
        assert "The capital is Paris".startswith(told) and bool(told) is stream and len(moody.server.requests) == 1


def test_who_leaves_frees_the_place_though_another_request_asks_what_is_offered_and_hangs(moody, tokenizer):
    """Only one request asks a model server what it offers, and others wait for that."""

    def open_requests():
        with urllib.request.urlopen(f"http://{client.base_url.host}:{client.base_url.port}/metrics") as answer:
            return next(line for line in answer.read().decode().splitlines() if line.startswith("mem1_requests_open "))

    def wait_for(count):
        until = time.monotonic() + PATIENCE
        while open_requests() != f"mem1_requests_open {count}":
            assert time.monotonic() < until
            time.sleep(0.02)

    moody.before = True
    moody.hangs.set()
    with served(agent_of(moody, tokenizer), WireLimits(max_running=2)) as client, asking(client):
        assert moody.begun.wait(PATIENCE)
        with asking(client):
            wait_for(2)
        wait_for(1)
        moody.hangs.clear()
        moody.ended.set()
