"""One request of a [`ChatApp`] that is answered in a thread, while the event loop goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from ..retrying import Cancellation
from .answers import ChatAnswer
from .errors import WireError
from .requests import ChatRequest

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .app import ChatApp

logger = logging.getLogger(__name__)


class ClientLeft(Exception):
    """Raised in the thread that answers when the client is gone."""


class Answering:
    """
    One request; its pieces are read in the event loop.

    Args:
        app ([`ChatApp`]):
            Has the threads and the backend.
        request ([`ChatRequest`]):
            What is asked.
        owner (`str`):
            Whose request it is.
        session (`str` or `None`):
            Session that it names.
    """

    def __init__(self, app: ChatApp, request: ChatRequest, owner: str, session: str | None):
        self.app = app
        self.request = request
        self.owner = owner
        self.session = session
        self._left = Cancellation()
        self._job: Future[ChatAnswer] | None = None
        self.late = False
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._limit: asyncio.TimerHandle | None = None

    def begin(self, begun: float) -> None:
        """Let a thread answer; `begun` is when the request came, on the monotonic clock."""
        self.app.open += 1
        self._limit = self._loop.call_later(self.app.limits.answer_timeout, self._give_up)
        self._job = self.app.threads.submit(self._answer)
        future = asyncio.wrap_future(self._job, loop=self._loop)
        future.add_done_callback(lambda done: self._ended(done, begun))

    async def next(self) -> str | ChatAnswer:
        """The next piece, or the answer."""
        found = await self._events.get()
        if isinstance(found, BaseException):
            raise found
        return found

    async def end(self) -> ChatAnswer:
        """The answer."""
        while isinstance(found := await self.next(), str):
            pass
        return found

    def leave(self) -> None:
        """The answer is no longer wanted: requests to other servers for it end, and one that waits for a thread is not begun."""
        self._left.cancel()
        if self._job is not None:
            self._job.cancel()

    def _give_up(self) -> None:
        """End an answer whose time is over, after the pieces that were told in time."""
        self.late = True
        self.leave()
        sentence = f"There was no whole answer within {self.app.limits.answer_timeout:g} seconds."
        self._events.put_nowait(WireError(504, sentence, "timeout"))

    def _tell(self, text: str) -> None:
        if self._left.cancelled:
            raise ClientLeft("The client is gone.")
        if text:
            self._loop.call_soon_threadsafe(self._events.put_nowait, text)

    def _answer(self) -> ChatAnswer:
        with self._left.applied():
            self._tell("")  # it may have waited long for a thread
            return self.app.backend.answer(self.request, self.owner, self.session, self._tell)

    def _ended(self, done: Any, begun: float) -> None:
        self.app.open -= 1
        if self._limit is not None:
            self._limit.cancel()
        counts = self.app.counts
        counts.add("mem1_request_seconds_sum", time.monotonic() - begun)
        error: Any = None
        if not done.cancelled():
            error = done.exception()
        elif self._left.cancelled:
            error = ClientLeft("The client is gone.")
        else:
            error = asyncio.CancelledError()
        if error is None:
            answer = done.result()
            counts.add("mem1_requests_total", status=200)
            counts.add("mem1_read_tokens_total", answer.read_tokens)
            counts.add("mem1_written_tokens_total", answer.written_tokens)
            self._events.put_nowait(answer)
            return
        if isinstance(error, ClientLeft):
            if not self.late:  # the client was still there, and has read that
                counts.add("mem1_requests_left_total")
        elif not isinstance(error, WireError):
            logger.error("A request failed.", exc_info=error)
            error = WireError(500, f"The request failed: {type(error).__name__}: {error}.")
        self._events.put_nowait(error)
