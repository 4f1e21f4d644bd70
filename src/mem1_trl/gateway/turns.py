"""A request of the chat API as a turn: the token ids that are read, and the message that the sampled ones are."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..json_text import read_json, write_json
from ..protocol.call_openings import find_call
from ..protocol.encoding import decode, encode_text
from ..protocol.protocol import Mem1Protocol
from ..protocol.turn_text import THOUGHT_TAG
from ..trajectory import Turn
from ..wire.answers import ChatAnswer
from ..wire.errors import WireError
from ..wire.requests import ChatRequest
from ..wire.stop_texts import text_before

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..rollout.settings import AgentSettings
    from ..rollout.stopping import Completion

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""What chat templates call the thought of a message; each has a name of its own."""


class ChatTurns:
    """
    Reads requests and writes answers for one tokenizer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy, with a chat template.
        settings ([`AgentSettings`]):
            Its budgets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: AgentSettings):
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                "A program speaks in chat messages, so the tokenizer must have a chat template: set `chat_template`."
            )
        self.tokenizer = tokenizer
        self.settings = settings

    @cached_property
    def _tool_syntax(self) -> Any:
        try:
            return Mem1Protocol.tool_calls().syntax(self.tokenizer, self.settings.chat_template_kwargs)
        except ValueError as error:
            raise WireError(400, f"This model cannot call tools: {error}", param="tools") from None

    def context(self, request: ChatRequest, earlier: Sequence[Turn]) -> list[int]:
        """
        Token ids that the model reads for a request.

        Where the text of the chat goes on from all that an earlier turn read and wrote, the ids are that turn's own and those of the
        rest: what was sampled is not encoded again. Otherwise they are those of the whole text. Either way they are what is read.

        Args:
            request ([`ChatRequest`]):
                The request.
            earlier (`Sequence[Turn]`):
                Turns of the episode so far.

        Raises:
            [`WireError`]: If the template cannot write the chat, or it is too long.
        """
        if request.previous is not None:
            raise WireError(
                400,
                "'previous_response_id' is not supported here: send the whole chat as 'input'.",
                "unsupported_parameter",
                "previous_response_id",
            )
        text = self._render(request)
        ids: list[int] | None = None
        for turn in sorted(earlier, key=lambda one: -len(one.prompt_ids) - len(one.completion_ids)):
            whole = [*turn.prompt_ids, *turn.completion_ids]
            before = decode(self.tokenizer, whole)
            if text.startswith(before):
                ids = [*whole, *encode_text(self.tokenizer, text[len(before) :])]
                break
        if ids is None:
            ids = encode_text(self.tokenizer, text)
        limit = self.settings.max_context_length
        if limit is not None and len(ids) > limit:
            sentence = f"The chat must have at most {limit} tokens, got {len(ids)}."
            raise WireError(400, sentence, "context_length_exceeded", request.messages_name)
        return ids

    def _render(self, request: ChatRequest) -> str:
        name = request.messages_name
        try:
            messages = _for_template(request.messages, name, self._knows_developer(request))
            text = self._write(request, messages)
            self._check_instructions(request, messages, text)
            return text
        except WireError:
            raise
        except Exception as error:
            raise WireError(400, f"The chat template cannot write these messages: {error}.", param=name) from None

    def _write(self, request: ChatRequest, messages: Sequence[Mapping[str, Any]]) -> str:
        """The chat as the template writes it, up to where the model goes on."""
        if request.usable_tools:
            return str(self._tool_syntax._render(messages, True, list(request.usable_tools)))
        conversation: Any = messages
        text = self.tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False, **self.settings.chat_template_kwargs
        )
        return str(text)

    def _knows_developer(self, request: ChatRequest) -> bool:
        """Whether the template names the role `developer`. Where it does not, it may write nothing for it, or a role that the model never read."""
        template = self.tokenizer.get_chat_template(tools=list(request.usable_tools) or None)
        return any(f"{quote}developer{quote}" in template for quote in "'\"")

    def _check_instructions(self, request: ChatRequest, messages: Sequence[Mapping[str, Any]], text: str) -> None:
        """Refuse instructions that the template leaves out, as some templates do with those that are not at the beginning."""
        for number, message in enumerate(messages):
            if message["role"] not in ("system", "developer") or message["content"].strip() in text:
                continue
            other = {**message, "content": f"{message['content']} m1"}
            if self._write(request, [*messages[:number], other, *messages[number + 1 :]]) == text:
                role = request.messages[number]["role"]
                sentence = f"The chat template leaves out this message of the role {role!r}, so its text must stand in another one, got {message['content']!r:.60}."
                raise WireError(400, sentence, param=request.messages_name)

    def cut(
        self, request: ChatRequest, completion: Completion
    ) -> tuple[tuple[int, ...], tuple[float, ...] | None, bool]:
        """Sampled ids as far as the program wants them, their log-probs, and whether they ended by themselves."""
        most = request.options.get("max_tokens", len(completion.ids)) if request.options else len(completion.ids)
        logprobs = None if completion.logprobs is None else completion.logprobs[:most]
        return completion.ids[:most], logprobs, completion.ended and len(completion.ids) <= most

    def answer(self, request: ChatRequest, context: Sequence[int], ids: Sequence[int], ended: bool) -> ChatAnswer:
        """What the program is told of the sampled ids: the text up to its first stop string, or the calls and the text before them."""
        text = text_before(decode(self.tokenizer, ids, skip_special_tokens=True), request.stop)
        calls: list[dict[str, Any]] = []
        if request.usable_tools and ended:
            whole = decode(self.tokenizer, ids)
            parsed = self._tool_syntax._parse(ids, whole, list(request.usable_tools))
            for call in parsed.calls if request.parallel_calls else parsed.calls[:1]:
                function = {"name": call.name, "arguments": write_json(call.arguments)}
                calls.append({"id": f"call_{secrets.token_hex(8)}", "type": "function", "function": function})
            if calls:
                text = self._text_before_calls(whole, parsed)
        reason = "tool_calls" if calls else "stop" if ended else "length"
        return ChatAnswer(text, tuple(calls), reason, len(context), len(ids))

    def _text_before_calls(self, whole: str, parsed: Any) -> str:
        """
        What a turn says before its calls, its thought included, so that a template can write all of it again. Where tokens of the
        template stand in it, only the content that was read from it.
        """
        message = parsed.message or {}
        thought = parsed.state_span[1] if parsed.state_span else 0
        before = whole[: find_call(self.tokenizer, whole, thought)].rstrip()
        if any(token in before for token in self.tokenizer.all_special_tokens):
            return message.get("content") or ""
        return before


def _for_template(messages: Sequence[Mapping[str, Any]], name: str, knows_developer: bool) -> list[dict[str, Any]]:
    """
    Messages as templates want them: arguments of calls are dictionaries, results have the names of their calls, thoughts have the name
    that the template knows, and a developer is the system where the template knows none. `name` is what the request calls them.
    """
    names = {
        call["id"]: call["function"]["name"]
        for message in messages
        for call in message.get("tool_calls") or ()
        if call["id"]
    }
    written = []
    for message in messages:
        one = _with_thought(_with_arguments(message, name))
        if one.get("tool_call_id") in names:
            one["name"] = names[one["tool_call_id"]]
        if one["role"] == "developer" and not knows_developer:
            one["role"] = "system"
        written.append(one)
    return written


def _with_thought(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its thought under each name that templates know. A thought that stands in the content, too, is not written twice."""
    thought = message.pop("reasoning_content", None)
    content = message["content"]
    if thought is None or (f"</{THOUGHT_TAG}>" in content and thought.strip() in content):
        return message
    return {**message, **dict.fromkeys(_THOUGHTS, thought)}


def _with_arguments(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return dict(message)
    calls = []
    for call in message["tool_calls"]:
        try:
            arguments = read_json(call["function"]["arguments"])
        except ValueError as error:
            raise WireError(400, f"The arguments of a call must be JSON: {error}.", param=name) from None
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls}
