"""Everything that reads text of models, environments or the web, and the texts that it may take long for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from support.growth import SIZES, Shape, repeated
from support.tool_helpers import template_tokenizer
from support.trainer_helpers import chat_tokenizer

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.arguments import coerce
from mem1_trl.evaluation.reference import _reference_score
from mem1_trl.evaluation.retention import contains_answer, without_hint
from mem1_trl.json_text import read_json
from mem1_trl.protocol.call_openings import find_call
from mem1_trl.protocol.tag_syntax import escape_tags
from mem1_trl.protocol.tagged_text import drop_tagged
from mem1_trl.protocol.turn_text import close_action, leading_thought
from mem1_trl.protocol.untrusted import clean_reply, sanitize_prompt
from mem1_trl.report.browser import completion_parts
from mem1_trl.retrieval import Bm25Index
from mem1_trl.rewards import exact_match, exact_match_reward, f1
from mem1_trl.web import LocalWeb
from mem1_trl.web.readable import decode

TAGS, WEBSHOP, TOKENIZER = Mem1Protocol(), Mem1Protocol.webshop(), chat_tokenizer()
CALLS = Mem1Protocol.tool_calls().syntax(template_tokenizer("qwen3"))
NUMBERED = Mem1Protocol(hint_template="{n} turns left")
INDEX = Bm25Index([("Iron", "Iron has the symbol Fe."), ("鉄", "鉄の元素記号はFeです。")])
WEB = LocalWeb([{"url": "https://a.example", "title": "Iron", "text": "Iron. " * 20}])

PIECES = {
    "spaces after <": repeated(" ", before="<"),
    "<": repeated("<"),
    "< /": repeated("< / "),
    "unclosed states": repeated("<think>"),
    "unclosed actions": repeated("<search>"),
    "both unclosed": repeated("<think><search><answer>"),
    "closings": repeated("</think></search></answer>"),
    "one closed at the end": repeated("<search>", after="</search>"),
    "states closed at the end": repeated("<think>", after="x</think>"),
    "closings of another": repeated("<think>", after="</search></answer>"),
    "nested": lambda n: "<search>" * (n // 20) + "</search>" * (n // 20),
    "state inside of itself": lambda n: "<think>" + "<think>a" * (n // 10) + "</think>",
    "spaces in a state": repeated(" ", before="<think>", after="</think"),
    "many tags": lambda n: "".join(f"<t{i}>" for i in range(n // 8)),
    "brackets": repeated("[", before="<answer>search", after="</answer>"),
    "closing brackets": repeated("]", before="<answer>search[", after="x</answer>"),
    "words in brackets": repeated("a", before="<answer>", after="!</answer>"),
    "digits": repeated("1"),
    "semicolons": repeated("; "),
    "words": repeated("the a "),
    "quotes": repeated("'s"),
    "points": repeated("a."),
    "commas": repeated("1,000"),
    "lines": repeated("\n"),
    "letters": repeated("a"),
    "Chinese": repeated("鉄"),
    "marks": repeated("\u0301", before="e"),
    "surrogates": repeated("\ud800"),
    "NUL bytes": repeated("<answer\x00>"),
}
"""Texts, by what is in them."""


def parse(text):
    for last in (False, True):
        TAGS.parse(text, ["search"], last)
    Mem1Protocol.reference().parse(text, ["search"], True)
    WEBSHOP.parse(text, ["search", "click"])


def show(text):
    completion_parts(text, "a", "search", "b")
    completion_parts(text, "", "think", "")
    completion_parts(text, text[len(text) // 2 :], "search", text[len(text) // 2 :])


def read(text):
    for kind in (int, float, bool, list[int], dict, set[str], str | None):
        with contextlib.suppress(ValueError):
            coerce(text, kind)
    with contextlib.suppress(ValueError):
        read_json(text)


def score(text):
    exact_match(text, [["Paris"], ["26"]])
    f1(text, [["Paris"], ["26"]])
    exact_match_reward(completions=[text], answers=[[["Paris"]]])
    _reference_score(text, [["Paris"]], True)


TOOL_PIECES = {
    "calls": repeated("<tool_call>"),
    "spaces before a call": repeated(" ", before="<tool_call>"),
    "objects": repeated('{"name":'),
}
MARKER_PIECES = {
    "markers": repeated("<|im_end|>"),
    "markers inside markers": lambda n: "<|im_" * (n // 10) + "<|im_end|>" + "end|>" * (n // 10),
    "half markers": repeated("<|im_"),
    "overlapping": repeated("</s><s"),
    "half instructions": repeated("[INST"),
}


def read_tool_call(text):
    """The part of this package; TRL and transformers parse the message before."""
    CALLS._state({"content": text}, text)
    CALLS._state({"content": "", "reasoning_content": text[len(text) // 2 :]}, text)
    CALLS.escape_tags(text)
    CALLS.read_result(text)
    find_call(CALLS.tokenizer, text)


class Reader(NamedTuple):
    """One reader: what it does with a text, the texts it is tried on, and their lengths."""

    call: Callable[[str], Any]
    shapes: Mapping[str, Shape] = PIECES
    sizes: tuple[int, ...] = SIZES


SHORTER = SIZES[:4]
"""For what is proportional to the text, but takes a second or so for a megabyte."""

READERS = {
    "a turn": Reader(parse),
    "an observation": Reader(lambda text: escape_tags(TAGS, text, ["search"])),
    "scratch": Reader(lambda text: drop_tagged(text, "think")),
    "a reply of a server": Reader(lambda text: close_action(text, ["</search>", "</answer>"])),
    "a thought at the beginning": Reader(lambda text: leading_thought(TAGS, text)),
    "a message of a server": Reader(lambda text: clean_reply(TOKENIZER, {"role": "assistant", "content": text})),
    "a completion in the report": Reader(show),
    "arguments": Reader(read),
    "an answer": Reader(score),
    "an answer in a state": Reader(lambda text: contains_answer(text, ["Paris", "+", "a", "鉄"]), sizes=SHORTER),
    "a hint": Reader(lambda text: without_hint(text, NUMBERED), sizes=SHORTER),
    "a query": Reader(lambda text: INDEX.search([text]), sizes=SHORTER),
    "a query of the web": Reader(lambda text: WEB.search(text), sizes=SHORTER),
    "a page": Reader(lambda text: decode(text.encode("utf-8", "replace"), None)),
    "a tool call": Reader(read_tool_call, PIECES | TOOL_PIECES),
    "a prompt": Reader(lambda text: sanitize_prompt(TOKENIZER, text), PIECES | MARKER_PIECES, SHORTER),
}
"""Readers, by what they read."""
