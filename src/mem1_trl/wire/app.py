"""The chat API as a Starlette application, around anything that answers chat requests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ..optional_packages import require
from ..request_threads import RequestThreads
from .answering import Answering
from .answers import AnswerWriter, ChatAnswer, error_body, model_list
from .errors import WireError, server_ends, unknown_model
from .metrics import Counts
from .requests import ChatRequest, read_chat_request
from .response_answers import ResponseWriter
from .response_requests import read_response_request

Value = TypeVar("Value")
SESSION_HEADER = "x-mem1-session"
_SCHEME = b"bearer "  # of any case


class ChatBackend(Protocol):
    """What answers requests, in several threads at once."""

    name: str

    def answer(
        self, request: ChatRequest, owner: str, session: str | None, tell: Callable[[str], object]
    ) -> ChatAnswer:
        """
        Answer a request, telling the text as it comes. `tell` raises [`ClientLeft`] when the answer is no longer wanted; it may be
        called with an empty text to find out. Requests to other servers in this thread end then, too, see [`Cancellation`].
        """

    def gauges(self) -> dict[str, float]:
        """Numbers for `/metrics`."""


@dataclass(frozen=True)
class WireLimits:
    """
    What a server takes.

    Attributes:
        keys (`Sequence[str]`):
            API keys; without any, everybody is served.
        max_body (`int`):
            Most bytes of a request.
        max_running (`int`):
            Most requests that are answered at once.
        max_waiting (`int`):
            Most requests that wait for their turn; others are told to come back.
        answer_timeout (`float`):
            Seconds for one whole answer, its time in the queue included.
    """

    keys: Sequence[str] = field(default=(), repr=False)
    max_body: int = 4 * 2**20
    max_running: int = 32
    max_waiting: int = 512
    answer_timeout: float = 600.0


class ChatApp:
    """
    Routes `/v1/chat/completions`, `/v1/responses`, `/v1/models`, `/health` and `/metrics`. `app` is the application.

    Args:
        backend ([`ChatBackend`]):
            Answers the requests.
        limits ([`WireLimits`], *optional*):
            What is taken.
        prefix (`str`, *optional*):
            What the routes of `/v1` begin with. A part `{owner}` of it is whose request it is.
    """

    def __init__(self, backend: ChatBackend, limits: WireLimits | None = None, prefix: str = ""):
        require("starlette", "serve", "A server")
        from starlette.applications import Starlette
        from starlette.routing import Route

        self.backend = backend
        self.limits = limits or WireLimits()
        self.counts = Counts()
        self.open = 0
        self._keys = [
            (_digest(sent), _digest(key.encode()).hex()) for key in self.limits.keys for sent in _as_sent(key)
        ]
        self.threads = RequestThreads(self.limits.max_running)
        self.app: Any = Starlette(
            routes=[
                Route(f"{prefix}/v1/chat/completions", self._chat, methods=["POST"]),
                Route(f"{prefix}/v1/responses", self._responses, methods=["POST"]),
                Route(f"{prefix}/v1/models", self._models),
                Route(f"{prefix}/v1/models/{{model:path}}", self._models),
                Route("/health", self._health),
                Route("/metrics", self._show_metrics),
            ],
            exception_handlers={404: self._no_route, 405: self._no_route},
        )

    def close(self) -> None:
        """Let the threads end."""
        self.threads.close()

    # Routes

    async def _health(self, request: Any) -> Any:
        return _json({"status": "ok", "model": self.backend.name})

    async def _models(self, request: Any) -> Any:
        try:
            self._owner(request)
        except WireError as error:
            return self._refusal(error)
        models, asked = model_list([self.backend.name]), request.path_params.get("model")
        if asked is None:
            return _json(models)
        if asked != self.backend.name:
            return self._refusal(unknown_model(asked, self.backend.name))
        return _json(models["data"][0])

    async def _no_route(self, request: Any, error: Any) -> Any:
        what, where = request.method, request.url.path
        wrong = f"{where} takes {error.headers['Allow']}" if error.status_code == 405 else "there is no such address"
        return self._refusal(WireError(error.status_code, f"{what} {where:.200} cannot be answered: {wrong}."))

    async def _show_metrics(self, request: Any) -> Any:
        from starlette.responses import PlainTextResponse

        try:
            self._owner(request)
        except WireError as error:
            return self._refusal(error)
        gauges = {"mem1_requests_open": float(self.open), **self.backend.gauges()}
        return PlainTextResponse(self.counts.text(gauges), media_type="text/plain; version=0.0.4")

    async def _chat(self, request: Any) -> Any:
        return await self._reply(request, read_chat_request, AnswerWriter)

    async def _responses(self, request: Any) -> Any:
        return await self._reply(request, read_response_request, ResponseWriter)

    async def _reply(
        self,
        request: Any,
        read: Callable[[bytes], ChatRequest],
        write: type[AnswerWriter] | type[ResponseWriter],
    ) -> Any:
        from starlette.requests import ClientDisconnect

        begun = time.monotonic()
        try:
            owner = self._owner(request)
            asked = read(await self._body(request))
            if self.open >= self.limits.max_running + self.limits.max_waiting:
                raise WireError(429, f"{self.open} requests are open: try again later.", "rate_limit_exceeded")
        except WireError as error:
            return self._refusal(error)
        except ClientDisconnect:  # within its request
            return _json({}, 499)
        answering = Answering(self, asked, owner, request.headers.get(SESSION_HEADER))
        answering.begin(begun)
        writer = write(self.backend.name, asked)
        try:
            if asked.stream:
                return await self._streamed(request, writer, answering)
            return await self._whole(request, writer, answering)
        except WireError as error:
            answering.leave()
            return self._refusal(error)
        except asyncio.CancelledError:  # the server has waited long enough
            answering.leave()
            return self._refusal(server_ends())
        except BaseException:
            answering.leave()
            raise

    async def _whole(self, request: Any, writer: AnswerWriter | ResponseWriter, answering: Answering) -> Any:
        answer = await _unless_gone(request, answering.end())
        if answer is None:
            return _nobody_reads(answering)
        return _json(writer.whole(answer))

    async def _streamed(self, request: Any, writer: AnswerWriter | ResponseWriter, answering: Answering) -> Any:
        from starlette.responses import StreamingResponse

        # An error before the first piece has a status of its own; from then on the response notices who leaves
        first = await _unless_gone(request, answering.next())
        if first is None:
            return _nobody_reads(answering)

        async def events() -> AsyncIterator[str]:
            try:
                yield writer.first()
                found = first
                while isinstance(found, str):
                    yield writer.piece(found)
                    found = await answering.next()
                yield writer.last(found)
            except WireError as error:  # before the first piece it would have been a refusal, which is counted there
                self.counts.add("mem1_requests_total", status=error.status)
                yield writer.failed(error)
            except asyncio.CancelledError:
                yield writer.failed(server_ends())
            finally:
                answering.leave()

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    # Parts

    def _owner(self, request: Any) -> str:
        """Whose request it is: a digest of the key."""
        if not self._keys:
            return str(request.path_params.get("owner", ""))
        # As bytes: Starlette reads headers as Latin-1, whatever the client meant
        given = next((value for name, value in request.headers.raw if name.lower() == b"authorization"), b"")
        if given[: len(_SCHEME)].lower() == _SCHEME:
            given = given[len(_SCHEME) :]
        digest = _digest(given.strip())
        # Every key is compared, in constant time
        owners = [owner for key, owner in self._keys if hmac.compare_digest(digest, key)]
        if not owners:
            raise WireError(401, "The header Authorization must hold 'Bearer' and a valid key.", "invalid_api_key")
        return owners[0]

    async def _body(self, request: Any) -> bytes:
        most = self.limits.max_body
        declared = request.headers.get("content-length", "0")
        body = bytearray()
        if not declared.isdigit() or int(declared) <= most:
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    break
            else:
                return bytes(body)
        raise WireError(413, f"A request may have at most {most} bytes.", "request_too_large")

    def _refusal(self, error: WireError) -> Any:
        self.counts.add("mem1_requests_total", status=error.status)
        headers = {"Retry-After": "1"} if error.status == 429 else {}
        return _json(error_body(error), error.status, headers)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _as_sent(key: str) -> list[bytes]:
    """The bytes as which clients send a key: in UTF-8, or in Latin-1, as those of Python's standard library do."""
    sent = [key.encode()]
    with contextlib.suppress(UnicodeEncodeError):
        sent.append(key.encode("latin-1"))
    return list(dict.fromkeys(sent))


async def _unless_gone(request: Any, wanted: Coroutine[Any, Any, Value]) -> Value | None:
    """What is waited for; `None` if the client is gone before that."""
    gone = asyncio.create_task(_disconnected(request))
    done = asyncio.create_task(wanted)
    try:
        await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        return done.result() if done.done() else None
    finally:
        gone.cancel()
        done.cancel()


def _nobody_reads(answering: Answering) -> Any:
    """Let an answer end whose client is gone."""
    answering.leave()
    return _json({}, 499)


async def _disconnected(request: Any) -> None:
    """Return when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    from starlette.responses import Response

    from ..json_text import write_json

    return Response(write_json(value), status, headers, media_type="application/json")
