"""The one server of this process to which all programs speak, each under an address of its own."""

from __future__ import annotations

import atexit
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Any

from ..wire.answers import ChatAnswer
from ..wire.app import ChatApp, WireLimits
from ..wire.errors import WireError
from ..wire.requests import ChatRequest
from ..wire.server import WireServer

_LOOK = 0.1  # seconds between two looks at whether a program still waits


@dataclass(eq=False, slots=True)
class Asked:
    """A request of a program whose answer is still to come."""

    request: ChatRequest
    answer: Future[ChatAnswer] = field(default_factory=Future)
    given_up: bool = False


class GatewayHub:
    """Takes the requests of all programs of this process."""

    name = "policy"
    _shared: GatewayHub | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._takers: dict[str, Callable[[Asked], None]] = {}
        limits = WireLimits(max_running=512, max_waiting=4096, max_body=64 * 2**20, answer_timeout=3600.0)
        self._server = WireServer(ChatApp(self, limits, prefix="/episodes/{owner}"), patience=0.0)
        self._server.__enter__()
        atexit.register(self._server.__exit__)

    @classmethod
    def shared(cls) -> GatewayHub:
        """The hub of this process, which is started when it is needed first."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def open(self, take: Callable[[Asked], None]) -> tuple[str, str]:
        """A token that nobody can guess, and the address under which requests go to `take`."""
        token = secrets.token_hex(16)
        self._takers[token] = take
        return token, f"{self._server.url}/episodes/{token}/v1"

    def close(self, token: str) -> None:
        """Refuse whatever still comes under an address."""
        self._takers.pop(token, None)

    def answer(
        self, request: ChatRequest, owner: str, session: str | None, tell: Callable[[str], object]
    ) -> ChatAnswer:
        """As [`ChatBackend`] says: hand a request to the thread that plays, and wait."""
        take = self._takers.get(owner)
        if take is None:
            raise WireError(410, "The episode of this address has ended.", "episode_ended")
        asked = Asked(request)
        take(asked)
        try:
            while True:
                tell("")
                try:
                    found = asked.answer.result(_LOOK)
                except NotYet:
                    if owner not in self._takers:
                        raise WireError(410, "The episode of this address has ended.", "episode_ended") from None
                    continue
                tell(found.content)
                return found
        except BaseException:
            asked.given_up = True
            raise

    def gauges(self) -> dict[str, float]:
        return {"mem1_episodes_open": float(len(self._takers))}


def refuse(asked: Asked, error: Exception) -> None:
    """Answer a request with an error."""
    if not asked.answer.done():
        asked.answer.set_exception(error)


def as_wire(error: Any) -> WireError:
    """An error of reading a request as one that its sender understands."""
    return error if isinstance(error, WireError) else WireError(400, str(error))
