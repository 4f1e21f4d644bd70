"""A client of chat endpoints: conversations in, messages out, whatever shape a server gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..json_text import read_json
from ..protocol.untrusted import clean_values
from .server_calls import ServerCalls
from .server_client import ServerClient
from .server_errors import ServerError, first_choice, has_ended, part
from .streamed_answers import send_streamed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .turn_listener import TurnListener


MAX_STOPS = 4
"""OpenAI refuses more stop sequences; what is not stopped at is cut off here."""


class Reply(NamedTuple):
    """
    An answer of a chat endpoint.

    Attributes:
        message (`dict`):
            With `content`, `reasoning_content` if the server tells, and `tool_calls` whose arguments are dictionaries. Its texts hold
            no lone surrogate and no NUL byte.
        ended (`bool`):
            Whether it ended by itself or at a stop string rather than at its length limit. Servers leave the stop string out or in;
            it is put back by [`~mem1_trl.protocol.turn_text.close_action`].
    """

    message: dict[str, Any]
    ended: bool


@dataclass(slots=True)
class ChatEndpoint:
    """
    A model that is reached through `client.chat.completions.create(...)`.

    Connection errors, time-outs, answers that cannot be read and the statuses of a busy server are tried again after 1, 2, 4, ...
    seconds (or what the server asks for). [`ServerCalls`] says what a failure costs.

    Attributes:
        client (`Any`):
            An `openai.OpenAI` client, a [`~huggingface_hub.InferenceClient`], or the address of a server, such as
            `"http://localhost:8000/v1"`.
        model (`str` or `None`):
            Name of the model there.
        max_completion_length (`int`):
            Most tokens of one answer, in the server's tokens.
        temperature (`float`):
            Sampling temperature.
        max_workers (`int`):
            Most requests at once.
        max_retries (`int`):
            How often a request is tried again.
        request_kwargs (`Mapping`):
            Further arguments of each request; they win over those above, and one that is `None` is not sent. For a model
            that knows no `max_tokens`: `{"max_tokens": None, "max_completion_tokens": 1000}`.
        calls ([`ServerCalls`], *optional*):
            Makes the requests. `None` makes one.
    """

    client: Any
    model: str | None = None
    max_completion_length: int = 1000
    temperature: float = 0.0
    max_workers: int = 8
    max_retries: int = 5
    request_kwargs: Mapping[str, Any] = field(default_factory=dict)
    calls: ServerCalls[Any] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if isinstance(self.client, str):
            self.client = ServerClient(self.client)
        create = getattr(getattr(getattr(self.client, "chat", None), "completions", None), "create", None)
        if not callable(create):
            raise TypeError(
                f"`client` is a {type(self.client).__name__} without `chat.completions.create`: pass an openai.OpenAI or "
                "huggingface_hub.InferenceClient, or the address of a server such as 'http://localhost:8000/v1'."
            )
        if self.calls is None:
            self.calls = ServerCalls(self.max_workers, self.max_retries)

    def ask(
        self,
        conversations: Sequence[list[dict[str, Any]]],
        stops: Sequence[list[str]],
        tools: Sequence[list[dict[str, Any]]] | None = None,
    ) -> list[Reply | str]:
        """
        One answer for each conversation, asked for simultaneously; in place of one that failed, why.

        Args:
            conversations (`Sequence[list[dict]]`):
                Messages with `role` and `content`.
            stops (`Sequence[list[str]]`):
                Stop strings of each.
            tools (`Sequence[list[dict]]`, *optional*):
                JSON schemas of the tools of each.

        Raises:
            `UnusableServer`, `ConnectionError`: As [`ServerCalls.all`].
        """
        asked = zip(conversations, stops, tools or [[]] * len(conversations), strict=True)
        return self.calls.all([partial(self.ask_one, *one) for one in asked])

    def ask_one(
        self,
        messages: list[dict[str, Any]],
        stops: list[str],
        tools: list[dict[str, Any]],
        acts: bool = True,
        listener: TurnListener | None = None,
    ) -> Reply:
        """
        The answer to one conversation, asked for once; see [`~ChatEndpoint.ask`]. One that is not to act may be a thought alone. A listener
        is told its text as it comes.
        """
        reply = self._send(messages, stops, tools, listener)
        if acts and stops and reply.ended and _is_only_thought(reply.message):
            # A stop string inside a thought ended it before it came to an action
            reply = self._send(messages, [], tools, listener)
        return reply

    def _send(
        self,
        messages: list[dict[str, Any]],
        stops: Sequence[str],
        tools: list[dict[str, Any]],
        listener: TurnListener | None,
    ) -> Reply:
        request = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_completion_length,
            "temperature": self.temperature,
            "stop": list(stops[-MAX_STOPS:]) or None,  # the answer's is the last
            "tools": tools or None,
            **self.request_kwargs,
        }
        given = {name: value for name, value in request.items() if value is not None}
        answer = send_streamed(self.client.chat.completions.create, given, listener)
        choice = first_choice(answer)
        message = part(choice, "message")
        if message is None:
            raise ServerError("its answer has a choice without a message")
        return Reply(read_message(message), has_ended(choice))


def read_message(answer: Any) -> dict[str, Any]:
    """What an endpoint answered, as a message for a chat template."""
    content, thought = _texts(part(answer, "content"))
    for name in ("reasoning_content", "reasoning"):
        given = part(answer, name)
        if isinstance(given, str) and given.strip():
            thought = given
            break
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if thought.strip():
        message["reasoning_content"] = thought
    calls = [call for call in map(_read_call, part(answer, "tool_calls") or []) if call is not None]
    return clean_values({**message, "tool_calls": calls} if calls else message)


def _texts(content: Any) -> tuple[str, str]:
    """The text and the thoughts of a message's content, which is a text, nothing, or a list of typed parts."""
    if isinstance(content, str):
        return content, ""
    texts: dict[str, list[str]] = {"text": [], "thinking": []}
    for block in content if isinstance(content, (list, tuple)) else []:
        kind = "text" if isinstance(block, str) else part(block, "type")
        if kind in texts:
            inner = block if isinstance(block, str) else part(block, kind)
            texts[kind].append(inner if isinstance(inner, str) else _texts(inner)[0])
    return "".join(texts["text"]), "".join(texts["thinking"])


def _read_call(call: Any) -> dict[str, Any] | None:
    """A tool call with its arguments as a dictionary; `None` if it names no tool."""
    function = part(call, "function")
    name, arguments = part(function, "name"), part(function, "arguments")
    if not isinstance(name, str):
        return None
    if isinstance(arguments, str) or arguments is None:
        try:
            arguments = clean_values(read_json(arguments or "{}"))
        except ValueError:
            arguments = {"arguments": arguments}  # an argument that no tool has: the agent will read so
    if not isinstance(arguments, dict):
        arguments = {"arguments": arguments}
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _is_only_thought(message: Mapping[str, Any]) -> bool:
    """Whether a message has a thought and nothing else."""
    return bool(message.get("reasoning_content")) and not message["content"].strip() and not message.get("tool_calls")
