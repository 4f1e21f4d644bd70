"""Requests whose answers are no longer wanted: nothing waits for them, not even the end of the program."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from support.ports import held_port

from mem1_trl.request_threads import RequestThreads
from mem1_trl.retrying import Cancellation, UnusableServer
from mem1_trl.rollout.open_requests import OpenRequests
from mem1_trl.rollout.server_calls import ServerCalls
from mem1_trl.rollout.server_client import ServerClient
from mem1_trl.rollout.server_errors import ServerError

PROGRAM = """
import sys, threading
from mem1_trl.rollout.open_requests import OpenRequests
from mem1_trl.rollout.server_calls import ServerCalls
from mem1_trl.rollout.server_client import ServerClient

mode, address = sys.argv[1:]
create = ServerClient(address).chat.completions.create
ask = lambda: list(create(messages=[], stream=mode == "streamed"))
calls = ServerCalls(4, 5)
if mode == "all":
    calls.all([ask, ask])
elif mode == "one":
    calls.one(ask)
else:
    requests = OpenRequests(calls, print, print)
    requests.send(0, ask)
    threading.Event().wait()
"""

BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n"
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {}\r\n\r\n"


@pytest.fixture
def listening():
    """A socket that accepts connections and never answers, and its address."""
    with held_port() as port, socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(120)
        yield server, f"http://127.0.0.1:{port}/v1"


@pytest.mark.parametrize(
    ("mode", "said"),
    [("all", b""), ("one", b""), ("open", b""), ("all", BUSY), ("one", BUSY), ("open", BUSY), ("streamed", BEGUN)],
    ids=lambda value: value if isinstance(value, str) else {b"": "hangs", BUSY: "busy", BEGUN: "begins"}[value],
)
def test_ctrl_c_ends_the_program_while_a_server_hangs(listening, mode, said):
    """It waited for the threads of all requests: up to ten minutes for an answer, a minute for the next attempt."""
    server, address = listening
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode, address], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            connection, _ = server.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(said)
                if said == BUSY:
                    connection.shutdown(socket.SHUT_WR)
                    while "Trying again in 60.0 s" not in process.stderr.readline():
                        pass
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=40)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in errors and process.returncode != 0


def until_closed(connection: socket.socket) -> bool:
    """Whether the other side closes a connection, or shuts it, within a minute."""
    connection.settimeout(60)
    try:
        while connection.recv(2**16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.parametrize(
    "said", [b"", BEGUN, BEGUN.replace(b"event-stream", b"plain")], ids=["hangs", "stream", "body"]
)
def test_open_connections_are_closed_with_a_run(listening, said):
    server, address = listening
    create = ServerClient(address).chat.completions.create
    told = []
    requests = OpenRequests(ServerCalls(4, 5), lambda *what: told.append(what), told.append)
    requests.send(0, lambda: list(create(messages=[], stream=said.startswith(BEGUN[:60]))))
    connection, _ = server.accept()
    with connection:
        connection.sendall(said)
        requests.close()
        assert until_closed(connection)
    server.settimeout(0.5)
    with pytest.raises(TimeoutError):  # it is not sent again
        server.accept()
    assert told == []


def test_a_refusal_closes_the_connections_of_other_requests(listening):
    server, address = listening
    create, came = ServerClient(address).chat.completions.create, threading.Event()

    def refuse():
        assert came.wait(60)
        raise ServerError("no such key", 401)

    calls, errors = ServerCalls(4, 5), []

    def ask():
        with pytest.raises(UnusableServer) as caught:
            calls.all([partial(create, messages=[]), refuse])
        errors.append(str(caught.value))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    connection, _ = server.accept()
    with connection:
        came.set()
        asking.join(60)
        assert "no such key" in errors[0] and until_closed(connection)


def test_a_request_that_waits_for_others_is_not_sent_when_it_is_no_longer_wanted():
    calls, cancellation, sent = ServerCalls(1, 5), Cancellation(), []
    running, go = threading.Event(), threading.Event()

    def hold():
        running.set()
        return go.wait(60)

    threads = RequestThreads(2)
    first = threads.submit(lambda: calls.one(hold))
    assert running.wait(60)
    second = threads.submit(lambda: calls.one(lambda: sent.append(1), cancellation))
    cancellation.cancel()
    go.set()
    assert first.result(60) is True
    assert "no longer wanted" in str(second.result(60)) and sent == []
    threads.close()


def test_threads_are_few_and_used_again():
    used, threads = set(), RequestThreads(3)

    def note(number):
        used.add(threading.current_thread())
        assert threading.current_thread().daemon
        time.sleep(0.01)
        return number

    futures = [threads.submit(partial(note, number)) for number in range(20)]
    assert [future.result(60) for future in futures] == list(range(20)) and len(used) <= 3
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(60)
    go, begun = threading.Event(), threading.Event()
    held = [threads.submit(lambda: (begun.set(), go.wait(60))) for _ in range(3)]
    left = threads.submit(lambda: 1)
    assert begun.wait(60)
    threads.close()
    go.set()
    assert left.cancelled() and all(one.cancelled() or one.result(60) for one in held)
    wait_for_end(used)


def test_threads_end_with_the_object_that_holds_them():
    """Those of an application that was not closed stayed."""
    used, go, threads = set(), threading.Event(), RequestThreads(3)

    def run():
        used.add(threading.current_thread())
        return go.wait(60)

    futures = [threads.submit(run) for _ in range(4)]
    del threads
    go.set()
    assert all(future.result(60) for future in futures) and len(used) == 3
    wait_for_end(used)


def wait_for_end(threads):
    deadline = time.monotonic() + 60
    while any(thread.is_alive() for thread in threads):
        assert time.monotonic() < deadline
        time.sleep(0.01)
