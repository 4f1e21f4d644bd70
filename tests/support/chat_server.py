"""A model server on this machine: real HTTP, answers by a function, and the failures and bad answers it is told to have."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer(ThreadingHTTPServer):
    """
    Speaks `POST /v1/chat/completions`, and `POST /v1/completions` with `complete`.

    Args:
        reply (callable): Text for a list of messages, or a whole message.
        include_stop (`bool`): Whether the stop string is left in the text, as `transformers serve` does, or out, as OpenAI.
        complete (callable, *optional*): Text that goes on after a text.
        tokenizer (*optional*): Of the served model: decodes prompts of token ids, and counts the tokens that were read.
        takes_ids (`bool`): Whether prompts may be token ids.
        knows (collection of `str`): Arguments besides OpenAI's; others are refused, as `transformers serve` does.
    """

    daemon_threads = True

    def __init__(
        self,
        reply: Callable[[list[dict[str, Any]]], Any],
        include_stop: bool = False,
        complete: Callable[[str], str] | None = None,
        tokenizer: Any = None,
        takes_ids: bool = False,
        knows: tuple[str, ...] = (),
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.include_stop = include_stop
        self.continuation = complete
        self.tokenizer = tokenizer
        self.takes_ids = takes_ids
        self.knows = knows
        self.requests: list[dict[str, Any]] = []
        """Requests of routes that are offered, without those of one token, which ask what is offered."""
        self.failures: list[Any] = []
        """What the next answers are: a status, 0 for a closed connection, or the body of a "200 OK": JSON, or bytes."""
        self.fails: Callable[[dict[str, Any]], Any] = lambda request: None
        """The same by the request; `None` for a good answer."""
        self.headers: dict[str, str] = {}
        self.breaks_after: int | None = None
        """Pieces of a streamed answer after which the connection is closed; `None` for all."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that is closed on purpose needs no traceback."""

    def refusal(self, path: str, request: dict[str, Any]) -> int | None:
        """Status of a request that this server does not know."""
        if path == "/v1/chat/completions":
            return None
        if path != "/v1/completions" or self.continuation is None:
            return 404
        known = {"model", "prompt", "max_tokens", "temperature", "stop", "top_p", "stream", *self.knows}
        return 422 if set(request) - known or (isinstance(request["prompt"], list) and not self.takes_ids) else None

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        if "prompt" in request:
            return self.complete_text(request)
        text = self.reply(request["messages"])
        if isinstance(text, dict):  # a whole message, with tool calls
            choice = {"index": 0, "message": text, "finish_reason": "tool_calls", "logprobs": None}
            return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        text, reason = self.cut(text, request)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}

    def complete_text(self, request: dict[str, Any]) -> dict[str, Any]:
        prompt, answer = request["prompt"], {"id": "1", "object": "text_completion", "created": 0, "model": "m"}
        if self.tokenizer is not None:
            ids = prompt if isinstance(prompt, list) else self.tokenizer(prompt)["input_ids"]
            answer["usage"] = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
            prompt = self.tokenizer.decode(ids)
        assert self.continuation is not None
        text, reason = self.cut(self.continuation(prompt), request)
        choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        return {**answer, "choices": [choice]}

    def cut(self, text: str, request: dict[str, Any]) -> tuple[str, str]:
        """The text up to its first stop string or its limit, and why it ended."""
        ends = [(text.index(stop), stop) for stop in request.get("stop") or [] if stop in text]
        if ends:
            place, stop = min(ends)
            text = text[: place + (len(stop) if self.include_stop else 0)]
        limit = request.get("max_tokens")
        return (text[:limit], "length") if limit is not None and len(text) > limit else (text, "stop")


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refused = self.server.refusal(self.path, body)
        if refused is not None:
            self.answer(refused, {"error": {"message": f"no route {self.path}, or an argument that is not known"}})
            return
        failure = self.server.failures.pop(0) if self.server.failures else self.server.fails(body)
        if failure == 0 and isinstance(failure, int):
            self.connection.close()
            return
        if body.get("max_tokens") != 1:
            self.server.requests.append(body)
        if failure is None and body.get("stream"):
            self.stream(self.server.complete(body))
        elif failure is None:
            self.answer(200, self.server.complete(body))
        elif isinstance(failure, int):
            self.answer(failure, {"error": {"message": "told to fail"}})
        else:
            self.answer(200, failure)

    def stream(self, answer: dict[str, Any]) -> None:
        """The answer as server-sent events of three characters."""
        choice, chunks = answer["choices"][0], []
        text = choice["text"] if "text" in choice else choice["message"].get("content") or ""
        for piece in [text[at : at + 3] for at in range(0, len(text), 3)]:
            chunks.append({"text": piece} if "text" in choice else {"delta": {"content": piece}})
        for index, call in enumerate(choice.get("message", {}).get("tool_calls") or []):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            chunks.append({"delta": {"tool_calls": [{"index": index, "function": {"name": name, "arguments": ""}}]}})
            for at in range(0, len(arguments), 3):
                part = {"index": index, "function": {"arguments": arguments[at : at + 3]}}
                chunks.append({"delta": {"tool_calls": [part]}})
        chunks.append({"delta": {}, "text": "", "finish_reason": choice["finish_reason"]})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for number, chunk in enumerate(chunks):
            if number == self.server.breaks_after:
                return self.connection.close()
            event = {**answer, "object": "chat.completion.chunk", "choices": [{"index": 0, **chunk}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def answer(self, status: int, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serve(
    reply: Callable[[list[dict[str, Any]]], Any], make: Callable[..., ChatServer] = ChatServer, **kwargs: Any
) -> Iterator[ChatServer]:
    """A running [`ChatServer`], or what `make` makes of the same arguments."""
    server = make(reply, **kwargs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
