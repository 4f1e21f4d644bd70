"""A chat endpoint on this machine: real HTTP, answers by a function of the messages, and the failures it is told to have."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer(ThreadingHTTPServer):
    """
    Speaks `POST /v1/chat/completions`.

    Args:
        reply (callable): Text for a list of messages, or a whole message.
        include_stop (`bool`): Whether the stop string is left in the text, as `transformers serve` does, or out, as OpenAI.
    """

    daemon_threads = True

    def __init__(self, reply: Callable[[list[dict[str, Any]]], Any], include_stop: bool = False):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.include_stop = include_stop
        self.requests: list[dict[str, Any]] = []
        self.failures: list[int] = []
        """Statuses of the next answers; 0 closes the connection without one."""
        self.headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that is closed on purpose needs no traceback."""

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        text, reason = self.reply(request["messages"]), "stop"
        if isinstance(text, dict):  # a whole message, with tool calls
            choice = {"index": 0, "message": text, "finish_reason": "tool_calls", "logprobs": None}
            return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        for stop in request.get("stop") or []:
            if stop in text:
                text = text[: text.index(stop) + (len(stop) if self.include_stop else 0)]
        limit = request.get("max_tokens")
        if limit is not None and len(text) > limit:
            text, reason = text[:limit], "length"
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        failure = self.server.failures.pop(0) if self.server.failures else None
        if failure == 0:
            self.connection.close()
            return
        self.server.requests.append(body)
        answer: dict[str, Any]
        if self.path != "/v1/chat/completions":
            failure, answer = 404, {"error": {"message": f"no route {self.path}"}}
        elif failure is not None:
            answer = {"error": {"message": "told to fail"}}
        else:
            answer = self.server.complete(body)
        data = json.dumps(answer).encode()
        self.send_response(failure or 200)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serve(reply: Callable[[list[dict[str, Any]]], Any], **kwargs: Any) -> Iterator[ChatServer]:
    """A running [`ChatServer`]."""
    server = ChatServer(reply, **kwargs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
