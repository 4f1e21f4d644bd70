"""A request that holds only what is new is never answered as if nothing had been said before."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
from support.reading_agent import reading
from support.serving import SEARCH, Talk, served

from mem1_trl.serve import StateStore

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

WEATHER = {"type": "function", "function": {**SEARCH["function"], "name": "weather"}}
OF_RESPONSES = {"type": "function", **SEARCH["function"]}


class Session:
    """A client that names its session, and sends what is new."""

    def __init__(self, client, name="mine", **options):
        self.client, self.name, self.options = client, name, options

    def say(self, text, *before, **options):
        return self.send([*before, {"role": "user", "content": text}], **options).content

    def send(self, messages, **options):
        header = {"X-Mem1-Session": self.name}
        asked = {"model": "mem1", "messages": messages, "extra_headers": header, **self.options, **options}
        return self.client.chat.completions.create(**asked).choices[0].message


def overflow(agent):
    """Settings and a model, with which the result of a tool is longer than the context may be."""
    agent.settings = dataclasses.replace(agent.settings, max_context_length=160)
    return reading(agent)


LONG = "R" * 300


def test_nothing_follows_a_response_whose_conversation_has_ended(agent):
    model = overflow(agent)
    with served(agent) as client:
        ask = partial(client.responses.create, model="mem1", tools=[OF_RESPONSES])
        first = ask(input="tool tea")
        result = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": LONG}
        second = ask(input=[result], previous_response_id=first.id)
        assert second.status == "incomplete", "the result is longer than the context may be"
        known = len(model.contexts)
        sentence = r"ended with the last answer \(context_overflow\).* send the whole chat as 'input', without 'prev"
        with pytest.raises(openai.BadRequestError, match=sentence) as error:
            ask(input="what did I ask for?", previous_response_id=second.id)
        assert error.value.code == "context_length_exceeded" and len(model.contexts) == known
        whole = [{"role": "user", "content": "tea"}, {"role": "assistant", "content": "green"}]
        assert "tea" in ask(input=[*whole, {"role": "user", "content": "and?"}]).output_text


def test_nothing_follows_in_a_session_whose_conversation_has_ended_but_its_whole_chat(agent):
    model = overflow(agent)
    with served(agent) as client:
        session = Session(client, tools=[SEARCH])
        (call,) = session.send([{"role": "user", "content": "tool tea"}]).tool_calls
        session.send([{"role": "tool", "tool_call_id": call.id, "content": LONG}])
        known = len(model.contexts)
        with pytest.raises(
            openai.BadRequestError, match=r"\(context_overflow\).* send the whole chat, or name"
        ) as error:
            session.say("what did I ask for?")
        assert error.value.code == "context_length_exceeded" and len(model.contexts) == known
        before = [{"role": "user", "content": "tea"}, {"role": "assistant", "content": "green"}]
        assert session.say("and?", *before) == "user: tea assistant: green user: and?"
        assert session.say("more").endswith("and? more")


def test_a_session_whose_state_had_to_go_is_not_begun_anew(agent):
    reading(agent)
    store = StateStore(max_states=2)
    with served(agent, store=store) as client:
        session = Session(client)
        session.say("a")
        store.put("another", {})  # what was said goes first: it was kept before the name
        with pytest.raises(openai.BadRequestError, match="said in the session 'mine' is not known any more"):
            session.say("b")
        assert Session(client, "other").say("b") == "b"


def test_a_session_belongs_to_one_user(agent):
    reading(agent)
    with served(agent) as client:
        anna, ben = Session(client, user="anna"), Session(client, user="ben")
        assert anna.say("pin4711") == "pin4711"
        assert ben.say("hello") == "hello"
        assert Session(client).say("who") == "who"
        assert (anna.say("b"), ben.say("c")) == ("pin4711 b", "hello c")


def test_a_session_goes_on_with_its_own_tools_alone(agent):
    model = reading(agent)
    with served(agent) as client:
        session = Session(client, tools=[SEARCH])
        assert session.say("hello") == "hello"
        for tools in ([WEATHER], [SEARCH, WEATHER], []):
            with pytest.raises(
                openai.BadRequestError, match="'tools' must be those with which the session 'mine' began"
            ):
                session.say("rain?", tools=tools)
        assert session.say("more") == "hello more"
        changed = [{"role": "system", "content": "12:01"}, {"role": "user", "content": "hello"}]
        changed.append({"role": "assistant", "content": "Hello"})
        session.say("rain?", *changed, tools=[WEATHER])  # as a chat without a session: its history is there
        assert "assistant: Hello\nuser: rain?" in model.contexts[-1]
        session.options = {"tools": [WEATHER]}
        assert session.say("snow?").endswith("rain? snow?")


def test_no_call_now_is_the_same_conversation(agent):
    model = reading(agent)
    with served(agent) as client:
        talk = Talk(client, tools=[SEARCH])
        talk.say("a")
        talk.options["tool_choice"] = "none"
        assert talk.say("b").choices[0].message.content == "a b"
        talk.options["tool_choice"] = "auto"
        assert talk.say("tool tea").choices[0].finish_reason == "tool_calls"
        assert model.contexts[-1].startswith("a<think>a b</think>")
        ask = partial(client.responses.create, model="mem1", tools=[OF_RESPONSES])
        first = ask(input="a", tool_choice="none")
        second = ask(input="b", tool_choice="none", previous_response_id=first.id)
        assert (second.output_text, second.tool_choice) == ("a b", "none")
        assert [tool.name for tool in second.tools] == ["search"]
        assert ask(input="tool tea", previous_response_id=second.id).output[0].type == "function_call"
