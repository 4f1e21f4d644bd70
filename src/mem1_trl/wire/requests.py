"""Requests of OpenAI's chat API, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..json_text import read_json
from .arguments import Arguments
from .errors import WireError

ROLES = ("system", "developer", "user", "assistant", "tool")

_KNOWN = Arguments(
    read=(
        *(
            "messages",
            "model",
            "stream",
            "stream_options",
            "temperature",
            "top_p",
            "max_tokens",
            "max_completion_tokens",
            "seed",
        ),
        *("user", "stop", "tools", "tool_choice", "parallel_tool_calls"),
    ),
    neutral={
        "n": (1,),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
        "response_format": ({"type": "text"},),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "audio": (),
        "modalities": (["text"],),
        "moderation": (),
        "reasoning_effort": (),
        "verbosity": ("medium",),
        "web_search_options": (),
    },
)

_PARTS = {"text": "text", "input_text": "text", "refusal": "refusal"}
"""Kinds of parts that a content may have, and where each holds its text."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """
    A request of `POST /v1/chat/completions`.

    Attributes:
        messages (`tuple[dict, ...]`):
            With `role`, `content` (a text), and `name`, `reasoning_content`, `tool_calls` or `tool_call_id` where there are any.
        tools (`tuple[dict, ...]`):
            Schemas of the tools that the client runs, whether or not one may be called now.
        model (`str` or `None`):
            Name of the model.
        stream (`bool`):
            Whether the answer comes in pieces.
        include_usage (`bool`):
            Whether the last piece says how many tokens were read and written.
        options (`dict`):
            Sampling options that were given: `temperature`, `top_p`, `max_tokens`, `seed`.
        user (`str` or `None`):
            Who asks, as the client names them.
        stop (`tuple[str, ...]`):
            Texts at which an answer ends, which do not belong to it.
        may_call (`bool`):
            Whether the answer may be a call of a tool.
        must_call (`bool`):
            Whether the answer must be a call of a tool.
        call_of (`str` or `None`):
            The tool that must be called; `None` if any will do.
        parallel_calls (`bool`):
            Whether an answer may have several calls.
        instructions (`str` or `None`):
            Of the Responses API: the message of the system, as it was given.
        previous (`str` or `None`):
            Of the Responses API: id of the answer that the messages follow.
        answer_id (`str` or `None`):
            Of the Responses API: id of the answer; `None` if it need not be found again.
        messages_name (`str`):
            What the API calls the argument with the messages.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    options: Mapping[str, Any] = ()  # type: ignore[assignment]
    user: str | None = None
    stop: tuple[str, ...] = ()
    may_call: bool = True
    must_call: bool = False
    call_of: str | None = None
    parallel_calls: bool = True
    instructions: str | None = None
    previous: str | None = None
    answer_id: str | None = None
    messages_name: str = "messages"

    @property
    def usable_tools(self) -> tuple[dict[str, Any], ...]:
        """Those of `tools` that the answer may call."""
        return self.tools if self.may_call else ()


def read_chat_request(body: bytes) -> ChatRequest:
    """
    The request that a body holds.

    Raises:
        [`WireError`]: If it is not one, or asks for what is not offered.
    """
    return read_chat_object(read_object(body))


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds."""
    try:
        found = read_json(body)
    except ValueError as error:
        raise WireError(400, f"The body must be JSON: {error}.") from None
    if not isinstance(found, dict):
        raise WireError(400, f"The body must be a JSON object, got {type(found).__name__}.")
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        lone = error.object[error.start]
        raise WireError(
            400, f"The texts of a request must be Unicode, got the lone surrogate {lone!r} in one."
        ) from None
    return found


def read_chat_object(
    found: Mapping[str, Any], places: Sequence[str] | None = None, limit: str = "max_tokens", **more: Any
) -> ChatRequest:
    """
    The request that a JSON object is.

    Args:
        found (`Mapping`):
            The object.
        places (`Sequence[str]`, *optional*):
            Where in the request each message came from. `None` takes `messages[0]`, `messages[1]`, ...
        limit (`str`, *optional*, defaults to `"max_tokens"`):
            What the API calls `max_tokens`.
        more (*optional*):
            Further fields of [`ChatRequest`].
    """
    _KNOWN.check(found)
    messages = found.get("messages")
    if not isinstance(messages, list) or not messages:
        name = more.get("messages_name", "messages")
        raise WireError(400, f"{name!r} must be a list of at least one message.", param=name)
    places = [f"messages[{number}]" for number in range(len(messages))] if places is None else places
    read_tools = tuple(_read_tool(tool, number) for number, tool in enumerate(tools_of(found)))
    choice, call_of = _tool_choice(found.get("tool_choice"), [tool["function"]["name"] for tool in read_tools])
    stream_options = found.get("stream_options")
    return ChatRequest(
        messages=tuple(map(_read_message, messages, places)),
        tools=read_tools,
        model=_text(found, "model"),
        stream=_flag(found, "stream"),
        include_usage=isinstance(stream_options, dict) and bool(stream_options.get("include_usage")),
        options=_options(found, limit),
        user=_text(found, "user"),
        stop=_stop(found.get("stop")),
        may_call=choice != "none",
        must_call=choice == "required",
        call_of=call_of,
        parallel_calls=found.get("parallel_tool_calls") is None or _flag(found, "parallel_tool_calls"),
        **more,
    )


def canonical(messages: Sequence[Mapping[str, Any]]) -> str:
    """
    Messages in the one form that they are compared in: clients send an answer back with white space, `null` and JSON written in their
    own way, and with or without names and thoughts.
    """
    told = []
    for message in messages:
        calls = [
            [call.get("id"), call["function"]["name"], _same_json(call["function"]["arguments"])]
            for call in message.get("tool_calls") or ()
        ]
        role = "system" if message["role"] == "developer" else message["role"]
        told.append([role, (message.get("content") or "").strip(), calls, message.get("tool_call_id")])
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


def _same_json(text: str) -> Any:
    try:
        return json.dumps(read_json(text), sort_keys=True)
    except ValueError:
        return text


def tools_of(found: Mapping[str, Any]) -> list[Any]:
    """The tools of a request, not yet read."""
    tools = found.get("tools") or []
    if not isinstance(tools, list):
        raise WireError(400, f"'tools' must be a list, got {tools!r:.60}.", param="tools")
    return tools


def _read_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise WireError(
            400, f"{where} must be an object with a 'role' that is one of {', '.join(ROLES)}.", param=where
        )
    read: dict[str, Any] = {"role": message["role"], "content": _content(message.get("content"), where)}
    if name := _text(message, "name", where):
        read["name"] = name
    if message["role"] == "assistant":
        _read_said(message, where, read)
    calls = message.get("tool_calls") or []
    if calls:
        if not isinstance(calls, list):
            raise WireError(400, f"'tool_calls' of {where} must be a list.", param=f"{where}.tool_calls")
        read["tool_calls"] = [_read_call(call, where) for call in calls]
    if message["role"] == "tool":
        if not isinstance(message.get("tool_call_id"), str):
            raise WireError(400, f"{where} must name its call in 'tool_call_id'.", param=f"{where}.tool_call_id")
        read["tool_call_id"] = message["tool_call_id"]
    return read


def _read_said(message: Mapping[str, Any], where: str, read: dict[str, Any]) -> None:
    """What a message of the assistant may say outside its content: a thought, a refusal, or what cannot be read."""
    if message.get("function_call") is not None:
        sentence = f"'function_call' of {where} is not supported: write the call in 'tool_calls', and its result as a message of the role 'tool'."
        raise WireError(400, sentence, "unsupported_parameter", f"{where}.function_call")
    if message.get("audio") is not None:
        raise _not_text(where, "audio")
    read["content"] = read["content"] or _text(message, "refusal", where) or ""
    for name in ("reasoning_content", "reasoning"):  # as DeepSeek names a thought, and as vLLM does
        thought = _text(message, name, where) or ""
        if thought.strip():
            read.setdefault("reasoning_content", thought)


def _content(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part.get(_PARTS.get(str(part.get("type")), "")) for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)
        raise _not_text(where, "content")
    raise WireError(400, f"'content' of {where} must be a text or a list of text parts.", param=f"{where}.content")


def _not_text(where: str, field: str) -> WireError:
    """The error of a message that holds something else than text."""
    sentence = f"{where} may hold text only: images and other media are not supported."
    return WireError(400, sentence, param=f"{where}.{field}")


def _read_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        sentence = f"Each of 'tool_calls' of {where} must have a 'function' with a 'name'."
        raise WireError(400, sentence, param=f"{where}.tool_calls")
    arguments = function.get("arguments") or "{}"
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _read_tool(tool: Any, number: int) -> dict[str, Any]:
    where = f"tools[{number}]"
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        sentence = "Each of 'tools' must be of type 'function' and have a 'function' with a 'name'."
        raise WireError(400, sentence, param=where)
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict) or not isinstance(parameters.get("properties", {}), dict):
        sentence = f"'parameters' of the tool {function['name']!r} must be the JSON schema of an object."
        raise WireError(400, sentence, param=where)
    described = {"name": function["name"], "description": str(function.get("description") or function["name"])}
    return {"type": "function", "function": {**described, "parameters": parameters}}


def _tool_choice(value: Any, names: Sequence[str]) -> tuple[str, str | None]:
    """`"auto"`, `"none"` or `"required"`, and the tool that must be called, if one is named."""
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if value is not None and value not in ("auto", "none", "required") and not isinstance(name, str):
        raise WireError(
            400,
            f"'tool_choice' must be 'auto', 'none' or 'required', or name a function, got {value!r:.60}.",
            "unsupported_parameter",
            "tool_choice",
        )
    if (name is not None and name not in names) or (value == "required" and not names):
        asked = "a tool" if name is None else f"the tool {name!r:.60}"
        sentence = f"'tool_choice' asks for {asked}, which must be among 'tools', got {names!r:.200}."
        raise WireError(400, sentence, param="tool_choice")
    return (value or "auto", None) if name is None else ("required", name)


def _options(found: Mapping[str, Any], limit: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    newer = found.get("max_completion_tokens") is not None
    most = found.get("max_completion_tokens" if newer else "max_tokens")
    said = "max_completion_tokens" if newer else limit
    for name, asked, value, kinds, fits in (
        ("temperature", "temperature", found.get("temperature"), (int, float), lambda value: 0 <= value <= 2),
        ("top_p", "top_p", found.get("top_p"), (int, float), lambda value: 0 < value <= 1),
        ("max_tokens", said, most, (int,), lambda value: value >= 1),
        ("seed", "seed", found.get("seed"), (int,), lambda value: -(2**63) <= value < 2**63),
    ):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kinds) or not fits(value):
            raise WireError(400, f"{asked!r} has a value that it cannot have, {value!r:.40}.", param=asked)
        options[name] = value
    return options


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(one, str) and one for one in texts):
        sentence = f"'stop' must be a text or a list of at most 4 texts, none of them empty, got {value!r:.60}."
        raise WireError(400, sentence, param="stop")
    return tuple(texts)


def _text(found: Mapping[str, Any], name: str, where: str | None = None) -> str | None:
    """A text or nothing, of the request or of the part of it that `where` names."""
    value = found.get(name)
    if value is not None and not isinstance(value, str):
        of, param = ("", name) if where is None else (f" of {where}", f"{where}.{name}")
        raise WireError(400, f"{name!r}{of} must be a text, got {value!r:.60}.", param=param)
    return value


def _flag(found: Mapping[str, Any], name: str) -> bool:
    value = found.get(name) or False
    if not isinstance(value, bool):
        raise WireError(400, f"{name!r} must be true or false, got {value!r:.60}.", param=name)
    return value
