"""What may be asked of a server, by its names: OpenAI's client says which arguments there are."""

from __future__ import annotations

import inspect
import json

import pytest

pytest.importorskip("openai")

from openai.resources.chat import Completions
from openai.resources.responses import Responses

from mem1_trl.wire.errors import WireError
from mem1_trl.wire.requests import canonical, read_chat_request
from mem1_trl.wire.response_requests import read_response_request

CHAT = {"model": "mem1", "messages": [{"role": "user", "content": "a"}]}
RESPONSE = {"model": "mem1", "input": "a"}
APIS = [(read_chat_request, Completions, CHAT), (read_response_request, Responses, RESPONSE)]
OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
REFUSED = "an argument that is known here"


@pytest.mark.parametrize(("read", "api", "least"), APIS)
def test_every_argument_of_the_api_is_known_and_no_other(read, api, least):
    names = set(inspect.signature(api.create).parameters) - OF_THE_CLIENT
    assert len(names) > 20
    for name in names:  # a value of any kind is wrong for most, but none of them is unknown
        for value in (7, "x"):
            try:
                read(json.dumps({**least, name: value}).encode())
            except WireError as error:
                assert REFUSED not in str(error) and error.status == 400
        assert read(json.dumps({name: None, **least}).encode()).model == "mem1"
    for name, meant in (("temperatures", "did you mean 'temperature'"), ("top_k", "."), ("zzz", "leave it out")):
        with pytest.raises(WireError, match=f"{name!r} is not {REFUSED}: .*{meant}") as error:
            read(json.dumps({**least, name: 1}).encode())
        assert error.value.code == "unknown_parameter"


def test_a_stop_text_is_no_argument_of_responses():
    with pytest.raises(WireError, match=f"'stop' is not {REFUSED}"):
        read_response_request(json.dumps({**RESPONSE, "stop": "x"}).encode())


@pytest.mark.parametrize(("read", "api", "least"), APIS)
def test_a_lone_surrogate_is_one_sentence(read, api, least):
    whole, lone = json.dumps({**least, "user": "\U0001f600"}), json.dumps({**least, "user": "a\ud83d"})
    assert read(whole.encode()).user == "\U0001f600"
    with pytest.raises(WireError, match=r"must be Unicode, got the lone surrogate '\\ud83d'"):
        read(lone.encode())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_completion_tokens": None, "max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 7, "max_tokens": 5}, {"max_tokens": 7}),
        ({"max_completion_tokens": 7, "max_tokens": None}, {"max_tokens": 7}),
        ({"max_completion_tokens": None, "max_tokens": None}, {}),
    ],
)
def test_null_is_the_same_as_an_argument_that_is_left_out(given, expected):
    assert read_chat_request(json.dumps({**CHAT, **given}).encode()).options == expected
    item = {"type": None, "role": "user", "content": "a"}
    read = read_response_request(json.dumps({"model": "mem1", "input": [item]}).encode())
    assert read.messages == ({"role": "user", "content": "a"},)


@pytest.mark.parametrize(("read", "api", "least"), APIS)
def test_tools_are_offered_whether_or_not_one_may_be_called(read, api, least):
    function = {"name": "search", "parameters": {"type": "object", "properties": {}}}
    tool = (
        {"type": "function", "function": function} if read is read_chat_request else {"type": "function", **function}
    )
    asked = [read(json.dumps({**least, "tools": [tool], "tool_choice": one}).encode()) for one in ("none", "auto")]
    assert asked[0].tools == asked[1].tools == asked[1].usable_tools and len(asked[0].tools) == 1
    assert [one.may_call for one in asked] == [False, True] and asked[0].usable_tools == ()


USER = {"role": "user", "content": "a"}
TOOL = {"type": "function", "function": {"name": "search"}}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0, "max_tokens": 5}, "max_completion_tokens"),
        ({"seed": "x"}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"user": 1}, "user"),
        ({"temperatures": 1}, "temperatures"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": 7}, "tools"),
        ({"tools": [TOOL, {"type": "web_search"}]}, "tools[1]"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 1}}]}, "tools[0]"),
        ({"messages": []}, "messages"),
        ({"messages": [USER, {"role": "boss"}]}, "messages[1]"),
        ({"messages": [USER, {"role": "user", "content": 7}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": 7}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [7]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id"),
        ({"messages": [USER, {"role": "user", "content": "a", "name": 7}]}, "messages[1].name"),
        ({"messages": [{"role": "assistant", "refusal": ["no"]}]}, "messages[0].refusal"),
        ({"messages": [{"role": "assistant", "reasoning_content": {"x": 1}}]}, "messages[0].reasoning_content"),
        ({"messages": [{"role": "assistant", "content": "a", "reasoning": 7}]}, "messages[0].reasoning"),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "messages[0].audio"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "search"}}]}, "messages[0].function_call"),
        ({"messages": [{"role": "assistant", "content": [{"type": "refusal", "text": "no"}]}]}, "messages[0].content"),
    ],
)
def test_the_argument_at_fault_is_named(given, param):
    with pytest.raises(WireError) as error:
        read_chat_request(json.dumps({**CHAT, **given}).encode())
    assert error.value.param == param


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"background": True}, "background"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"instructions": 7}, "instructions"),
        ({"text": 7}, "text"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"tools": 7}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": [USER, 7]}, "input[1]"),
        ({"input": [{"type": "item_reference"}]}, "input[0].type"),
        ({"input": [{"type": "reasoning"}, USER, {"role": "boss"}], "instructions": "say"}, "input[2]"),
        ({"input": [{"type": "function_call", "name": 1}, USER]}, "input[0].tool_calls"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].tool_call_id"),
    ],
)
def test_the_argument_of_responses_at_fault_is_named(given, param):
    with pytest.raises(WireError) as error:
        read_response_request(json.dumps({**RESPONSE, **given}).encode())
    assert error.value.param == param


SAID = {"role": "assistant", "content": "It is 7."}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"role": "user", "content": "a", "name": "Bob"}, {"role": "user", "content": "a", "name": "Bob"}),
        ({"role": "system", "content": "a", "name": "example"}, {"role": "system", "content": "a", "name": "example"}),
        ({**SAID, "reasoning_content": "six and one"}, {**SAID, "reasoning_content": "six and one"}),
        ({**SAID, "reasoning": "six and one"}, {**SAID, "reasoning_content": "six and one"}),
        ({**SAID, "reasoning_content": "", "reasoning": "six"}, {**SAID, "reasoning_content": "six"}),
        ({**SAID, "reasoning_content": "six", "reasoning": "six"}, {**SAID, "reasoning_content": "six"}),
        (
            {"role": "assistant", "content": None, "refusal": "I may not."},
            {"role": "assistant", "content": "I may not."},
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "assistant", "content": "No."},
        ),
        ({**SAID, "refusal": "I may not."}, SAID),
        # As clients write an answer that has none of it
        (
            {**SAID, "name": None, "reasoning_content": None, "refusal": None, "audio": None, "function_call": None},
            SAID,
        ),
        ({**SAID, "name": "", "reasoning_content": " \n", "reasoning": "", "refusal": "", "annotations": []}, SAID),
    ],
)
def test_what_a_message_says_beside_its_content_is_read(given, expected):
    (read,) = read_chat_request(json.dumps({**CHAT, "messages": [given]}).encode()).messages
    assert read == expected


def test_an_answer_is_the_same_with_and_without_its_thought():
    """A server finds a conversation by what was said, and clients send thoughts and names back as they like."""
    sent = [SAID, {**SAID, "reasoning_content": "six and one"}, {**SAID, "reasoning": "six"}, {**SAID, "name": "mem1"}]
    read = [read_chat_request(json.dumps({**CHAT, "messages": [USER, one]}).encode()).messages for one in sent]
    assert len({canonical(messages) for messages in read}) == 1


def test_a_call_in_the_older_form_is_one_sentence():
    message = {"role": "assistant", "content": None, "function_call": {"name": "search", "arguments": "{}"}}
    sentence = r"'function_call' of messages\[1\] is not supported: write the call in 'tool_calls', and its result"
    with pytest.raises(WireError, match=sentence):
        read_chat_request(json.dumps({**CHAT, "messages": [USER, message]}).encode())
