"""
Random turns and observations for protocols whose actions are tags or brackets.

A turn is read twice: by the package, and by the expressions below, which are slow on long texts and so simple that one sees what they do.
What the package writes is read back.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from support.hostile_text import PIECES, byte_bpe, forbidden, mixture, unigram, wordpiece

from mem1_trl import Mem1Protocol
from mem1_trl.protocol.encoding import decode, encode_text
from mem1_trl.protocol.tag_syntax import escape_tags
from mem1_trl.protocol.untrusted import sanitize_prompt, strip_unencodable
from mem1_trl.rollout.observations import ObservationEncoder
from mem1_trl.rollout.settings import AgentSettings

from .outcome import Outcome, equal, holds

ACTIONS = {"search": "search", "click": "click"}
NAMES = ("a", "b.c", "A-1", "x_", "think", "thinking", "search", "searches", "ans", "answer", "state", "o", "info")
"""Tags of protocols of random tags; some are the beginning of others."""

PROTOCOLS: dict[str, Mem1Protocol | None] = {
    "`Mem1Protocol()`": Mem1Protocol(),
    "`Mem1Protocol.paper()`": Mem1Protocol.paper(),
    "`Mem1Protocol.reference()`": Mem1Protocol.reference(),
    "`Mem1Protocol.reference(inference=True)`": Mem1Protocol.reference(inference=True),
    "`Mem1Protocol.webshop()`": Mem1Protocol.webshop(),
    "tags and templates at random": None,
}
"""What is tried; `None` makes a protocol for each input."""

BUDGETS = (80, 120, 500)


def random_protocol(luck: random.Random) -> Mem1Protocol:
    """A protocol whose tags, syntax and templates are random."""
    state, answer, observation, scratch, *actions = luck.sample(NAMES, luck.randint(5, 7))
    brackets = luck.random() < 0.3
    return Mem1Protocol(
        state_tag=state,
        answer_tag=answer,
        observation_tag=observation,
        scratch_tags=luck.choice([(), (scratch,)]),
        action_tags=dict.fromkeys(actions, "search"),
        observation_template=luck.choice(
            ["<{tag}>{hint}{observation}</{tag}>", "{observation}", "\n<{tag}>\n{hint} {observation}"]
        ),
        hint_template=luck.choice(["", "{n} left", "[HINT]{n}{observation}[/HINT]"]),
        truncation_marker=luck.choice(["", " ...", " [cut]"]),
        action_syntax="brackets" if brackets else "tags",
        answer_only_in_last_turn=not brackets and luck.random() < 0.5,
    )


@dataclass(frozen=True)
class Read:
    """A turn as the expressions of this file read it."""

    state: str | None = None
    action: str | None = None
    argument: str | None = None


def read_slowly(protocol: Mem1Protocol, tags: list[str], text: str, last_turn: bool) -> Read:
    """What a turn says, by `<tag>(.*?)</tag>`."""
    thoughts = {"think", *protocol.scratch_tags} - {protocol.state_tag, *tags}
    begin = re.match(r"\s*<([\w.-]+)>", text)
    if begin and begin[1] in thoughts and f"</{begin[1]}>" in text:  # a thought at the beginning is skipped
        text = text.partition(f"</{begin[1]}>")[2]
    brackets = protocol.action_syntax == "brackets"
    only_answer = brackets or (last_turn and protocol.answer_only_in_last_turn)
    names = [protocol.answer_tag] if only_answer else [*tags, protocol.answer_tag]
    state = _tagged(protocol.state_tag, text)
    before = text if state is None else text[: state.start()]
    action = _first(names, before)
    if action is not None:
        state = None
    elif state is not None:
        action = _first(names, text[state.end() :])
    said = None if state is None else state[1].strip()
    if action is None:
        return Read(said)
    name = action[0][1 : action[0].index(">")]
    argument = action[1].rpartition(f"<{name}>")[2].strip()
    if brackets:
        match = re.fullmatch(r"([\w.-]+)(?:\s*\[(.*)\])?", argument, re.DOTALL)
        if match is None or match[1] not in tags:
            return Read(said)
        name, argument = match[1], (match[2] or "").strip()
    return Read(said, name, argument)


def _tagged(name: str, text: str) -> re.Match[str] | None:
    return re.search(f"<{re.escape(name)}>(.*?)</{re.escape(name)}>", text, re.DOTALL)


def _first(names: list[str], text: str) -> re.Match[str] | None:
    found = [match for match in (_tagged(name, text) for name in names) if match]
    return min(found, key=lambda match: match.start(), default=None)


def without(text: str, *parts: str) -> str:
    """The text without these parts, also where taking one out makes another."""
    while any(part in text for part in parts):
        for part in parts:
            text = text.replace(part, "")
    return text


def own_pieces(protocol: Mem1Protocol, tags: list[str]) -> list[str]:
    """What texts are made of: pieces that are hostile everywhere, and the tags of this protocol."""
    names = [protocol.state_tag, protocol.answer_tag, protocol.observation_tag, *protocol.scratch_tags, *tags]
    return [
        *PIECES,
        *(
            part
            for name in names
            for part in (f"<{name}>", f"</{name}>", f"</{name}", f"{name}[", f"<{name}>{name}[a]</{name}>")
        ),
    ]


class Inputs:
    """Everything that one random input decides."""

    def __init__(self, protocol: Mem1Protocol | None, seed: str):
        self.luck = random.Random(seed)
        self.protocol = protocol or random_protocol(self.luck)
        self.tags = list(self.protocol.action_tags or ACTIONS)
        self.last_turn = self.luck.random() < 0.3
        self._pieces = own_pieces(self.protocol, self.tags)

    def text(self, longest: int = 12) -> str:
        return "".join(self.luck.choice(self._pieces) for _ in range(self.luck.randint(0, longest)))


def check_reading(inputs: Inputs) -> None:
    """A turn of anything is what the expressions say, and its spans are where it says them."""
    protocol, text = inputs.protocol, inputs.text(40)
    turn = protocol.parse(text, inputs.tags, inputs.last_turn)
    expected = read_slowly(protocol, inputs.tags, text, inputs.last_turn)
    equal(
        (turn.state, turn.action, turn.action_input),
        (expected.state, expected.action, expected.argument),
        f"the turn {text!r}",
    )
    equal(turn.problem is None, turn.action is not None, f"whether {text!r} has an action")
    answers = protocol.action_syntax == "tags" and turn.action == protocol.answer_tag
    equal(turn.answer, turn.action_input if answers else None, "the answer")
    if turn.state_span is not None:
        begin, end = turn.state_span
        holds((turn.state or "") in text[begin:end], f"the state is not in its span of {text!r}")
        holds(text[begin:end].endswith(f"</{protocol.state_tag}>"), f"the span of the state of {text!r} is not closed")


def check_writing(inputs: Inputs) -> None:
    """A turn that was written is read as it was meant, whatever is inside its tags and after them."""
    protocol, luck = inputs.protocol, inputs.luck
    state_tag, answer_tag = protocol.state_tag, protocol.answer_tag
    brackets = protocol.action_syntax == "brackets"
    only_answer = brackets or (inputs.last_turn and protocol.answer_only_in_last_turn)
    tag = answer_tag if only_answer else luck.choice([*inputs.tags, answer_tag])
    state = without(inputs.text(), f"</{state_tag}>")
    argument = without(inputs.text(), f"<{tag}>", f"</{tag}>")
    name = luck.choice(inputs.tags) if brackets else tag
    inner = f"{name}[{argument}]" if brackets else argument
    between = luck.choice(["", " ", "\n\n", "so: "])
    text = f"<{state_tag}>{state}</{state_tag}>{between}<{tag}>{inner}</{tag}>"
    for whole in (text, text + inputs.text()):
        turn = protocol.parse(whole, inputs.tags, inputs.last_turn)
        equal(
            (turn.state, turn.action, turn.action_input),
            (state.strip(), name, argument.strip()),
            f"the turn {whole!r}",
        )


def check_escaping(inputs: Inputs, text: str) -> None:
    """Text of an environment holds no tag and cannot be read as a turn; nothing else of it is changed."""
    protocol, tags = inputs.protocol, inputs.tags
    inside = escape_tags(protocol, text, tags)
    names = [protocol.state_tag, protocol.answer_tag, protocol.observation_tag, *protocol.scratch_tags, *tags]
    for name in names:
        holds(
            not re.search(rf"<\s*/?\s*{re.escape(name)}(?=[\s/>]|$)", inside, re.IGNORECASE),
            f"{name} is a tag in {inside!r}",
        )
    turn = protocol.parse(inside, tags, inputs.last_turn)
    equal((turn.state, turn.action), (None, None), f"the turn of {inside!r}")
    equal(escape_tags(protocol, inside, tags), inside, "the text when it is escaped again")
    equal(inside.replace("&lt;", "<"), strip_unencodable(text).replace("&lt;", "<"), "the text without the escapes")
    inside.encode("utf-8")


@cache
def tokenizers() -> list[tuple[Any, frozenset[int]]]:
    """Tokenizers of three kinds, with the ids that text of environments may not become. The first keeps every text."""
    made = [byte_bpe(), unigram(), wordpiece()]
    return [(tokenizer, frozenset(forbidden(tokenizer))) for tokenizer in made]


@cache
def trusted_ids(kind: int, text: str) -> list[int]:
    """Token ids of a piece of a template."""
    return encode_text(tokenizers()[kind][0], text)


def check_rendering(inputs: Inputs, text: str) -> None:
    """An observation has its frame, no control token, and no more tokens than it may; what is not cut is all there."""
    protocol, luck = inputs.protocol, inputs.luck
    kind, budget, turns_left = luck.randrange(3), luck.choice(BUDGETS), luck.randrange(4)
    tokenizer, bad = tokenizers()[kind]
    encoder = ObservationEncoder(protocol.syntax(tokenizer), AgentSettings(max_observation_length=budget))
    frame = [trusted_ids(kind, part) for part in protocol.observation_frame(turns_left)]
    marker = trusted_ids(kind, protocol.truncation_marker)
    if budget - sum(map(len, frame)) < len(marker) + 1:
        return  # refused, and said so
    ids = encoder.encode_results([text], ["tool"], turns_left, inputs.tags)
    before, body, after = ids.before, ids.body, ids.after
    equal([before, after], frame, "the frame of an observation")
    holds(len(before) + len(body) + len(after) <= budget, f"an observation of {text!r} is longer than {budget} tokens")
    holds(not bad & set(body), f"an observation of {text!r} holds a control token")
    if kind:
        return
    whole = sanitize_prompt(tokenizer, escape_tags(protocol, text, inputs.tags))
    shown = decode(tokenizer, body)
    if shown != whole:
        holds(shown.endswith(protocol.truncation_marker), f"{shown!r} is cut and does not say so")
        kept = shown.removesuffix(protocol.truncation_marker).rstrip("\ufffd")  # a character of several tokens, cut
        holds(whole.startswith(kept), f"{shown!r} is not the beginning of {whole!r}")


def check_protocol(protocol: Mem1Protocol) -> None:
    """A protocol is the same when it is saved and loaded, and holds a task as it is given."""
    equal(Mem1Protocol.from_dict(protocol.to_dict()), protocol, "the protocol after it was saved")


def measure(name: str, count: int, seed: int) -> Outcome:
    """`count` random inputs for one protocol: a turn to read, a turn to write, and text of an environment."""
    outcome = Outcome()
    for number in range(count):
        inputs = Inputs(PROTOCOLS[name], f"{seed} {number}")
        with outcome.case(f"input {number}"):
            if PROTOCOLS[name] is None or number == 0:
                check_protocol(inputs.protocol)
            check_reading(inputs)
            check_writing(inputs)
            check_escaping(inputs, inputs.text(30))
    return outcome


def measure_observations(name: str, count: int, seed: int) -> Outcome:
    """`count` random observations of one protocol, as token ids."""
    outcome = Outcome()
    for number in range(count):
        inputs = Inputs(PROTOCOLS[name], f"{seed} {number}")
        with outcome.case(f"observation {number}"):
            check_rendering(inputs, inputs.text(30) + mixture(inputs.luck.randrange(2**32)))
    return outcome
