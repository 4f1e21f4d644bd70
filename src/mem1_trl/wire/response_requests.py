"""Requests of OpenAI's Responses API, read as those of the chat API."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from .arguments import Arguments
from .errors import WireError
from .requests import ChatRequest, read_chat_object, read_object, tools_of

_SAME = ("model", "stream", "temperature", "top_p", "tool_choice", "parallel_tool_calls", "user")
"""Arguments that both APIs have."""

_KNOWN = Arguments(
    read=(
        *_SAME,
        *(
            "input",
            "instructions",
            "max_output_tokens",
            "previous_response_id",
            "store",
            "stream_options",
            "text",
            "tools",
        ),
        "truncation",  # contexts stay short by themselves
    ),
    neutral={
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": (),
        "conversation": (),
        "image": (),
        "include": ([],),
        "max_tool_calls": (),
        "moderation": (),
        "prompt": (),
        "reasoning": ({},),
        "top_logprobs": (0,),
    },
)

_UNREAD = ("reasoning",)
"""Kinds of items that are not shown to a model again."""


def read_response_request(body: bytes) -> ChatRequest:
    """
    The request that a body of `POST /v1/responses` holds.

    Its items become messages: `instructions` one of the system, `function_call` the calls of the message of the assistant before it,
    `function_call_output` a message of the tool.

    Raises:
        [`WireError`]: If it is not one, or asks for what is not offered.
    """
    found = read_object(body)
    _KNOWN.check(found)
    _check_text(found.get("text") or {})
    chat = {name: found[name] for name in _SAME if name in found}
    chat["messages"], places = _messages(found.get("input"))
    chat["tools"] = [
        {"type": one.get("type"), "function": one} if isinstance(one, dict) else one for one in tools_of(found)
    ]
    choice = found.get("tool_choice")
    if isinstance(choice, dict) and "function" not in choice:
        chat["tool_choice"] = {"type": choice.get("type"), "function": choice}
    chat["max_tokens"] = found.get("max_output_tokens")
    previous, instructions = found.get("previous_response_id"), found.get("instructions")
    for name, value in (("previous_response_id", previous), ("instructions", instructions)):
        if value is not None and not isinstance(value, str):
            raise WireError(400, f"{name!r} must be a text, got {value!r:.60}.", param=name)
    if instructions and previous is None:
        chat["messages"].insert(0, {"role": "system", "content": instructions})
        places.insert(0, "instructions")
    return read_chat_object(
        chat,
        places,
        "max_output_tokens",
        instructions=instructions,
        previous=previous,
        answer_id=None if found.get("store") is False else new_response_id(),
        messages_name="input",
    )


def _check_text(text: Any) -> None:
    """Refuse wishes about the form of the answer; those that say what is done anyway pass."""
    if not isinstance(text, dict):
        raise WireError(400, f"'text' must be an object, got {text!r:.60}.", param="text")
    as_it_is = {"format": (None, {"type": "text"}), "verbosity": (None, "medium")}
    for name, value in text.items():
        if value not in as_it_is.get(name, (None,)):
            sentence = f"'text.{name}' is not supported: leave it out."
            raise WireError(400, sentence, "unsupported_parameter", f"text.{name}")


def new_response_id() -> str:
    """A random id, so that no client can guess the id of another client's answer."""
    return f"resp_{secrets.token_hex(24)}"


def _messages(given: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages that items are, and where in the request each came from."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}], ["input"]
    if not isinstance(given, list) or not given:
        raise WireError(400, "'input' must be a text or a list of at least one item.", param="input")
    messages: list[dict[str, Any]] = []
    places: list[str] = []
    for number, item in enumerate(given):
        where = f"input[{number}]"
        if not isinstance(item, dict):
            raise WireError(400, f"{where} must be an object, got {item!r:.60}.", param=where)
        kind = item.get("type") or "message"
        if kind == "function_call":
            _add_call(messages, item)
        elif kind == "function_call_output":
            result = {"role": "tool", "tool_call_id": item.get("call_id"), "content": _parts(item.get("output"))}
            messages.append(result)
        elif kind == "message":
            messages.append({"role": item.get("role"), "content": _parts(item.get("content"))})
        elif kind not in _UNREAD:
            sentence = f"{where} is of type {kind!r:.40}, which is not supported."
            raise WireError(400, sentence, "unsupported_parameter", f"{where}.type")
        places += [where] * (len(messages) - len(places))
    return messages, places


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any]) -> None:
    """Add a call to the message of the assistant that it belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


def _parts(content: Any) -> Any:
    """Content with its parts of text named as the chat API names them."""
    if not isinstance(content, list):
        return content
    return [
        {**part, "type": "text"} if isinstance(part, dict) and part.get("type") == "output_text" else part
        for part in content
    ]
