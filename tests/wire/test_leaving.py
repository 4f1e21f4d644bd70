"""The two ends that an answer has before its own: its client leaves, or its time is over."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.request

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from mem1_trl.wire.answering import ClientLeft
from mem1_trl.wire.answers import ChatAnswer
from mem1_trl.wire.app import ChatApp, WireLimits
from mem1_trl.wire.server import WireServer

PATIENCE = 20.0  # seconds for what comes at once


class Trickle:
    """
    Tells a piece every hundredth of a second, and never comes to an end by itself.

    Args:
        piece (`str`): The piece; an empty one asks only whether the answer is still wanted.
    """

    name = "mem1"

    def __init__(self, piece):
        self.piece = piece
        self.begun, self.stopped = threading.Event(), threading.Event()

    def answer(self, request, owner, session, tell):
        until = time.monotonic() + PATIENCE
        self.begun.set()
        try:
            while time.monotonic() < until:
                tell(self.piece)
                time.sleep(0.01)
        except ClientLeft:
            self.stopped.set()
            raise
        return ChatAnswer("too late")

    def gauges(self):
        return {}


@contextlib.contextmanager
def asked(backend, path, stream, **limits):
    """A connection on which a request is under way."""
    chat = {"messages": [{"role": "user", "content": "a"}], "stream": stream}
    body = chat if path.endswith("completions") else {"input": "a", "stream": stream}
    with WireServer(ChatApp(backend, WireLimits(**limits))) as server:
        address = server.url.removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            yield connection


PATHS = ["/v1/chat/completions", "/v1/responses"]


@pytest.mark.parametrize("path", PATHS)
def test_who_leaves_within_a_request_is_no_error_of_the_server(path, capsys):
    with WireServer(ChatApp(Trickle(""))) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{{".encode())
    assert capsys.readouterr().err == ""  # where uvicorn writes a traceback


def test_an_address_of_ip_version_6_is_one_that_clients_can_use():
    try:
        server = WireServer(ChatApp(Trickle("")), "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        assert server.url.startswith("http://[::1]:")
        with urllib.request.urlopen(f"{server.url}/health", timeout=PATIENCE) as answer:
            assert json.loads(answer.read()) == {"status": "ok", "model": "mem1"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("stream", "piece"), [(False, ""), (False, "x"), (True, ""), (True, "x")])
def test_who_leaves_ends_the_answer_before_its_first_piece_and_after(path, stream, piece):
    backend = Trickle(piece)
    with asked(backend, path, stream) as connection:
        assert backend.begun.wait(PATIENCE)
        if stream and piece:
            assert connection.getresponse().read(1)
        connection.close()
        assert backend.stopped.wait(PATIENCE / 2), "nobody reads it, and it goes on"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("stream", "piece"), [(False, ""), (False, "x"), (True, "")])
def test_the_time_of_an_answer_is_that_of_all_its_pieces(path, stream, piece):
    backend = Trickle(piece)
    with asked(backend, path, stream, answer_timeout=0.5) as connection:
        response = connection.getresponse()
        error = json.loads(response.read())["error"]
        assert (response.status, error["code"]) == (504, "timeout")
        assert error["message"] == "There was no whole answer within 0.5 seconds."
        assert backend.stopped.wait(PATIENCE / 2)
        connection.request("GET", "/metrics")
        told = connection.getresponse().read().decode()
    assert 'mem1_requests_total{status="504"} 1' in told and "mem1_requests_left_total 1" not in told


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_whose_time_is_over_ends_with_an_error(path):
    backend = Trickle("x")
    with asked(backend, path, True, answer_timeout=1) as connection:
        response = connection.getresponse()
        told = response.read().decode()
        assert response.status == 200 and '"x"' in told
        assert "There was no whole answer within 1 seconds." in told.strip().rpartition("data: {")[2]
        assert backend.stopped.wait(PATIENCE / 2)


class Slow:
    """Answers when it is let go, whether or not anyone waits."""

    name = "mem1"

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def answer(self, request, owner, session, tell):
        self.begun.set()
        assert self.go.wait(60)
        return ChatAnswer("done")

    def gauges(self):
        return {}


def test_who_leaves_the_queue_frees_a_place_while_others_are_still_answered():
    backend, body = Slow(), json.dumps({"messages": [{"role": "user", "content": "a"}]})
    chat = ChatApp(backend, WireLimits(max_running=1, max_waiting=1))
    with WireServer(chat) as server, contextlib.ExitStack() as stack:

        def ask():
            connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
            stack.enter_context(contextlib.closing(connection))
            connection.request("POST", PATHS[0], body, {"Content-Type": "application/json"})
            return connection

        running = ask()
        assert backend.begun.wait(60)
        leaving = ask()
        wait_for(lambda: chat.open == 2)
        leaving.close()
        wait_for(lambda: chat.open == 1)
        waiting = ask()
        wait_for(lambda: chat.open == 2)
        backend.go.set()
        assert [one.getresponse().status for one in (running, waiting)] == [200, 200]
        assert "mem1_requests_left_total 1\n" in chat.counts.text({})


def wait_for(come):
    until = time.monotonic() + 60
    while not come():
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.01)
