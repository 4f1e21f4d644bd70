"""Native tool calls: tasks, calls and results as a model's chat template writes them, and turns as TRL reads them."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ..json_text import read_json, too_deep, write_json
from ..trajectory import Turn
from .call_openings import REASONING, ends_call, find_call, read_calls_in_any_order
from .dated_template import dated_template
from .encoding import decode, encode_text, without_end_token
from .parsed_turn import ActionRequest, ParsedTurn, ToolCall
from .syntax import MARKS, ActionSyntax, EpisodeRecord, read_request
from .tag_syntax import escape_tags
from .tagged_text import find_tagged, find_whole
from .turn_text import append_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from .protocol import Mem1Protocol
    from .syntax import OfferedActions

_PROBE = 'm1"q\\b'
"""Has characters that JSON escapes, to see whether a template writes results as they are."""

_ANSWER = "m1answer"
"""Stands for what the agent said before a message."""

_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u00[01][0-9a-fA-F])')
"""What JSON writes for a character that may not stand in a string as it is."""

_MARKUP = re.compile(r"<[^<>\s]{1,48}>")
_ADDED_MARKUP = re.compile(r"^(<.+>|\[.+\])$")


class ToolCallSyntax(ActionSyntax):
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

        super().__init__(tokenizer, protocol, chat_template_kwargs)
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
        read_calls_in_any_order(tokenizer)
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

    def as_prompt(self, prompt: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt}]
        return [dict(message) for message in prompt]

    def encode_task(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        schemas: Sequence[dict[str, Any]] = (),
        at: float | None = None,
    ) -> list[int]:
        conversation: Any = self.as_prompt(prompt)
        tools: Any = list(schemas) or None
        encoded: Any = self.tokenizer.apply_chat_template(
            conversation,
            tools=tools,
            chat_template=dated_template(self.chat_template or self.tokenizer.chat_template, at),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self.chat_template_kwargs,
        )
        return list(encoded["input_ids"])

    def encode_reply(
        self, message: Mapping[str, Any], ended: bool, stops: Sequence[str], opened: str | None = None
    ) -> list[int]:
        return encode_text(self.tokenizer, self.write(message, ended))

    def sample_messages(self) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": MARKS.action, "arguments": {}}}
        ids = encode_text(self.tokenizer, MARKS.result)
        record = self.new_record()
        record.add_turn(ParsedTurn(MARKS.state, message={"role": "assistant", "content": "", "tool_calls": [call]}))
        record.add_observation([MARKS.action], [ids], 1)
        turn = Turn(tuple(ids), tuple(ids), state=MARKS.state)
        return record.messages([{"role": "user", "content": MARKS.task}], [turn], [0], "")

    def new_record(self) -> ToolCallRecord:
        return ToolCallRecord(self)

    def write(self, message: Mapping[str, Any], ended: bool = True) -> str:
        """
        A turn as this model would have written it, for the message of another model.

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
        if end and end in text:
            text = text[: text.rindex(end)]
        elif own_end := self._end_of(text):  # as `<|call|>` of gpt-oss
            text, end = text.rstrip().removesuffix(own_end), own_end
        state, tag = self._state(message, "")[0], self.protocol.state_tag
        if state is not None:
            fields = ["content"] if find_tagged(message.get("content") or "", [tag]) else REASONING
            field = next(field for field in fields if isinstance(message.get(field), str))
            mark = f"<{tag}>{MARKS.state}</{tag}>" if f"<{tag}>" in message[field] else MARKS.state
            # Some templates write nothing but a call, which may hold the text of the state by chance
            if MARKS.state not in self._render([*task, {**message, field: mark}], False):
                text = f"<{tag}>{state}</{tag}>{text}"
        return text + end if ended else text or " "

    def spoken(self, message: Mapping[str, Any], turn: Turn) -> str:
        """Text of a turn without its calls, the state in its tags, or the one that was put in its place."""
        content = self._state(message, "")[2]
        tag, state = self.protocol.state_tag, turn.state if turn.edited_state is None else turn.edited_state
        if turn.state is not None and turn.state == content:  # it wrote no tags
            return state or ""
        return content if state is None else f"<{tag}>{state}</{tag}>{content}"

    def frame(self, names: Sequence[str]) -> tuple[str, ...]:
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

    @property
    def turn_end(self) -> str:
        return self._after_answer[0]

    def message_frame(self) -> tuple[str, str]:
        return self._after_answer[1:]

    @cached_property
    def _after_answer(self) -> tuple[str, str, str]:
        """
        What the template writes after an answer: the end of the turn, and the texts around the message that follows.

        It is looked for after the text of the answer, since some templates write less before that once a message follows (Qwen3.5 leaves the
        thought out), or another end (gpt-oss writes `<|end|>` instead of `<|return|>`).
        """
        said = [{"role": "user", "content": "m1"}, {"role": "assistant", "content": _ANSWER}]
        alone = self._render(said, False).partition(_ANSWER)[2]
        _, _, after = self._render([*said, {"role": "user", "content": MARKS.result}], True).partition(_ANSWER)
        before, found, after = after.partition(MARKS.result)
        if not found:
            raise ValueError(
                "The chat template does not show a message of the user after an answer: use `Mem1Protocol()`, which writes "
                "actions as tags."
            )
        ends = self.tokenizer.all_special_tokens if self._end_of(alone) else []
        end = next((one for one in ends if before.startswith(one)), "")
        return end, before[len(end) :], after

    def _end_of(self, text: str) -> str:
        """The token that ended a turn which a text ends with, but for white space, which is not sampled; empty if there is none."""
        text = text.rstrip()
        return text[len(without_end_token(self.tokenizer, text)) :]

    def _suffix(self, names: Sequence[str], results: Sequence[str]) -> str:
        """Text that the template writes after a turn that called tools."""
        # One call only, since some templates allow no more; others write its name into the header of the result
        call = {"type": "function", "function": {"name": names[0], "arguments": {}}}
        turn: list[Any] = [
            {"role": "user", "content": "m1"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        messages = [{"role": "tool", "name": name, "content": text} for name, text in zip(names, results, strict=True)]
        return self._after(turn, messages)

    def _after(self, turn: Sequence[Mapping[str, Any]], messages: Sequence[Mapping[str, Any]]) -> str:
        """Text that the template writes for messages after a turn that ended with its end token, up to where the next turn begins."""
        before, whole = self._render(turn, False), self._render([*turn, *messages], True)
        if self._end_of(before):  # text after the end token was not sampled
            before = before.rstrip()
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
        return encode_text(self.tokenizer, text)

    @cached_property
    def _markup(self) -> re.Pattern[str]:
        """Markup of the template and the tokenizer, which an environment may not write."""
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

    def escape_tags(self, text: str, tags: Sequence[str] = ()) -> str:
        """Text of the environment without markup: `<tool_call>` becomes `&lt;tool_call>`, `[INST]` becomes `[ INST]`."""
        text = escape_tags(self.protocol, text)
        return self._markup.sub(lambda m: ("&lt;" if m[0][0] == "<" else m[0][0] + " ") + m[0][1:], text)

    def write_result(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=False)[1:-1] if self.escapes else text

    def read_result(self, text: str) -> str:
        return _ESCAPE.sub(lambda found: read_json(f'"{found[0]}"'), text) if self.escapes else text

    # Reading

    def stop_strings(self, action_tags: Sequence[str], last_turn: bool) -> list[str]:
        return []  # a turn goes on to its end token

    def parse(
        self,
        ids: Sequence[int],
        text: str,
        actions: OfferedActions,
        last_turn: bool = False,
        ended: bool = True,
        opened: str | None = None,
    ) -> ParsedTurn:
        turn = self._parse(ids, text, actions.schemas)
        return dataclasses.replace(turn, truncated=not ended)

    adds_inside = True

    def write_request(self, request: str) -> str:
        return "\n\n" + request.replace("{state}", self.protocol.state_tag)

    def summary_stops(self) -> list[str]:
        return []

    def parse_summary(self, ids: Sequence[int], text: str, ended: bool, opened: str | None = None) -> ParsedTurn:
        turn = self._parse(ids, text, [])
        state = turn.state if turn.state is not None else turn.answer or ""
        message = {name: value for name, value in (turn.message or {}).items() if name != "tool_calls"}
        whole = (0, len(without_end_token(self.tokenizer, text)))
        return ParsedTurn(state, turn.state_span or whole, message=message, truncated=not ended)

    def state_span(self, turn: Turn) -> tuple[int, int] | None:
        if not turn.acts:
            return self.parse_summary(turn.completion_ids, turn.text, True).state_span
        return self._parse(turn.completion_ids, turn.text, []).state_span

    def requests(self, parsed: ParsedTurn, actions: OfferedActions) -> list[ActionRequest]:
        if parsed.answer is None:
            return [read_request(call.name, call.name, partial(_arguments, call, actions)) for call in parsed.calls]
        if not actions.takes_answer:
            return []
        method = self.protocol.answer_tag
        return [read_request(method, method, partial(actions.arguments, method, parsed.answer))]

    def _parse(self, ids: Sequence[int], text: str, schemas: Sequence[dict[str, Any]]) -> ParsedTurn:
        """The state, and the calls, or the answer, or a `problem` if the turn began a call that cannot be read."""
        from trl.chat_template_utils import parse_response

        tools: Any = list(schemas)
        try:
            message = parse_response(self.tokenizer, list(ids), prefix=self._start, tools=tools)
        except Exception:  # a transform of the template that does not fit; TRL catches only texts that do not parse
            message = {"role": "assistant", "content": self.tokenizer.decode(list(ids), skip_special_tokens=True)}
        # A response template may know one end token of several
        message["content"] = without_end_token(self.tokenizer, message.get("content") or "")
        state, span, content = self._state(message, text)
        calls = _read_calls(message)
        if calls:
            inputs: Any = [call.arguments for call in calls]
            if state is None and content:  # what it said beside the call is what it remembers
                begin = text.find(content)
                state, span = content, None if begin < 0 else (begin, begin + len(content))
            return ParsedTurn(
                state=state,
                state_span=span,
                action=", ".join(call.name for call in calls),
                action_input=write_json(inputs if len(inputs) > 1 else inputs[0]),
                calls=tuple(calls),
                message=message,
            )
        if calls is None or self._began_call(text):
            message = {"role": "assistant", "content": content} if calls is None else message
            problem = (
                "the tool call cannot be read: write it as shown with the tools, with its arguments as valid JSON."
            )
            return ParsedTurn(state=state, state_span=span, message=message, problem=problem)
        answer = self.protocol.answer_tag
        return ParsedTurn(state, span, answer, content, answer=content, message=message)

    def _began_call(self, text: str) -> bool:
        """Whether a turn from which no call was read has begun one, outside of its thought, which the context may have opened."""
        if ends_call(self.tokenizer, self._end_of(text)):
            return True
        whole = decode(self.tokenizer, self._start) + text
        return find_call(self.tokenizer, whole, tag=self.protocol.state_tag) is not None

    def _state(self, message: Mapping[str, Any], text: str) -> tuple[str | None, tuple[int, int] | None, str]:
        """The state, its characters in `text`, and the rest of the message."""
        tag = self.protocol.state_tag
        content = message.get("content") or ""
        thought = next((message[field] for field in REASONING if isinstance(message.get(field), str)), "")
        found = find_tagged(content, [tag])
        if found is not None:
            content = content[: found.begin] + content[found.end :]
        else:
            found = find_tagged(thought, [tag])
        state = (found.inner if found else thought).strip()
        if not state:
            return None, None, content.strip()
        whole = find_whole(text, tag, state)
        if whole is not None:
            return state, (whole.begin, whole.end), content.strip()
        begin = text.find(state)
        return state, None if begin < 0 else (begin, begin + len(state)), content.strip()


def _read_calls(message: Mapping[str, Any]) -> list[ToolCall] | None:
    """The calls of a message; `None` if they are not calls, whatever the response template has made of the text."""
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or too_deep(function):
            return None
        calls.append(ToolCall(function["name"], function.get("arguments") or {}))
    return calls


def _arguments(call: ToolCall, actions: OfferedActions) -> dict[str, Any]:
    if call.name not in actions.tags:
        raise ValueError(f"there is no tool {call.name!r:.80}; there are {', '.join(actions.tags) or 'none'}.")
    return actions.typed_arguments(call.name, call.arguments)


class ToolCallRecord(EpisodeRecord):
    """
    The calls of one episode and their results, as messages.

    Args:
        syntax ([`ToolCallSyntax`]):
            The syntax that the episode is played with.

    Attributes:
        exchange (`list[dict]`):
            All turns and whole results, for TRL's reward functions.
        shown (`list[list[dict]]`):
            For each turn with an observation its message and its results as the agent reads them, cut and with the hint.
    """

    def __init__(self, syntax: ToolCallSyntax):
        self.syntax = syntax
        self.exchange: list[dict[str, Any]] = []
        self.shown: list[list[dict[str, Any]]] = []
        self._last_turn: dict[str, Any] = {}

    def add_turn(self, parsed: ParsedTurn) -> None:
        self._last_turn = parsed.message or {}
        self.exchange.append(self._last_turn)

    def add_results(self, names: Sequence[str], texts: Sequence[str]) -> None:
        self.exchange += [{"role": "tool", "name": name, "content": text} for name, text in zip(names, texts)]

    def add_observation(self, names: Sequence[str], bodies: Sequence[Sequence[int]], turns_left: int) -> None:
        contents = [self.syntax.read_result(decode(self.syntax.tokenizer, ids)) for ids in bodies]
        contents[0] = self.syntax.protocol.observation_frame(turns_left)[0] + contents[0]
        results = [{"role": "tool", "name": name, "content": text} for name, text in zip(names, contents)]
        self.shown.append([self._last_turn, *results])

    def add_message(self, text: str, body: Sequence[int], turns_left: int) -> None:
        self.exchange.append({"role": "user", "content": text})
        content = self.syntax.protocol.observation_frame(turns_left)[0] + decode(self.syntax.tokenizer, body)
        said = {name: value for name, value in self._last_turn.items() if name != "tool_calls"}  # they have no results
        self.shown.append([said, {"role": "user", "content": content}])

    def to_dict(self, dropped: int = 0) -> dict[str, Any]:
        exchange = (
            self.exchange if not dropped else self.exchange[-1:]
        )  # for reward functions, which want the whole episode
        return {
            "exchange": exchange,
            "shown": self.shown[dropped:],
            "last_turn": self._last_turn,
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        self.exchange, self.shown = list(record["exchange"]), list(record["shown"])
        self._last_turn = dict(record["last_turn"])

    def completion(self, turns: Sequence[Turn], conversational: bool) -> str | list[dict[str, Any]]:
        return self.exchange

    def messages(
        self,
        task: Sequence[dict[str, Any]],
        turns: Sequence[Turn],
        kept: Sequence[int],
        recalled: str,
        request: str = "",
    ) -> list[dict[str, Any]]:
        spoken: list[str] = []
        exchange: list[dict[str, Any]] = []
        for number in kept:
            turn = turns[number]
            said, *results = self.shown[number]
            texts = [result["content"] for result in results]
            if number == len(turns) - 1:
                texts[-1] += self.syntax.read_result(recalled) if results[-1]["role"] == "tool" else recalled
            if number == kept[-1]:
                texts[-1] += request
            text = self.syntax.drop_scratch(self.syntax.spoken(said, turn))
            calls = [
                {
                    "id": f"call_{number}_{index}",
                    "type": "function",
                    "function": {
                        **call["function"],
                        "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                    },
                }
                for index, call in enumerate((said.get("tool_calls") or [])[: len(results)])
            ]
            if calls:
                exchange.append({"role": "assistant", "content": "", "tool_calls": calls})
                exchange += [
                    {"role": "tool", "tool_call_id": call["id"], "content": result}
                    for call, result in zip(calls, texts, strict=True)
                ]
            else:  # a call that could not be read has no id to answer to
                text = "\n\n".join([text, *texts])
            spoken.append(text)
        *before, last = task
        return [*before, {**last, "content": append_text(last["content"], "\n\n".join(spoken))}, *exchange]
