"""Actions as tags or in brackets: plain text that every model can write."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from ..trajectory import Turn
from .dated_template import dated_template
from .edited_state import edited_text
from .encoding import decode, encode_text, without_end_token
from .parsed_turn import ActionRequest, ParsedTurn
from .syntax import MARKS, ActionSyntax, EpisodeRecord, read_request
from .tagged_text import find_tagged
from .turn_text import append_text, encode_closed, join_thought, leading_thought, thought_tags
from .untrusted import strip_unencodable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .protocol import Mem1Protocol
    from .syntax import OfferedActions

_LONGEST_OPENING = 24  # tokens at the end of a context that may be an opening tag and white space

_LAST_OPENING = re.compile(r"<([\w.-]+)>\s*+$")
_BRACKETS = re.compile(r"^([\w.-]+)(?:\s*\[(.*)\])?$", re.DOTALL)


class TagSyntax(ActionSyntax):
    """
    Actions as `<search>tea</search>`, or as `search[tea]` inside the answer tag (`action_syntax="brackets"`).

    A task that is a text is tokenized as it is, messages go through the chat template.
    """

    def as_prompt(self, prompt: str | Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
        return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]

    def encode_task(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        schemas: Sequence[dict[str, Any]] = (),
        at: float | None = None,
    ) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        conversation: Any = list(prompt)
        encoded: Any = self.tokenizer.apply_chat_template(
            conversation,
            chat_template=dated_template(self.tokenizer.chat_template, at),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self.chat_template_kwargs,
        )
        return list(encoded["input_ids"])

    def stop_strings(self, action_tags: Sequence[str], last_turn: bool) -> list[str]:
        answer = f"</{self.protocol.answer_tag}>"
        if _only_answer(self.protocol, last_turn):
            return [answer]
        return [*(f"</{tag}>" for tag in action_tags), answer]

    def opened(self, context: Sequence[int]) -> str | None:
        end = _LAST_OPENING.search(decode(self.tokenizer, list(context)[-_LONGEST_OPENING:]))
        return end[1] if end and end[1] in thought_tags(self.protocol) else None

    def parse(
        self,
        ids: Sequence[int],
        text: str,
        actions: OfferedActions,
        last_turn: bool = False,
        ended: bool = True,
        opened: str | None = None,
    ) -> ParsedTurn:
        turn = parse_tags(self.protocol, text, list(actions.tags), last_turn, opened)
        return dataclasses.replace(turn, truncated=not ended and turn.action is None)

    def summary_stops(self) -> list[str]:
        return [f"</{self.protocol.state_tag}>"]

    def parse_summary(self, ids: Sequence[int], text: str, ended: bool, opened: str | None = None) -> ParsedTurn:
        tag, begin = self.protocol.state_tag, 0
        if opened is not None and opened != tag:  # a thought comes first
            begin = text.find(f"</{opened}>") + len(f"</{opened}>") if f"</{opened}>" in text else len(text)
        found = find_tagged(f"<{tag}>{text}" if opened == tag else text, [tag], begin=begin)
        if found is None:
            rest = without_end_token(self.tokenizer, text[begin:])
            return ParsedTurn(rest.strip(), (begin, begin + len(rest)), truncated=not ended)
        before = len(f"<{tag}>") if opened == tag else 0  # is in the context
        span = (max(found.begin - before, 0), found.end - before)
        return ParsedTurn(found.inner.strip(), span, truncated=not ended)

    def state_span(self, turn: Turn) -> tuple[int, int] | None:
        if not turn.acts:
            return self.parse_summary(turn.completion_ids, turn.text, True, self.opened(turn.prompt_ids)).state_span
        names = [] if turn.action is None else [turn.action]
        span = parse_tags(self.protocol, turn.text, names, opened=self.opened(turn.prompt_ids)).state_span
        return None if turn.state is None else span

    def requests(self, parsed: ParsedTurn, actions: OfferedActions) -> list[ActionRequest]:
        assert parsed.action is not None
        method = actions.answer_method if parsed.answer is not None else actions.tags[parsed.action]
        if method is None:
            return []
        return [read_request(parsed.action, method, lambda: actions.arguments(method, parsed.action_input or ""))]

    def frame(self, names: Sequence[str]) -> tuple[str, ...]:
        return ("",) * (len(names) + 1)

    def message_frame(self) -> tuple[str, str]:
        return "", ""

    def escape_tags(self, text: str, tags: Sequence[str] = ()) -> str:
        return escape_tags(self.protocol, text, tags)

    def encode_reply(
        self, message: Mapping[str, Any], ended: bool, stops: Sequence[str], opened: str | None = None
    ) -> list[int]:
        text = join_thought(self.protocol, message, opened)
        # A thought at whose end the turn stops is what was asked for
        asked = {stop.removeprefix("</").removesuffix(">") for stop in stops}
        opened = None if opened in asked else opened or leading_thought(self.protocol, text, asked)
        return encode_closed(self.tokenizer, text, ended, stops, opened)

    def sample_messages(self) -> list[dict[str, Any]]:
        state, answer, observation = self.protocol.state_tag, self.protocol.answer_tag, self.protocol.observation_tag
        text = f"<{state}>{MARKS.state}</{state}><{answer}>{MARKS.action}</{answer}>"
        ids = encode_text(self.tokenizer, MARKS.task)
        turn = Turn(tuple(ids), tuple(ids), text=text, observation=f"<{observation}>{MARKS.result}</{observation}>")
        return self.new_record().messages([{"role": "user", "content": MARKS.task}], [turn], [0], "")

    def new_record(self) -> TagRecord:
        return TagRecord(self)


class TagRecord(EpisodeRecord):
    """An empty record, since the texts of the turns hold everything."""

    def __init__(self, syntax: TagSyntax):
        self.syntax = syntax

    def add_turn(self, parsed: ParsedTurn) -> None:
        pass

    def add_results(self, names: Sequence[str], texts: Sequence[str]) -> None:
        pass

    def add_observation(self, names: Sequence[str], bodies: Sequence[Sequence[int]], turns_left: int) -> None:
        pass

    def add_message(self, text: str, body: Sequence[int], turns_left: int) -> None:
        pass

    def to_dict(self, dropped: int = 0) -> dict[str, Any]:
        return {}

    def restore(self, record: Mapping[str, Any]) -> None:
        pass

    def completion(self, turns: Sequence[Turn], conversational: bool) -> str | list[dict[str, Any]]:
        tokenizer = self.syntax.tokenizer
        texts = [decode(tokenizer, turn.completion_ids, skip_special_tokens=True) for turn in turns]
        if not conversational:
            return "".join(text + (turn.observation or "") for text, turn in zip(texts, turns))
        messages = [] if turns else [{"role": "assistant", "content": ""}]
        for text, turn in zip(texts, turns):
            messages.append({"role": "assistant", "content": text})
            if turn.observation is not None:
                messages.append({"role": "tool", "name": turn.action or "", "content": turn.observation})
        return messages

    def messages(
        self,
        task: Sequence[dict[str, Any]],
        turns: Sequence[Turn],
        kept: Sequence[int],
        recalled: str,
        request: str = "",
    ) -> list[dict[str, Any]]:
        *before, last = task
        past = [self._said(turns[index]) + (turns[index].observation or "") for index in kept]
        return [*before, {**last, "content": append_text(last["content"] + recalled, "".join([*past, request]))}]

    def _said(self, turn: Turn) -> str:
        """What a turn wrote, with the tag that its context had opened, and without scratch and end token."""
        opened = self.syntax.opened(turn.prompt_ids)
        text = edited_text(self.syntax, turn) if turn.edited_state is not None else turn.text
        text = text if opened is None else f"<{opened}>{text}"
        return without_end_token(self.syntax.tokenizer, self.syntax.drop_scratch(text))


# Functions of text only


def parse_tags(
    protocol: Mem1Protocol,
    text: str,
    action_tags: Sequence[str],
    last_turn: bool = False,
    opened: str | None = None,
) -> ParsedTurn:
    """
    Read one completion: the state, and the first complete action after it.

    Only text that the model wrote is given to this function, and nothing after the first complete action counts, so an
    invented observation or a second action has no effect.

    Args:
        protocol ([`Mem1Protocol`]):
            Gives the tags and the syntax.
        text (`str`):
            The decoded completion.
        action_tags (`Sequence[str]`):
            Tags of the actions in force, without the answer tag.
        last_turn (`bool`, *optional*, defaults to `False`):
            Whether no turn remains; then only an answer is an action if `answer_only_in_last_turn`.
        opened (`str`, *optional*):
            Tag that the context had opened: the text before its end is the state, or a thought that is not read.
    """
    opened = opened or leading_thought(protocol, text, {protocol.state_tag, *action_tags})
    if opened is not None:
        return _parse_opened(protocol, text, action_tags, last_turn, opened)
    return _parse_from(protocol, text, action_tags, last_turn)


def _parse_from(protocol: Mem1Protocol, text: str, action_tags: Sequence[str], last_turn: bool) -> ParsedTurn:
    """The turn of a text that begins outside of any tag."""
    names = [protocol.answer_tag] if _only_answer(protocol, last_turn) else [*action_tags, protocol.answer_tag]
    state = find_tagged(text, [protocol.state_tag])
    action = find_tagged(text, names)
    if state is not None and (action is None or action.last_opening > state.begin):
        action = find_tagged(text, names, begin=state.end)
    else:
        state = None  # nothing after the first action counts, and what stands inside of it is its text
    turn = ParsedTurn() if state is None else ParsedTurn(state.inner.strip(), (state.begin, state.end))
    if action is None:
        problem = f"no complete action. Use one of the tags {', '.join(names)}."
        return dataclasses.replace(turn, problem=problem)
    # A tag that is opened twice starts at its last opening: `<search>a<search>b</search>` asks for b
    inner = action.inner.rpartition(f"<{action.name}>")[2].strip()
    if protocol.action_syntax == "brackets":
        return _read_brackets(turn, inner, action_tags)
    answer = inner if action.name == protocol.answer_tag else None
    return dataclasses.replace(turn, action=action.name, action_input=inner, answer=answer)


def _parse_opened(
    protocol: Mem1Protocol, text: str, action_tags: Sequence[str], last_turn: bool, opened: str
) -> ParsedTurn:
    """The turn of a completion that begins inside the tag `opened`, or with it."""
    end = text.find(f"</{opened}>")
    if end < 0:
        return ParsedTurn(problem=f"<{opened}> was open and never closed, so there is no action.")
    after = end + len(f"</{opened}>")
    turn = _parse_from(protocol, text[after:], action_tags, last_turn)
    if opened == protocol.state_tag:
        state = text[:end].lstrip().removeprefix(f"<{opened}>")
        return dataclasses.replace(turn, state=state.strip(), state_span=(0, after))
    span = turn.state_span
    return turn if span is None else dataclasses.replace(turn, state_span=(span[0] + after, span[1] + after))


def _only_answer(protocol: Mem1Protocol, last_turn: bool) -> bool:
    """Whether the answer tag is the only one that can hold an action."""
    return protocol.action_syntax == "brackets" or (last_turn and protocol.answer_only_in_last_turn)


def _read_brackets(turn: ParsedTurn, text: str, names: Sequence[str]) -> ParsedTurn:
    """The turn with the text inside the answer tag read as `name[argument]`."""
    match = _BRACKETS.match(text)
    if match is None or match[1] not in names:
        choices = " or ".join(f"{name}[...]" for name in names)
        return dataclasses.replace(turn, problem=f"{text!r:.80} is not an action: write {choices}.")
    return dataclasses.replace(turn, action=match[1], action_input=(match[2] or "").strip())


def escape_tags(protocol: Mem1Protocol, text: str, tags: Sequence[str] = ()) -> str:
    """
    Text of the environment in which the tags of the protocol became `&lt;tag>`, without surrogates and NUL bytes.

    Args:
        protocol ([`Mem1Protocol`]):
            Gives the tags.
        text (`str`):
            Text that the environment returned.
        tags (`Sequence[str]`, *optional*):
            Action tags in force besides the protocol's own.
    """
    names = {
        protocol.state_tag,
        protocol.answer_tag,
        protocol.observation_tag,
        *protocol.scratch_tags,
        *(protocol.action_tags or {}),
        *tags,
    }
    return _opening(tuple(sorted(names))).sub("&lt;", strip_unencodable(text))


@cache
def _opening(names: tuple[str, ...]) -> re.Pattern[str]:
    """The `<` of tags in any case, with spaces or attributes, and cut off before their end: a reader might take all of them for tags."""
    # `*+` gives no space back that it has taken: else a `<` before many spaces is tried once for each pair of them
    return re.compile(rf"<(?=\s*+/?+\s*+(?:{'|'.join(map(re.escape, names))})(?:[\s/>]|$))", re.IGNORECASE)
