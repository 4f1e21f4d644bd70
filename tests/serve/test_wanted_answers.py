"""What a client of `mem1 serve` wants of an answer: where it ends, and which tool it calls."""

from __future__ import annotations

import json
import re

import pytest
from support.reading_agent import reading
from support.serving import PLAIN, SETTINGS, served
from support.trainer_helpers import LookupEnvironment

pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

import openai

from mem1_trl import Mem1Agent


def tool(name):
    parameters = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


TOOLS = [tool("search"), tool("fetch")]
FETCH = {"type": "function", "function": {"name": "fetch"}}


def ask(client, *messages, **options):
    sent = [{"role": "user", "content": one} if isinstance(one, str) else one for one in messages]
    return client.chat.completions.create(model="mem1", messages=sent, **options)


def answering(text):
    return lambda context: f"<think>s</think><answer>{text}</answer>"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("END", "one EN two "),
        (["never", "END"], "one EN two "),
        (["END three", " two"], "one EN"),
        ("never", "one EN two END three"),
        ("s</think>", "one EN two END three"),  # the state is not what the client sees
        ("one", ""),
    ],
)
def test_an_answer_ends_before_its_stop_text(agent, stop, expected):
    reading(agent, answering("one EN two END three"))
    with served(agent) as client:
        choice = ask(client, "a", stop=stop).choices[0]
        assert (choice.message.content, choice.finish_reason) == (expected, "stop")
        chunks = [chunk.choices[0] for chunk in ask(client, "a", stop=stop, stream=True)]
    pieces = [chunk.delta.content for chunk in chunks if chunk.delta.content]
    assert "".join(pieces) == expected and chunks[-1].finish_reason == "stop"
    assert len(pieces) > 1 or not expected, "it is told as it comes"


def test_an_answer_that_stopped_is_whole_even_if_its_turn_was_cut_later(agent):
    reading(agent, answering("one END two three"))
    with served(agent) as client:
        text = "<think>s</think><answer>one END two"
        most = len(agent.tokenizer(text)["input_ids"])
        cut = ask(client, "a", stop="END", max_tokens=most).choices[0]
        assert (cut.message.content, cut.finish_reason) == ("one ", "stop")
        cut = ask(client, "a", stop="never", max_tokens=most).choices[0]
        assert cut.finish_reason == "length"


def test_a_conversation_goes_on_after_an_answer_that_was_stopped(agent):
    model = reading(agent)
    with served(agent) as client:
        first = ask(client, "a END b", stop="END").choices[0].message
        assert first.content == "a "
        second = ask(client, "a END b", first.model_dump(exclude_none=True), "c").choices[0].message
        assert second.content == "a END b c"
    assert model.contexts[1].startswith("a END b<think>a END b</think>")  # its own turn, and not the chat again


def obedient(context):
    """Answers, until it is told to call something, which it then calls."""
    told = re.findall(r"Call (\w+)", context)
    if told:
        return f"<think>s</think><{told[-1]}>tea</{told[-1]}>"
    return "<think>s</think><answer>tea</answer>"


def wilful(context):
    """Calls `search` until it is told that this was not called."""
    if "this was not called. Call fetch now" in context:
        return "<think>s</think><fetch>tea</fetch>"
    return "<think>s</think><search>tea</search>"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("write", "choice", "name", "turns"),
    [
        (wilful, "required", "search", 1),
        (obedient, "required", "search", 2),
        (obedient, FETCH, "fetch", 2),
        (wilful, FETCH, "fetch", 2),
    ],
)
def test_the_answer_is_a_call_of_the_tool_that_is_wanted(agent, stream, write, choice, name, turns):
    model = reading(agent, write)
    with served(agent) as client:
        answer = ask(client, "a", tools=TOOLS, tool_choice=choice, stream=stream)
        if stream:
            chunks = [chunk.choices[0] for chunk in answer]
            assert not any(chunk.delta.content for chunk in chunks), "no answer that was not wanted is told"
            (call,) = next(chunk.delta.tool_calls for chunk in chunks if chunk.delta.tool_calls)
            reason = chunks[-1].finish_reason
        else:
            (call,), reason = answer.choices[0].message.tool_calls, answer.choices[0].finish_reason
            assert answer.choices[0].message.content is None and answer.mem1["turns"] == turns
        assert (reason, call.function.name, json.loads(call.function.arguments)) == (
            "tool_calls",
            name,
            {"query": "tea"},
        )
        assert len(model.contexts) == turns
        sent = {"id": call.id, "type": "function", "function": call.function.model_dump()}
        chat = [{"role": "assistant", "content": None, "tool_calls": [sent]}]
        chat.append({"role": "tool", "tool_call_id": call.id, "content": "green"})
        model.write = answering("done")
        assert ask(client, "a", *chat, tools=TOOLS).choices[0].message.content == "done"
    assert model.contexts[-1].endswith(f"<{name}>tea</{name}><information>green</information>")


@pytest.mark.parametrize(
    ("text", "options", "turns", "ended"),
    [
        ("<think>s</think><answer>no</answer>", {}, 3, "answer"),
        ("<think>s</think><search>tea</search>", {}, 3, "max_turns"),
        ("<think>s</think><fetch>" + "long " * 9, {"max_tokens": 30}, 1, "truncated"),
    ],
)
def test_an_agent_that_does_not_call_is_an_error_and_the_conversation_stays(agent, text, options, turns, ended):
    model = reading(agent)
    with served(agent) as client:
        first = ask(client, "a", tools=TOOLS).choices[0].message.model_dump(exclude_none=True)
        model.write, known = lambda context: text, len(model.contexts)
        sentence = rf"asks for a call of fetch, and the agent made none \(turns: {turns}, ended by '{ended}'\): let it"
        for stream in (False, True):  # before the first piece, so that the status says it, too
            with pytest.raises(openai.BadRequestError, match=sentence) as error:
                ask(client, "a", first, "b", tools=TOOLS, tool_choice=FETCH, stream=stream, **options)
            assert error.value.code == "tool_use_failed"
        assert len(model.contexts) - known == 2 * turns
        model.write = reading(agent).write
        assert ask(client, "a", first, "c", tools=TOOLS).choices[0].message.content == "a c"


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_that_calls_what_it_may_not_is_told_so_and_answers(agent, stream):
    def write(context):
        if "Answer without a tool" in context:
            return "<think>s</think><answer>done</answer>"
        return "<think>s</think><search>tea</search>"

    model = reading(agent, write)
    with served(agent) as client:
        answer = ask(client, "a", tools=TOOLS, tool_choice="none", stream=stream)
        if stream:
            deltas = [chunk.choices[0].delta for chunk in answer]
            assert "".join(delta.content or "" for delta in deltas) == "done"
            assert not any(delta.tool_calls for delta in deltas)
        else:
            choice = answer.choices[0]
            assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("done", None, "stop")
            assert answer.mem1["turns"] == 2
        assert "this was not called. Answer without a tool" in model.contexts[-1]
        model.write, known = lambda context: "<think>s</think><search>tea</search>", len(model.contexts)
        choice = ask(client, "b", tools=TOOLS, tool_choice="none").choices[0]
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("", None, "length")
        assert len(model.contexts) - known == 3, "all turns of an answer"


def test_native_calls_are_wanted_in_the_same_words(tokenizer):
    from support.helpers import tiny_model
    from support.tool_helpers import call, said, template_tokenizer

    tokenizer = template_tokenizer("qwen3")
    agent = Mem1Agent(tiny_model(vocab_size=len(tokenizer)), tokenizer, "tool_calls", max_turns=3)
    both = call("search", '{"query": "a"}') + "\n" + call("fetch", '{"query": "b"}')
    texts = iter([said("s", "It is 7."), said("s", both), said("s", call("fetch", '{"query": "c"}'))])
    model = reading(agent, lambda context: next(texts))
    with served(agent) as client:
        answer = ask(client, "a", tools=TOOLS, tool_choice=FETCH)
    (one,) = answer.choices[0].message.tool_calls
    assert (one.function.name, json.loads(one.function.arguments)) == ("fetch", {"query": "c"})
    assert "Call fetch now" in model.contexts[1] and model.contexts[2].count("this was not called") == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tool_choice": "required"}, r"'tool_choice' asks for a tool, which must be among 'tools', got \[\]"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "find"}}, "tools": TOOLS},
            r"asks for the tool 'find', which must be among 'tools', got \['search', 'fetch'\]",
        ),
        ({"tool_choice": "any", "tools": TOOLS}, "'none' or 'required', or name a function, got 'any'"),
        ({"tool_choice": {"type": "function"}, "tools": TOOLS}, "or name a function, got {'type': 'function'}"),
        ({"stop": ["a"] * 5}, "'stop' must be a text or a list of at most 4 texts"),
        ({"stop": ["a", ""]}, "none of them empty"),
    ],
)
def test_what_cannot_be_wanted_is_one_sentence(agent, options, sentence):
    reading(agent)
    with served(agent) as client, pytest.raises(openai.BadRequestError, match=sentence):
        ask(client, "a", **options)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "fetch"}])
def test_the_responses_api_wants_calls_in_its_own_form(agent, choice):
    model = reading(agent, obedient)
    tools = [{"type": "function", **one["function"]} for one in (TOOLS if choice != "required" else TOOLS[1:])]
    with served(agent) as client:
        found = client.responses.create(model="mem1", input="a", tools=tools, tool_choice=choice)
        (item,) = found.output
        assert (item.type, item.name, json.loads(item.arguments)) == ("function_call", "fetch", {"query": "tea"})
        told = found.tool_choice
        assert (told if isinstance(told, str) else told.model_dump()) == choice
        model.write = answering("no")
        with pytest.raises(openai.BadRequestError, match="the agent made none"):
            client.responses.create(model="mem1", input="a", tools=tools, tool_choice=choice)
        with pytest.raises(openai.BadRequestError, match="asks for the tool 'find'"):
            client.responses.create(
                model="mem1", input="a", tools=tools, tool_choice={"type": "function", "name": "find"}
            )


@pytest.mark.parametrize(
    ("text", "options", "ended", "reason"),
    [
        ("?", {}, "stop", "invalid_action"),
        ("<think>s</think><answer>ok</answer>", {}, "stop", "answer"),
        ("<think>s</think><answer>ok</answer>", {"max_tokens": 3}, "length", "truncated"),
        ("<think>s</think><search>tea</search>", {}, "length", "max_turns"),
    ],
)
def test_an_answer_is_cut_only_where_turns_or_tokens_ran_out(actor, tokenizer, text, options, ended, reason):
    agent = Mem1Agent(actor, tokenizer, PLAIN, **{**SETTINGS, "max_turns": 1})
    reading(agent, lambda context: text)
    with served(agent, environment_factory=LookupEnvironment) as client:
        answer = ask(client, "a", **options)
        assert (answer.choices[0].finish_reason, answer.mem1["stop_reason"]) == (ended, reason)
        *_, last = ask(client, "b", stream=True, **options)
        assert last.choices[0].finish_reason == ended
        limit = {"max_output_tokens": options["max_tokens"]} if options else {}
        found = client.responses.create(model="mem1", input="c", **limit)
        assert found.status == ("incomplete" if ended == "length" else "completed")
        assert (found.incomplete_details is not None) is (ended == "length")
