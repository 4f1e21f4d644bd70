"""Tests of the tag syntax with a tokenizer: tasks as TRL encodes them, what a turn asks for, how a reply is taken over."""

from __future__ import annotations

import types

import pytest
from support.tool_helpers import Library, template_tokenizer
from trl import GRPOTrainer

from mem1_trl import Mem1Protocol, Turn
from mem1_trl.environment_runtime.actions import ActionSet
from mem1_trl.protocol.parsed_turn import ActionRequest
from mem1_trl.protocol.tag_syntax import TagSyntax
from mem1_trl.protocol.tool_calls import ToolCallSyntax

MESSAGES = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}],
    [{"role": "user", "content": "A longer question: who, and when?"}],
]


@pytest.fixture(scope="module")
def tokenizer():
    return template_tokenizer()


def trl_ids(tokenizer, prompts, chat_template_kwargs):
    """Token ids of prompts by the trainer of TRL, without tools."""
    stub = types.SimpleNamespace(
        _is_vlm=False,
        environment_factories=None,
        processing_class=tokenizer,
        tools=[],
        chat_template=None,
        chat_template_kwargs=chat_template_kwargs,
    )
    ids, *_ = GRPOTrainer._tokenize_prompts(stub, prompts)
    return [list(one) for one in ids]


@pytest.mark.parametrize("prompts", [MESSAGES, ["Who?", "A text\nof two lines"]], ids=["messages", "texts"])
@pytest.mark.parametrize("chat_template_kwargs", [{}, {"enable_thinking": False}])
def test_tasks_are_encoded_as_trl_encodes_them(tokenizer, prompts, chat_template_kwargs):
    syntax = Mem1Protocol().syntax(tokenizer, chat_template_kwargs)
    ids = [syntax.encode_task(prompt) for prompt in prompts]
    assert ids == trl_ids(tokenizer, prompts, chat_template_kwargs)
    closed = "<think>\n\n</think>" in tokenizer.decode(ids[0])
    assert closed == (prompts is MESSAGES and bool(chat_template_kwargs))  # the argument does reach the template


def test_a_protocol_makes_its_syntax(tokenizer):
    assert isinstance(Mem1Protocol().syntax(tokenizer), TagSyntax)
    assert isinstance(Mem1Protocol.webshop().syntax(tokenizer), TagSyntax)
    assert isinstance(Mem1Protocol.tool_calls().syntax(tokenizer), ToolCallSyntax)


def test_a_text_is_a_text_with_tags_and_a_message_with_tool_calls(tokenizer):
    tags, calls = Mem1Protocol().syntax(tokenizer), Mem1Protocol.tool_calls().syntax(tokenizer)
    assert tags.as_prompt("Who?") == "Who?"
    assert tokenizer.decode(tags.encode_task("Who?")) == "Who?"
    assert calls.as_prompt("Who?") == [{"role": "user", "content": "Who?"}]
    assert calls.encode_task("Who?") == calls.encode_task([{"role": "user", "content": "Who?"}])
    assert tags.as_prompt(MESSAGES[0]) == calls.as_prompt(MESSAGES[0]) == MESSAGES[0]


@pytest.mark.parametrize(
    ("protocol", "text", "requests"),
    [
        (
            Mem1Protocol(),
            '<search>{"query": "q", "top_k": 2}</search>',
            [ActionRequest("search", "search", {"query": "q", "top_k": 2})],
        ),
        (Mem1Protocol(), "<answer>7</answer>", [ActionRequest("answer", "answer", {"text": "7"})]),
        (Mem1Protocol(answer_tag="final"), "<final>7</final>", []),  # the environment has no method for it
        (Mem1Protocol(answer_tag="say", action_syntax="brackets"), "<say>answer[7]</say>", [ActionRequest("answer", "answer", {"text": "7"})]),
    ],
)  # fmt: skip
def test_what_a_turn_asks_for(tokenizer, protocol, text, requests):
    syntax, actions = protocol.syntax(tokenizer), ActionSet(Library(), protocol)
    turn = syntax.parse((), text, actions)
    assert syntax.requests(turn, actions) == requests
    assert turn.answer == ("7" if protocol.action_syntax == "tags" and "7" in text else None)


def test_an_argument_that_cannot_be_read_is_a_problem_and_not_a_call(tokenizer):
    syntax, actions = Mem1Protocol().syntax(tokenizer), ActionSet(Library(), Mem1Protocol())
    (request,) = syntax.requests(syntax.parse((), "<search>key</search>", actions), actions)
    assert (request.name, request.method) == ("search", None) and "JSON" in request.problem


def test_a_cut_turn_counts_if_its_action_is_complete(tokenizer):
    syntax, actions = Mem1Protocol().syntax(tokenizer), ActionSet(Library(), Mem1Protocol())
    whole, part = "<answer>7</answer>", "<answer>7"
    cut = {text: syntax.parse((), text, actions, ended=False).truncated for text in (whole, part)}
    assert cut == {whole: False, part: True}
    assert not syntax.parse((), part, actions, ended=True).truncated
    calls = Mem1Protocol.tool_calls()
    ids = tokenizer("7", add_special_tokens=False)["input_ids"]
    ended = [calls.syntax(tokenizer).parse(ids, "7", ActionSet(Library(), calls), ended=e).truncated for e in (0, 1)]
    assert ended == [True, False]  # a turn with tool calls is complete at its end token only


@pytest.mark.parametrize(
    ("text", "ended", "expected"),
    [
        ("<search>q", True, "<search>q</search>"),
        ("<search>q</search> and more", True, "<search>q</search>"),
        ("<search>q", False, "<search>q"),
        ("no action", True, "no action<|im_end|>"),
        (None, False, "<|im_end|>"),
    ],
)
def test_a_reply_is_encoded_as_the_turn_of_a_student(tokenizer, text, ended, expected):
    syntax = Mem1Protocol().syntax(tokenizer)
    ids = syntax.encode_reply({"role": "assistant", "content": text}, ended, ["</search>", "</answer>"])
    assert tokenizer.decode(ids) == expected


def test_an_episode_is_told_to_reward_functions_as_a_text_or_as_messages(tokenizer):
    record = Mem1Protocol().syntax(tokenizer).new_record()
    said = [tokenizer(text)["input_ids"] for text in ("<search>q</search>", "<answer>7</answer><|im_end|>")]
    turns = [
        Turn((1,), tuple(said[0]), action="search", observation="<information>7</information>"),
        Turn((1,), tuple(said[1]), action="answer"),
    ]
    assert record.completion(turns, False) == "<search>q</search><information>7</information><answer>7</answer>"
    assert record.completion(turns, True) == [
        {"role": "assistant", "content": "<search>q</search>"},
        {"role": "tool", "name": "search", "content": "<information>7</information>"},
        {"role": "assistant", "content": "<answer>7</answer>"},
    ]
    assert (record.completion([], False), record.completion([], True)) == ("", [{"role": "assistant", "content": ""}])
