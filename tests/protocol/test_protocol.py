"""Tests of the text format: presets, rendering, parsing, escaping, saving."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mem1_trl import Mem1Protocol
from mem1_trl.protocol.parsed_turn import ParsedTurn
from mem1_trl.protocol.protocol import PROTOCOL_FILE
from mem1_trl.protocol.tag_syntax import TagSyntax, escape_tags

# Presets


def test_reference_training_observation_is_byte_for_byte():
    protocol = Mem1Protocol.reference()
    docs = "Doc 1(Title: T) text\n"
    before, after = protocol.observation_frame(4)
    assert before + docs + after == (
        "\n\n<information>[HINT]You have 4 turns left.[/HINT]\n\nDoc 1(Title: T) text\n</information>\n\n"
    )
    assert protocol.observation_frame(1)[0] == (
        "\n\n<information>[HINT]You have 1 turn left. You must answer the question in the next turn.[/HINT]\n\n"
    )
    assert protocol.observation_frame(0) == ("\n\n<information>\n\n", "</information>\n\n")


def test_reference_inference_observation_is_byte_for_byte():
    protocol = Mem1Protocol.reference(inference=True)
    before, after = protocol.observation_frame(2)
    assert before + "docs" + after == "<information>\n[HINT]You have 2 turns left.[/HINT]\ndocs\n</information>"
    for left in (1, 0):
        assert protocol.observation_frame(left)[0] == (
            f"<information>\n[HINT]You have {left} turn left. You must answer the question now.[/HINT]\n"
        )


@pytest.mark.parametrize(
    ("turns_left", "training", "inference"),
    [
        (5, "[HINT]You have 5 turns left.[/HINT]", "[HINT]You have 5 turns left.[/HINT]"),
        (2, "[HINT]You have 2 turns left.[/HINT]", "[HINT]You have 2 turns left.[/HINT]"),
        (
            1,
            "[HINT]You have 1 turn left. You must answer the question in the next turn.[/HINT]",
            "[HINT]You have 1 turn left. You must answer the question now.[/HINT]",
        ),
        (0, "", "[HINT]You have 0 turn left. You must answer the question now.[/HINT]"),
    ],
)
def test_hints(turns_left, training, inference):
    assert Mem1Protocol.reference().hint(turns_left) == training
    assert Mem1Protocol.reference(inference=True).hint(turns_left) == inference


def test_preset_tags_and_stops():
    paper, reference = Mem1Protocol.paper(), Mem1Protocol.reference()
    assert (paper.state_tag, paper.observation_tag, paper.answer_tag) == ("IS", "info", "answer")
    assert dict(paper.action_tags) == {"query": "search"}
    assert (reference.state_tag, reference.observation_tag, reference.answer_tag) == ("think", "information", "answer")
    assert dict(reference.action_tags) == {"search": "search"}
    assert paper.observation_frame(3)[0] == "\n\n<info>[HINT]You have 3 turns left.[/HINT]\n\n"
    # In the last turn the reference stops at an answer only
    assert TagSyntax(None, reference).stop_strings(["search"], last_turn=False) == ["</search>", "</answer>"]
    assert TagSyntax(None, reference).stop_strings(["search"], last_turn=True) == ["</answer>"]
    # An environment that is acted on to the end keeps its actions
    assert TagSyntax(None, Mem1Protocol()).stop_strings(["buy"], last_turn=True) == ["</buy>", "</answer>"]


@pytest.mark.parametrize("protocol", [Mem1Protocol(), Mem1Protocol.paper(), Mem1Protocol.reference()])
def test_instructions_name_every_tag_and_hold_the_task(protocol):
    text = protocol.render_task("Who is X?; Who is Y?", ["<search>query</search>: Find.", "<open>title</open>: Read."])
    assert text.count("Who is X?; Who is Y?") == 1
    assert "<search>query</search>: Find.\n<open>title</open>: Read." in text
    for tag in (protocol.state_tag, protocol.answer_tag, protocol.observation_tag):
        assert f"<{tag}>" in text and f"</{tag}>" in text
    assert "{" not in text


# Rendering


def test_braces_of_a_task_are_not_placeholders():
    protocol = Mem1Protocol(instructions="{actions}|{prompt}|{other}|{{}}")
    task = 'say {answer} {"a": {state}} {0} {prompt}'
    assert protocol.render_task(task, ["{observation}"]) == "{observation}|" + task + "|{other}|{{}}"


def test_braces_and_backslashes_of_an_observation_frame():
    protocol = Mem1Protocol(observation_template="{x}<{tag}>{hint}{observation}</{tag}>\\1", hint_template="{n} {tag}")
    assert protocol.observation_frame(3)[0].startswith("{x}<information>3 ")
    assert protocol.observation_frame(3)[1] == "</information>\\1"


# Parsing


def parse(text: str, actions=("search", "open"), **kwargs) -> ParsedTurn:
    return Mem1Protocol().parse(text, list(actions), **kwargs)


def test_state_and_action_with_spans():
    text = "  <think> notes\n more </think> <search> a b </search>"
    parsed = parse(text)
    assert (parsed.state, parsed.action, parsed.action_input) == ("notes\n more", "search", "a b")
    assert text[slice(*parsed.state_span)] == "<think> notes\n more </think>"


@pytest.mark.parametrize(
    ("text", "state", "action", "action_input"),
    [
        ("<think>s</think> nothing to do", "s", None, None),
        ("", None, None, None),
        ("<think>s</think><search>unfinished", "s", None, None),
        ("<think>s</think><search>a</open>", "s", None, None),
        ("<think>s</think><search>a</search><open>b</open>", "s", "search", "a"),
        ("<think>s</think><open>b</open><search>a</search>", "s", "open", "b"),
        ("<think>never closed <search>a</search>", None, "search", "a"),
        ("<answer>42</answer>", None, "answer", "42"),
        ("<think>s</think><answer></answer>", "s", "answer", ""),
        ("<think>s</think><answer>a; <b>bold</b></answer>", "s", "answer", "a; <b>bold</b>"),
        # Tags that are not in force, or in another case, are text
        ("<think>s</think><buy>a</buy>", "s", None, None),
        ("<think>s</think><SEARCH>a</SEARCH>", "s", None, None),
        # An action that the state only mentions is not one
        ("<think>I could <search>x</search></think><answer>y</answer>", "I could <search>x</search>", "answer", "y"),
        ("<think>a</think><think>b</think><answer>y</answer>", "a", "answer", "y"),
        # Nor is a state that an action only mentions
        ("<answer>Say <think>x</think></answer>", None, "answer", "Say <think>x</think>"),
        ("<search>what <think>x</think> means</search>", None, "search", "what <think>x</think> means"),
        ("<search>a <think>s</think><search>b</search>", "s", "search", "b"),
    ],
)
def test_parse(text, state, action, action_input):
    parsed = parse(text)
    assert (parsed.state, parsed.action, parsed.action_input) == (state, action, action_input)
    assert (parsed.problem is None) == (action is not None)
    assert parsed.answer == (action_input if action == "answer" else None)


def test_invented_observation_and_answer_do_not_count():
    """Pitfall 5 of the reference: a turn that answers itself was scored on what it made up."""
    invented = "<search>q</search><information>it is 42</information><answer>42</answer>"
    parsed = parse("<think>s</think>" + invented)
    assert (parsed.action, parsed.action_input) == ("search", "q")
    parsed = parse(invented)
    assert (parsed.action, parsed.action_input) == ("search", "q")


def test_nothing_after_the_first_action_counts_not_even_a_state():
    parsed = parse("<search>q</search><information>42</information><think>so</think><answer>42</answer>")
    assert (parsed.action, parsed.action_input, parsed.state) == ("search", "q", None)


def test_a_tag_opened_twice_starts_at_its_last_opening():
    text = "<think>s</think><search>a <search>b</search>"
    parsed = parse(text)
    assert (parsed.action, parsed.action_input) == ("search", "b")


def test_last_turn_only_answers_where_the_protocol_says_so():
    text = "<think>s</think><search>q</search><answer>42</answer>"
    reference = Mem1Protocol.reference()
    assert reference.parse(text, ["search"], last_turn=True).action == "answer"
    assert reference.parse(text, ["search"], last_turn=False).action == "search"
    assert Mem1Protocol().parse(text, ["search"], last_turn=True).action == "search"
    assert reference.parse("<think>s</think><search>q</search>", ["search"], last_turn=True).action is None


def test_own_tags():
    protocol = Mem1Protocol(
        state_tag="memo",
        answer_tag="final",
        observation_tag="saw",
        action_tags={"go-to": "move"},
        scratch_tags=("hm",),
    )
    parsed = protocol.parse("<memo>m</memo><go-to>north</go-to>", ["go-to"])
    assert (parsed.state, parsed.action, parsed.action_input) == ("m", "go-to", "north")
    assert protocol.parse("<memo>m</memo><answer>x</answer><final>y</final>", ["go-to"]).action_input == "y"
    assert protocol.observation_frame(2)[1] == "</saw>\n\n"


# Text of the environment


@pytest.mark.parametrize(
    "tag", ["think", "/think", "answer", "/answer", "information", "/information", "search", "/search", "hm", "/ hm "]
)
def test_escaping_breaks_every_tag_in_force(tag):
    protocol = Mem1Protocol(scratch_tags=("hm",))
    assert escape_tags(protocol, f"a <{tag}> b", ["search"]) == f"a &lt;{tag}> b"


def test_escaping_leaves_other_text_alone():
    text = "1 < 2, <b>bold</b> <thinking> <searches> &lt; [HINT] é 漢 🙂"
    assert escape_tags(Mem1Protocol(), text, ["search"]) == text


def test_escaping_removes_nul_and_lone_surrogates_before_it_looks_for_tags():
    protocol = Mem1Protocol()
    assert escape_tags(protocol, "a\x00b\ud800c") == "ab?c"
    assert escape_tags(protocol, "<ans\x00wer>x</answer>") == "&lt;answer>x&lt;/answer>"
    assert protocol.parse(escape_tags(protocol, "</information><answer>x</answer>"), ["search"]).action is None


# Scratch


def test_scratch_is_dropped_and_the_rest_kept():
    protocol = Mem1Protocol(state_tag="summary", scratch_tags=("think", "plan"))
    text = "<think>a\nb</think> <summary>s</summary><plan>p</plan>\n<search>q</search>"
    assert TagSyntax(None, protocol).drop_scratch(text) == "<summary>s</summary><search>q</search>"
    assert TagSyntax(None, protocol).drop_scratch("<think>not closed") == "<think>not closed"
    assert TagSyntax(None, Mem1Protocol()).drop_scratch(text) == text


# Brackets

SHOP = Mem1Protocol.webshop()
PAGES = ["search", "click"]


@pytest.mark.parametrize(
    ("text", "action", "argument"),
    [
        ("<answer>search[red shoes]</answer>", "search", "red shoes"),
        ("<answer>\n click[Buy Now] \n</answer>", "click", "Buy Now"),
        ("<answer>click[size [xl]]</answer>", "click", "size [xl]"),
        ("<answer>click[]</answer>", "click", ""),
        ("<answer>click</answer>", "click", ""),
        ("<answer>search[two\nlines]</answer>", "search", "two\nlines"),
    ],
)
def test_brackets_inside_the_answer_tag(text, action, argument):
    said = f"<think>a < b</think><summary>wants shoes</summary>{text}"
    turn = SHOP.parse(said, PAGES)
    assert (turn.action, turn.action_input, turn.state) == (action, argument, "wants shoes")
    assert turn.answer is None  # the environment says when the episode is over


@pytest.mark.parametrize("inner", ["buy[tea]", "red shoes", "search[tea", "search(tea)", "search[tea] now", ""])
def test_text_that_is_not_a_bracket_action(inner):
    turn = SHOP.parse(f"<summary>s</summary><answer>{inner}</answer>", PAGES)
    assert (turn.action, turn.action_input, turn.state) == (None, None, "s")
    assert "write search[...] or click[...]." in turn.problem


def test_the_webshop_protocol_is_that_of_the_reference():
    assert (SHOP.state_tag, SHOP.answer_tag, SHOP.observation_tag) == ("summary", "answer", "state")
    assert (
        TagSyntax(None, SHOP).stop_strings(PAGES, last_turn=False)
        == TagSyntax(None, SHOP).stop_strings(PAGES, last_turn=True)
        == ["</answer>"]
    )
    said = "<think>cheap?</think>\n<summary>s</summary><answer>click[x]</answer>"
    assert TagSyntax(None, SHOP).drop_scratch(said) == "<summary>s</summary><answer>click[x]</answer>"
    task = SHOP.render_task("red shoes under 30 dollars", ["search[keywords]: Search."])
    assert "red shoes under 30 dollars" in task and "search[keywords]: Search." in task and "{" not in task


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"action_syntax": "xml"}, "action_syntax='xml' is unknown: use one of 'tags', 'brackets', 'tool_calls'"),
        ({"action_syntax": "brackets", "answer_only_in_last_turn": True}, "no tag that is only an answer"),
        ({"action_syntax": "tool_calls", "action_tags": {"a": "b"}}, "leave `action_tags` out"),
    ],
)
def test_settings_of_a_syntax_that_contradict_it_are_refused(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        Mem1Protocol(**kwargs)


def test_a_bracket_name_may_be_that_of_a_tag():
    protocol = Mem1Protocol(action_syntax="brackets", action_tags={"answer": "finish", "think": "ponder"})
    turn = protocol.parse("<think>s</think><answer>answer[Paris]</answer>", ["answer", "think"])
    assert (turn.action, turn.action_input) == ("answer", "Paris")


# Saving


@pytest.mark.parametrize(
    "protocol",
    [
        Mem1Protocol(),
        Mem1Protocol.paper(),
        Mem1Protocol.reference(inference=True),
        Mem1Protocol.webshop(),
        Mem1Protocol.tool_calls(),
        Mem1Protocol(
            state_tag="summary", scratch_tags=("think",), action_tags={"a": "act"}, on_invalid_action="observe"
        ),
    ],
)
def test_round_trip_through_json(protocol, tmp_path):
    path = protocol.save_pretrained(tmp_path / "new")
    assert path.name == PROTOCOL_FILE
    loaded = Mem1Protocol.from_pretrained(tmp_path / "new")
    assert loaded == protocol
    assert isinstance(loaded.scratch_tags, tuple)
    assert json.loads(path.read_text(encoding="utf-8")) == protocol.to_dict()


def test_unknown_keys_are_refused():
    record = {**Mem1Protocol().to_dict(), "colour": "red"}
    with pytest.raises(ValueError, match=r"colour.*upgrade mem1-trl"):
        Mem1Protocol.from_dict(record)


def test_a_directory_without_protocol_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="pass `protocol=`"):
        Mem1Protocol.from_pretrained(tmp_path)


# Bad input


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"state_tag": None}, "Mem1Protocol has state_tag=None, which must be text"),
        ({"instructions": None}, "Mem1Protocol has instructions=None, which must be text"),
        ({"action_tags": ["search"]}, r"Mem1Protocol has action_tags=\['search'\], which must be an object, each entry text or null"),
        ({"action_tags": {"search": print}}, "Mem1Protocol has action_tags=.*, which must be an object"),
        ({"action_tags": {1: "search"}}, "Mem1Protocol has action_tags=.*, which must be an object"),
        ({"scratch_tags": (1,)}, r"Mem1Protocol has scratch_tags=\(1,\), which must be a list, each entry text"),
        ({"action_syntax": ["tags"]}, r"Mem1Protocol has action_syntax=\['tags'\], which must be text"),
        ({"answer_only_in_last_turn": "no"}, "Mem1Protocol has answer_only_in_last_turn='no', which must be true or false"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused(kwargs, sentence):
    """An episode ended in an `AttributeError` else, or nothing said that a list of tags is no mapping."""
    with pytest.raises(ValueError, match=sentence + ".*: pass it so, or leave it out"):
        Mem1Protocol(**kwargs)
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(Mem1Protocol(), **kwargs)


@pytest.mark.parametrize("tag", ["<think>", "", "two words", "1st", "a>b", "/x", "search\n"])
def test_bad_tags_are_refused(tag):
    with pytest.raises(ValueError, match="cannot be a tag"):
        Mem1Protocol(state_tag=tag)
    with pytest.raises(ValueError, match="cannot be a tag"):
        Mem1Protocol(action_tags={tag: "search"})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"answer_tag": "think"},
        {"observation_tag": "answer"},
        {"action_tags": {"answer": "reply"}},
        {"action_tags": {"information": "look"}},
        {"scratch_tags": ("think",)},
        {"scratch_tags": ("a", "a")},
    ],
)
def test_a_tag_with_two_jobs_is_refused(kwargs):
    with pytest.raises(ValueError, match="two jobs"):
        Mem1Protocol(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"instructions": "no place for the task"}, r"`instructions` must hold \{prompt\} exactly once"),
        ({"instructions": "{prompt} {prompt}"}, r"`instructions` must hold \{prompt\} exactly once"),
        (
            {"observation_template": "<{tag}></{tag}>"},
            r"`observation_template` must hold \{observation\} exactly once",
        ),
        ({"on_invalid_action": "ignore"}, "must be 'end' .* or 'observe'"),
    ],
)
def test_bad_templates_and_rules_are_refused(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        Mem1Protocol(**kwargs)
