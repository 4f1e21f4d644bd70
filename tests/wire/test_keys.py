"""Keys of clients, as they may be written."""

from __future__ import annotations

import contextlib
import http.client
import json

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from mem1_trl.wire.answers import ChatAnswer
from mem1_trl.wire.app import ChatApp, WireLimits
from mem1_trl.wire.server import WireServer

KEYS = ("abc", "schlüssel", "鍵à")  # the last one ends in a byte that is a space in Latin-1


class Owners:
    """Notes whose requests come."""

    name = "mem1"

    def __init__(self):
        self.seen: list[str] = []

    def answer(self, request, owner, session, tell):
        self.seen.append(owner)
        return ChatAnswer("yes")

    def gauges(self):
        return {}


def status(server, authorization: bytes) -> int:
    """The status of an answer to a request with this header."""
    address = server.url.removeprefix("http://")
    body = json.dumps({"messages": [{"role": "user", "content": "a"}]})
    with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": authorization})
        return connection.getresponse().status


@pytest.mark.parametrize("key", KEYS)
def test_a_scheme_has_no_case_and_a_key_may_have_any_letters(key):
    backend, sent = Owners(), key.encode()
    with WireServer(ChatApp(backend, WireLimits(keys=KEYS))) as server:
        schemes = [b"Bearer ", b"bearer ", b"BEARER ", b"bearer   ", b""]
        assert [status(server, scheme + sent) for scheme in schemes] == [200] * 5
        wrong = [b"Bearer " + sent + b"x", b"Bearer", b"Basic " + sent, b"Bearer Bearer " + sent, b"Bearer \xff"]
        assert [status(server, header) for header in wrong] == [401] * 5
    assert len(set(backend.seen)) == 1, "one key is one owner"


def test_a_key_in_the_encoding_of_older_clients_is_the_same_owner():
    """Python's own clients send Latin-1, curl sends what the terminal has."""
    backend = Owners()
    with WireServer(ChatApp(backend, WireLimits(keys=KEYS))) as server:
        for encoding in ("latin-1", "utf-8"):
            assert status(server, b"Bearer " + "schlüssel".encode(encoding)) == 200
        assert status(server, b"Bearer abc") == 200
    assert len(backend.seen) == 3 and len(set(backend.seen)) == 2
