"""Random turns and results of native tool calls, through the chat templates that TRL ships."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from support.hostile_text import PIECES
from support.tool_helpers import Library, template_tokenizer

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.actions import ActionSet
from mem1_trl.rollout.observations import ObservationEncoder
from mem1_trl.rollout.settings import AgentSettings

from .outcome import Outcome, equal, holds

FAMILIES = ("qwen3", "qwen2_5", "llama3_1")
MARKUP = (
    "<tool_call>",
    "</tool_call>",
    '{"name": "search"',
    '"arguments": {"query": "a"}}',
    "<think>",
    "</think>",
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
)
PLAIN = (" ", "a", "Paris", "é", "漢", "🙂", "1 < 2", "\n", "'", "{x}", ":")


@cache
def syntax_of(family: str) -> tuple[Any, Any, Any]:
    """The syntax of a family of models, its actions, and its encoder of results."""
    protocol = Mem1Protocol.tool_calls()
    syntax = protocol.syntax(template_tokenizer(family))
    return (
        syntax,
        ActionSet(Library(), protocol),
        ObservationEncoder(syntax, AgentSettings(max_observation_length=300)),
    )


def check_reading(family: str, luck: random.Random) -> None:
    """A turn of anything is a call, an answer or a problem; whatever it asks for, the agent can be answered."""
    syntax, actions, _ = syntax_of(family)
    text = "".join(luck.choice((*PIECES, *MARKUP)) for _ in range(luck.randint(0, 30)))
    ids = syntax.tokenizer(text.encode("utf-8", "replace").decode(), add_special_tokens=False)["input_ids"]
    turn = syntax.parse(ids, syntax.tokenizer.decode(ids), actions)
    holds((turn.action is None) == (turn.problem is not None), f"{text!r} has neither an action nor a problem")
    for request in syntax.requests(turn, actions) if turn.calls else ():
        holds(
            (request.method is None) == (request.problem is not None),
            f"a call of {text!r} is neither made nor refused",
        )


def check_writing(family: str, luck: random.Random) -> None:
    """A call that the template writes is read as it was meant."""
    syntax, actions, _ = syntax_of(family)
    query = "".join(luck.choice(PLAIN) for _ in range(luck.randint(1, 12)))
    state = "".join(luck.choice(PLAIN[:8]) for _ in range(luck.randint(1, 12))).strip() or "a"
    arguments = {"query": query, "top_k": luck.randrange(9)}
    call = {"type": "function", "function": {"name": "search", "arguments": arguments}}
    text = syntax.write({"role": "assistant", "content": f"<think>{state}</think>", "tool_calls": [call]})
    ids = syntax.tokenizer(text, add_special_tokens=False)["input_ids"]
    turn = syntax.parse(ids, syntax.tokenizer.decode(ids), actions)
    equal([(one.name, dict(one.arguments)) for one in turn.calls], [("search", arguments)], f"the calls of {text!r}")
    equal(turn.state, state, f"the state of {text!r}")


def check_result(family: str, luck: random.Random) -> None:
    """A result holds no markup of the template, and keeps to its budget."""
    syntax, _, encoder = syntax_of(family)
    text = "".join(luck.choice((*PIECES, *MARKUP)) for _ in range(luck.randint(0, 60)))
    ids = encoder.encode_results([text], ["search"], 2, [])
    holds(sum(map(len, (ids.before, ids.body, ids.after))) <= 300, f"the result {text!r} is longer than its budget")
    tokenizer = syntax.tokenizer
    control = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} - {tokenizer.unk_token_id}
    holds(not control & set(ids.body), f"the result {text!r} holds a control token")


def measure(family: str, count: int, seed: int) -> Outcome:
    """`count` random inputs for one chat template: a turn to read, a turn to write, and a result."""
    outcome = Outcome()
    for number in range(count):
        luck = random.Random(f"{family} {seed} {number}")
        with outcome.case(f"input {number}"):
            check_reading(family, luck)
            check_writing(family, luck)
            check_result(family, luck)
    return outcome
