"""A client of chat endpoints: requests at once, repeated where that helps."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..json_text import read_json
from ..printable import one_line
from ..retrying import BUSY_STATUSES, TRANSIENT_ERRORS, asked_to_wait, backoff, with_retries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


logger = logging.getLogger(__name__)

_MAX_STOPS = 4
"""OpenAI refuses more stop sequences; what is not stopped at is cut off here."""


@dataclass(slots=True)
class ChatEndpoint:
    """
    A model that is reached through `client.chat.completions.create(...)`.

    Connection errors, time-outs and the statuses of a busy server are tried again after 1, 2, 4, ... seconds (or what the
    server asks for), everything else is an error at once.

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
    """

    client: Any
    model: str | None = None
    max_completion_length: int = 1000
    temperature: float = 0.0
    max_workers: int = 8
    max_retries: int = 5
    request_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.client, str):
            from huggingface_hub import InferenceClient

            self.client = InferenceClient(base_url=self.client, timeout=600)
        create = getattr(getattr(getattr(self.client, "chat", None), "completions", None), "create", None)
        if not callable(create):
            raise TypeError(
                f"`client` is a {type(self.client).__name__} without `chat.completions.create`: pass an openai.OpenAI or "
                "huggingface_hub.InferenceClient, or the address of a server such as 'http://localhost:8000/v1'."
            )

    def ask(
        self,
        conversations: Sequence[list[dict[str, Any]]],
        stops: Sequence[list[str]],
        tools: Sequence[list[dict[str, Any]]] | None = None,
    ) -> list[tuple[dict[str, Any], bool]]:
        """
        One answer for each conversation, asked for simultaneously.

        Args:
            conversations (`Sequence[list[dict]]`):
                Messages with `role` and `content`.
            stops (`Sequence[list[str]]`):
                Stop strings of each.
            tools (`Sequence[list[dict]]`, *optional*):
                JSON schemas of the tools of each.

        Returns:
            `list[tuple[dict, bool]]`: The message, with `content`, `reasoning_content` if the server tells, and `tool_calls` whose
            arguments are dictionaries; and whether it ended by itself or at a stop string rather than at its length limit.
            Servers leave the stop string out or in; it is put back by [`~mem1_trl.protocol.tag_syntax.close_action`].
        """
        if not conversations:
            return []
        with ThreadPoolExecutor(max_workers=min(self.max_workers, len(conversations))) as pool:
            choices = pool.map(self._ask_one, conversations, stops, tools or [[]] * len(conversations))
            return [(_message(choice.message), choice.finish_reason != "length") for choice in choices]

    def _ask_one(self, messages: list[dict[str, Any]], stops: list[str], tools: list[dict[str, Any]]) -> Any:
        request = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_completion_length,
            "temperature": self.temperature,
            "stop": stops[-_MAX_STOPS:] or None,  # the answer's is the last
            "tools": tools or None,
            **self.request_kwargs,
        }
        request = {key: value for key, value in request.items() if value is not None}
        attempts = 0

        def ask() -> Any:
            nonlocal attempts
            attempts += 1
            return self.client.chat.completions.create(**request).choices[0]

        try:
            return with_retries(ask, self.max_retries, _seconds_to_wait, _warn)
        except Exception as error:
            if _seconds_to_wait(error, attempts) is None:
                raise RuntimeError(
                    f"The endpoint refused a request ({_one_line(error)}): correct the name of the model, the key, or "
                    "`request_kwargs`."
                ) from error
            raise ConnectionError(
                f"The endpoint gave no answer in {attempts} attempts ({_one_line(error)}): check its address and that the "
                "server runs, then start again."
            ) from error


def _one_line(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")


def _warn(error: Exception, seconds: float) -> None:
    logger.warning("%s. Trying again in %.1f s.", _one_line(error), seconds)


def _message(answer: Any) -> dict[str, Any]:
    """What an endpoint answered, as a message for a chat template."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or ""}
    thought = getattr(answer, "reasoning_content", None) or getattr(answer, "reasoning", None)
    if isinstance(thought, str):
        message["reasoning_content"] = thought
    calls = []
    for call in getattr(answer, "tool_calls", None) or []:
        arguments = call.function.arguments or "{}"
        if isinstance(arguments, str):
            try:
                arguments = read_json(arguments)
            except ValueError:
                arguments = {"arguments": arguments}  # an argument that no tool has: the agent will read so
        if not isinstance(arguments, dict):
            arguments = {"arguments": arguments}
        calls.append({"type": "function", "function": {"name": call.function.name, "arguments": arguments}})
    return {**message, "tool_calls": calls} if calls else message


def _seconds_to_wait(error: Exception, attempt: int) -> float | None:
    """How long to wait before a request is tried again; `None` if that would not help."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if "OfflineModeIsEnabled" in names:  # HF_HUB_OFFLINE keeps huggingface_hub's client from every server
            return None
        if not isinstance(error, OSError) and not names & TRANSIENT_ERRORS:
            return None
    elif status not in BUSY_STATUSES:
        return None
    asked = asked_to_wait(getattr(response, "headers", None))
    return backoff(attempt, first=1.0) if asked is None else asked
