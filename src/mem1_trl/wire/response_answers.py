"""Answers of OpenAI's Responses API, written: whole, and as the events of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

from ..json_text import write_json
from .answers import ChatAnswer
from .errors import WireError
from .requests import ChatRequest
from .response_requests import new_response_id


class ResponseWriter:
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
        self._number = 0
        self._message_id = f"msg_{secrets.token_hex(12)}"
        self._text = ""
        options = request.options or {}
        choice: Any = "required" if request.must_call else "auto" if request.usable_tools else "none"
        if request.call_of is not None:
            choice = {"type": "function", "name": request.call_of}
        self._head: dict[str, Any] = {
            "id": request.answer_id or new_response_id(),
            "object": "response",
            "created_at": time.time(),
            "model": model,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": options.get("max_tokens"),
            "metadata": {},
            "parallel_tool_calls": request.parallel_calls,
            "previous_response_id": request.previous,
            "store": request.answer_id is not None,
            "temperature": options.get("temperature"),
            "text": {"format": {"type": "text"}},
            "tool_choice": choice,
            "tools": [{"type": "function", "strict": False, **tool["function"]} for tool in request.tools],
            "top_p": options.get("top_p"),
            "truncation": "disabled",
            "user": request.user,
        }

    def whole(self, answer: ChatAnswer) -> dict[str, Any]:
        """A `response`."""
        cut = {"incomplete_details": {"reason": "max_output_tokens"}} if answer.finish_reason == "length" else {}
        return {
            **self._head,
            "status": "incomplete" if cut else "completed",
            **cut,
            "output": self._items(answer),
            "usage": {
                "input_tokens": answer.read_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": answer.written_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.read_tokens + answer.written_tokens,
            },
            **answer.more,
        }

    def first(self) -> str:
        """The events that open a stream."""
        begun = {**self._head, "status": "in_progress", "output": [], "usage": None}
        return self._event("created", response=begun) + self._event("in_progress", response=begun)

    def piece(self, text: str) -> str:
        """The events of a piece of the text."""
        begin = "" if self._text else self._begin_message()
        self._text += text
        return begin + self._event("output_text.delta", **self._place(), delta=text, logprobs=[])

    def last(self, answer: ChatAnswer) -> str:
        """The events that end a stream."""
        events = ""
        if answer.content and not self._text:
            events += self.piece(answer.content)
        items = self._items(answer)
        if self._text:
            part = items[0]["content"][0]
            events += self._event("output_text.done", **self._place(), text=answer.content, logprobs=[])
            events += self._event("content_part.done", **self._place(), part=part)
            events += self._event("output_item.done", output_index=0, item=items[0])
        for index, item in enumerate(items):
            if item["type"] == "function_call":
                events += "".join(self._call(index, item))
        whole = self.whole(answer)
        return events + self._event(whole["status"], response={**whole, "output": items})

    def failed(self, error: WireError) -> str:
        """The event of an error after the stream was opened."""
        return self._send("error", {"code": error.code, "message": str(error), "param": error.param})

    def _begin_message(self) -> str:
        item = {"id": self._message_id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        added = self._event("output_item.added", output_index=0, item=item)
        return added + self._event("content_part.added", **self._place(), part=part)

    def _call(self, index: int, item: dict[str, Any]) -> Iterator[str]:
        begun = {**item, "arguments": "", "status": "in_progress"}
        place = {"item_id": item["id"], "output_index": index}
        yield self._event("output_item.added", output_index=index, item=begun)
        yield self._event("function_call_arguments.delta", **place, delta=item["arguments"])
        yield self._event("function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])
        yield self._event("output_item.done", output_index=index, item=item)

    def _items(self, answer: ChatAnswer) -> list[dict[str, Any]]:
        status = "incomplete" if answer.finish_reason == "length" else "completed"
        items: list[dict[str, Any]] = []
        if answer.content or not answer.tool_calls:
            part = {"type": "output_text", "text": answer.content, "annotations": [], "logprobs": []}
            message = {"id": self._message_id, "type": "message", "role": "assistant"}
            items.append({**message, "status": status, "content": [part]})
        for call in answer.tool_calls:
            item = {"id": f"fc_{call['id'].removeprefix('call_')}", "type": "function_call", "call_id": call["id"]}
            items.append({**item, **call["function"], "status": "completed"})
        return items

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> str:
        return self._send(f"response.{kind}", fields)

    def _send(self, kind: str, fields: dict[str, Any]) -> str:
        value = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {write_json(value)}\n\n"
