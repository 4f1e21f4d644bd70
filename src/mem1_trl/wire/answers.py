"""Answers of OpenAI's chat API, written: whole, in pieces, and errors."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..json_text import write_json
from .errors import WireError
from .requests import ChatRequest


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """
    What a request is answered.

    Attributes:
        content (`str`):
            Text of the answer.
        tool_calls (`tuple[dict, ...]`):
            Calls that the client shall make, with `id`, `type` and `function`.
        finish_reason (`str`):
            `"stop"`, `"tool_calls"` or `"length"`.
        read_tokens, written_tokens (`int`):
            Tokens that the model read and sampled for it.
        more (`dict`):
            What is said besides, under names of its own.
    """

    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str = "stop"
    read_tokens: int = 0
    written_tokens: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as the message that the client keeps."""
        calls = {"tool_calls": list(self.tool_calls)} if self.tool_calls else {}
        return {"role": "assistant", "content": self.content if self.content or not calls else None, **calls}

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.read_tokens,
            "completion_tokens": self.written_tokens,
            "total_tokens": self.read_tokens + self.written_tokens,
        }


class AnswerWriter:
    """
    Writes one answer.

    Args:
        model (`str`):
            Name of the model.
        request ([`ChatRequest`]):
            What is answered.
    """

    def __init__(self, model: str, request: ChatRequest):
        self._request = request
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, answer: ChatAnswer) -> dict[str, Any]:
        """A `chat.completion`."""
        choice = {"index": 0, "message": {**answer.message, "refusal": None}, "logprobs": None}
        choices = [{**choice, "finish_reason": answer.finish_reason}]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": answer.usage, **answer.more}

    def first(self) -> str:
        """The event that opens a stream."""
        return self._event({"role": "assistant", "content": ""})

    def piece(self, text: str) -> str:
        """An event with a piece of the text."""
        return self._event({"content": text})

    def last(self, answer: ChatAnswer) -> str:
        """The events that end a stream."""
        events = ""
        if answer.tool_calls:
            events += self._event({"tool_calls": [{"index": i, **call} for i, call in enumerate(answer.tool_calls)]})
        events += self._event({}, answer.finish_reason, answer.more)
        if self._request.include_usage:
            chunk = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": answer.usage}
            events += event(chunk)
        return events + "data: [DONE]\n\n"

    def failed(self, error: WireError) -> str:
        """The event of an error after the stream was opened."""
        return event(error_body(error))

    def _event(self, delta: dict[str, Any], reason: str | None = None, more: Mapping[str, Any] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice], **(more or {})})


def event(value: Any) -> str:
    """A server-sent event."""
    return f"data: {write_json(value)}\n\n"


def error_body(error: WireError) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def model_list(names: Sequence[str]) -> dict[str, Any]:
    """The answer to `GET /v1/models`."""
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "mem1-trl"} for name in names]
    return {"object": "list", "data": models}
