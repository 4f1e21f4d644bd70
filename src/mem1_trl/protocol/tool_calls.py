"""Native tool calls: what a model's chat template writes around tasks, calls and results, and how a turn is read back."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .parsed_turn import ParsedTurn, ToolCall

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from .protocol import Mem1Protocol

_REASONING = ("reasoning_content", "thinking")
"""Fields in which response templates keep what a model thought."""

_PROBE = 'm1"q\\b'
"""Holds what JSON escapes, to see whether a template writes results as they are."""

_MARKUP = re.compile(r"<[^<>\s]{1,48}>")
_ADDED_MARKUP = re.compile(r"^(<.+>|\[.+\])$")


class ToolCallFormat:
    """
    The tool calls of one model, through its chat template and TRL's own functions.

    As in [`~trl.GRPOTrainer`], a template that renders the past differently when it grows is replaced by TRL's training
    variant, and a tokenizer without `response_template` gets the one that TRL knows for its chat template.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            With a chat template that knows tools. Its `response_template` is set if it has none.
        protocol ([`Mem1Protocol`]):
            Gives the tag of the state.
        chat_template_kwargs (`Mapping`, *optional*):
            Further arguments of the chat template.

    Raises:
        `ValueError`: If the template cannot write tool calls, or nothing is known about how to read them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        protocol: Mem1Protocol,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        from trl.chat_template_utils import (
            add_response_schema,
            get_training_chat_template,
            is_chat_template_prefix_preserving,
            supports_tool_calling,
        )

        self.tokenizer = tokenizer
        self.protocol = protocol
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        instead = (
            "use a model whose template does, or `Mem1Protocol()`, which writes actions as tags and suits every model."
        )
        if tokenizer.chat_template is None:
            raise ValueError(f"Tool calls are written by a chat template and this tokenizer has none: {instead}")
        if not supports_tool_calling(tokenizer):
            raise ValueError(f"The chat template of this model does not write tool calls and their results: {instead}")
        if getattr(tokenizer, "response_template", None) is None:
            try:
                add_response_schema(tokenizer)
            except ValueError as error:
                raise ValueError(
                    "It is not known how to read the tool calls of this chat template: set `tokenizer.response_template` "
                    "(transformers, chat response parsing), or use `Mem1Protocol()`, which writes actions as tags."
                ) from error
        self.chat_template: str | None = None
        if not is_chat_template_prefix_preserving(tokenizer):
            try:
                self.chat_template = get_training_chat_template(tokenizer)
            except ValueError as error:
                raise ValueError(
                    "This chat template writes earlier messages differently once later ones follow, and TRL has no variant "
                    "of it for training: change the template, or use `Mem1Protocol()`, which writes actions as tags."
                ) from error
        self._frames: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.frame(("probe",))  # refuses a template whose results cannot be told from their frame

    # Writing

    def _render(self, messages: Sequence[Mapping[str, Any]], prompt: bool, tools: Any = None) -> str:
        conversation: Any = list(messages)
        text = self.tokenizer.apply_chat_template(
            conversation,
            tools=tools or None,  # some templates write a preamble for an empty list
            chat_template=self.chat_template,
            add_generation_prompt=prompt,
            tokenize=False,
            **self.chat_template_kwargs,
        )
        assert isinstance(text, str)
        return text

    def encode_task(self, messages: Sequence[Mapping[str, Any]], schemas: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a task prompt: messages and the tools, given by their JSON schemas, up to where the agent begins to write."""
        conversation: Any = list(messages)
        tools: Any = list(schemas) or None
        encoded: Any = self.tokenizer.apply_chat_template(
            conversation,
            tools=tools,
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self.chat_template_kwargs,
        )
        return list(encoded["input_ids"])

    def write(self, message: Mapping[str, Any], ended: bool = True) -> str:
        """
        A turn as this model would have written it, for a message that another model gave.

        Args:
            message (`Mapping`):
                With `content`, and `reasoning_content` and `tool_calls` if there are any.
            ended (`bool`, *optional*, defaults to `True`):
                Whether it was not cut; then the end token belongs to it.
        """
        task = [{"role": "user", "content": "m1"}]
        before, whole = self._render(task, True), self._render([*task, message], False)
        before = before if whole.startswith(before) else before.rstrip()
        if not whole.startswith(before):
            raise ValueError(
                "The chat template does not write a turn where it lets the agent begin one: pass another tokenizer, or use "
                "`Mem1Protocol()`, which writes actions as tags."
            )
        text = whole[len(before) :]
        end = self.tokenizer.eos_token or ""
        text = text[: text.rindex(end)] if end and end in text else text
        for part in (message.get("content"), message.get("reasoning_content")):
            state = self._state({"content": part}, part)[0] if part else None
            if state is not None and state not in text:  # some templates write nothing beside a call
                text = f"<{self.protocol.state_tag}>{state}</{self.protocol.state_tag}>{text}"
        return text + end if ended else text or " "

    def spoken(self, message: Mapping[str, Any], state: str | None) -> str:
        """What a turn said beside its calls, the state in its tags."""
        content = self._state(message, "")[2]
        tag = self.protocol.state_tag
        return content if state is None or state == content else f"<{tag}>{state}</{tag}>{content}"

    def frame(self, names: Sequence[str]) -> tuple[str, ...]:
        """
        What the template writes around the results of tools, one piece more than there are results.

        The first follows the end token of the agent's turn, the last ends where the agent begins to write again.
        """
        key = tuple(names)
        if key not in self._frames:
            marks = [f"m1result{index}m1" for index in range(len(key))]
            text = self._suffix(key, marks)
            pieces = []
            for mark in marks:
                piece, found, text = text.partition(mark)
                if not found:
                    raise ValueError(
                        "The chat template does not show the results of several tool calls one after the other: use "
                        "`Mem1Protocol()`, which writes actions as tags."
                    )
                pieces.append(piece)
            self._frames[key] = (*pieces, text)
        return self._frames[key]

    def _suffix(self, names: Sequence[str], results: Sequence[str]) -> str:
        """What the template writes behind a turn that called tools."""
        # One call only, since some templates allow no more; its name stands in the header of the result in others
        call = {"type": "function", "function": {"name": names[0], "arguments": {}}}
        turn: list[Any] = [
            {"role": "user", "content": "m1"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        messages = [{"role": "tool", "name": name, "content": text} for name, text in zip(names, results, strict=True)]
        before, whole = self._render(turn, False), self._render([*turn, *messages], True)
        end = self.tokenizer.eos_token
        if end and before.rstrip().endswith(end):  # what follows the end token was not sampled
            before = before[: before.rindex(end) + len(end)]
        if not whole.startswith(before):
            raise ValueError(
                "The chat template writes an earlier turn differently once results follow: change the template, or use "
                "`Mem1Protocol()`, which writes actions as tags."
            )
        return whole[len(before) :]

    @cached_property
    def escapes(self) -> bool:
        """Whether the template writes results as JSON strings."""
        suffix = self._suffix(("probe",), (_PROBE,))
        return _PROBE not in suffix and json.dumps(_PROBE)[1:-1] in suffix

    @cached_property
    def _start(self) -> list[int]:
        """Token ids that open the agent's turn; they may hold the beginning of its thoughts."""
        task = [{"role": "user", "content": "m1"}]
        before, whole = self._render(task, False), self._render(task, True)
        text = whole[len(before) :] if whole.startswith(before) else whole
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    @cached_property
    def _markup(self) -> re.Pattern[str]:
        """Markup of the template and the tokenizer, which nobody else may write."""
        call = {"type": "function", "function": {"name": "m1", "arguments": {"m1": "m1"}}}
        turn: list[Any] = [
            {"role": "user", "content": "m1"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        whole = self._render([*turn, {"role": "tool", "name": "m1", "content": "m1"}], True)
        found = {*_MARKUP.findall(whole)}
        for tag in (self.protocol.state_tag, *self.protocol.scratch_tags, self.protocol.memory_tag):
            found |= {f"<{tag}>", f"</{tag}>"}
        found |= {token for token in self.tokenizer.get_added_vocab() if _ADDED_MARKUP.match(token)}
        longest_first = sorted(found, key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)

    def defuse(self, text: str) -> str:
        """Text of the environment without markup: `<tool_call>` becomes `&lt;tool_call>`, `[INST]` becomes `[ INST]`."""
        text = self.protocol.defuse(text)
        text = self._markup.sub(lambda m: ("&lt;" if m[0][0] == "<" else m[0][0] + " ") + m[0][1:], text)
        return json.dumps(text, ensure_ascii=False)[1:-1] if self.escapes else text

    def plain(self, text: str) -> str:
        """A result that was encoded, without what the template's JSON needs; as it is if it was cut inside an escape."""
        if not self.escapes:
            return text
        try:
            return json.loads(f'"{text}"', strict=False)
        except json.JSONDecodeError:
            return text

    # Reading

    def parse(self, ids: Sequence[int], text: str, schemas: Sequence[dict[str, Any]]) -> ParsedTurn:
        """
        Read one completion: the state, and the calls or the answer.

        Args:
            ids (`Sequence[int]`):
                Token ids that the agent wrote, its end token included.
            text (`str`):
                The same, decoded.
            schemas (`Sequence[dict]`):
                JSON schemas of the tools, which type the arguments where the format of the model does not.

        Returns:
            [`ParsedTurn`]: With `calls`, or with the answer tag as `action` if the turn called nothing, or with a `problem` if
            it began a call that cannot be read.
        """
        from trl.chat_template_utils import parse_response

        tools: Any = list(schemas)
        try:
            message = parse_response(self.tokenizer, list(ids), prefix=self._start, tools=tools)
        except Exception:  # a transform of the template that does not fit; TRL catches what does not parse
            message = {"role": "assistant", "content": self.tokenizer.decode(list(ids), skip_special_tokens=True)}
        state, span, content = self._state(message, text)
        calls = []
        for call in message.get("tool_calls") or []:
            function = call.get("function", call)
            calls.append(ToolCall(function["name"], function.get("arguments") or {}))
        if calls:
            inputs: Any = [call.arguments for call in calls]
            return ParsedTurn(
                state=state if state is not None else content or None,
                state_span=span,
                action=", ".join(call.name for call in calls),
                action_input=json.dumps(inputs if len(inputs) > 1 else inputs[0], ensure_ascii=False),
                calls=tuple(calls),
                message=message,
            )
        if self._begins_call(text):
            problem = (
                "the tool call cannot be read: write it as shown with the tools, with its arguments as valid JSON."
            )
            return ParsedTurn(state=state, state_span=span, message=message, problem=problem)
        answer = self.protocol.answer_tag
        return ParsedTurn(state=state, state_span=span, action=answer, action_input=content, message=message)

    def _state(self, message: Mapping[str, Any], text: str) -> tuple[str | None, tuple[int, int] | None, str]:
        """The state, where it stands in `text`, and the rest of what the message says."""
        tag = re.escape(self.protocol.state_tag)
        tagged = re.compile(rf"<{tag}>(.*?)</{tag}>", re.DOTALL)
        content = message.get("content") or ""
        thought = next((message[field] for field in _REASONING if isinstance(message.get(field), str)), "")
        found = tagged.search(content) or tagged.search(thought)
        state = (found[1] if found else thought).strip()
        content = tagged.sub("", content, count=1)
        if not state:
            return None, None, content.strip()
        whole = re.search(rf"<{tag}>\s*{re.escape(state)}\s*</{tag}>", text)
        if whole is not None:
            return state, whole.span(), content.strip()
        begin = text.find(state)
        return state, None if begin < 0 else (begin, begin + len(state)), content.strip()

    def _begins_call(self, text: str) -> bool:
        """Whether a turn holds what opens a tool call."""
        template: Any = getattr(self.tokenizer, "response_template", None) or {}
        field = template.get("fields", {}).get("tool_calls", {})
        openings = field.get("open") or []
        openings = [openings] if isinstance(openings, str) else openings
        pattern = field.get("open_pattern")
        return any(opening in text for opening in openings) or bool(pattern and re.search(pattern, text))


def share_budget(room: int, wanted: Sequence[int]) -> list[int]:
    """
    Split a number of tokens among texts: what a short one leaves goes to the long ones, which get equal parts.

    Args:
        room (`int`):
            Tokens in all.
        wanted (`Sequence[int]`):
            Tokens that each text has.

    Returns:
        `list[int]`: At most `room` in sum, and for no text more than it has.
    """
    budgets = [0] * len(wanted)
    left = len(wanted)
    for index in sorted(range(len(wanted)), key=lambda index: wanted[index]):
        budgets[index] = min(wanted[index], room // left)
        room -= budgets[index]
        left -= 1
    return budgets
