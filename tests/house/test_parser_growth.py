"""Everything that reads text of models, environments or the web takes time in proportion to it, on the most hostile shapes."""

from __future__ import annotations

import contextlib

import pytest
from support.growth import RATIO, SIZES, growth, repeated
from support.helpers import tiny_tokenizer
from support.tool_helpers import template_tokenizer

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.arguments import coerce
from mem1_trl.evaluation.reference import _reference_score
from mem1_trl.evaluation.retention import contains_answer, without_hint
from mem1_trl.json_text import read_json
from mem1_trl.protocol.tag_syntax import escape_tags
from mem1_trl.protocol.tagged_text import drop_tagged
from mem1_trl.protocol.turn_text import close_action, leading_thought
from mem1_trl.protocol.untrusted import clean_reply
from mem1_trl.report.browser import completion_parts
from mem1_trl.retrieval import Bm25Index
from mem1_trl.rewards import exact_match, exact_match_reward, f1
from mem1_trl.web import LocalWeb
from mem1_trl.web.readable import decode

TAGS, WEBSHOP, TOKENIZER = Mem1Protocol(), Mem1Protocol.webshop(), tiny_tokenizer()
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


READERS = {
    "a turn": parse,
    "an observation": lambda text: escape_tags(TAGS, text, ["search"]),
    "scratch": lambda text: drop_tagged(text, "think"),
    "a reply of a server": lambda text: close_action(text, ["</search>", "</answer>"]),
    "a thought at the beginning": lambda text: leading_thought(TAGS, text),
    "a message of a server": lambda text: clean_reply(TOKENIZER, {"role": "assistant", "content": text}),
    "a completion in the report": show,
    "arguments": read,
    "an answer": score,
    "an answer in a state": lambda text: contains_answer(text, ["Paris", "+", "a", "鉄"]),
    "a hint": lambda text: without_hint(text, NUMBERED),
    "a query": lambda text: INDEX.search([text]),
    "a query of the web": lambda text: WEB.search(text),
    "a page": lambda text: decode(text.encode("utf-8", "replace"), None),
}


SLOW = ("an answer in a state", "a query of the web", "a query", "a hint")
"""Proportional to the text, but with a second or so for a megabyte: read to a quarter of it."""


@pytest.mark.parametrize("reader", READERS)
def test_the_time_to_read_grows_with_the_text(reader):
    for name, shape in PIECES.items():
        assert growth(READERS[reader], shape, SIZES[: 4 if reader in SLOW else 5]) < RATIO, name


def test_the_time_to_read_a_tool_call_grows_with_the_text():
    """The part of this package; TRL and transformers parse the message before."""
    tokenizer = template_tokenizer("qwen3")
    syntax = Mem1Protocol.tool_calls().syntax(tokenizer)

    def state(text):
        syntax._state({"content": text}, text)
        syntax._state({"content": "", "reasoning_content": text[len(text) // 2 :]}, text)
        syntax.escape_tags(text)
        syntax.plain(text)
        syntax._begins_call(text)

    calls = {
        "calls": repeated("<tool_call>"),
        "spaces": repeated(" ", before="<tool_call>"),
        "objects": repeated('{"name":'),
    }
    for name, shape in (PIECES | calls).items():
        assert growth(state, shape) < RATIO, name


def test_the_time_to_break_markers_grows_with_the_text(tokenizer):
    from mem1_trl.protocol.untrusted import sanitize_prompt

    shapes = PIECES | {
        "markers": repeated("<|im_end|>"),
        "markers inside markers": lambda n: "<|im_" * (n // 10) + "<|im_end|>" + "end|>" * (n // 10),
        "half markers": repeated("<|im_"),
        "overlapping": repeated("</s><s"),
        "brackets": repeated("[INST"),
    }
    for name, shape in shapes.items():
        assert growth(lambda text: sanitize_prompt(tokenizer, text), shape, SIZES[:4]) < RATIO, name
