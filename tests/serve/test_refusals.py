"""What `mem1 serve` does not do, said to the openai client in one sentence."""

from __future__ import annotations

import dataclasses

import pytest
from support.reading_agent import reading
from support.serving import PLAIN, SEARCH, SETTINGS, Talk, served
from support.trainer_helpers import LookupEnvironment, chat_tokenizer

from mem1_trl import Mem1Agent

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


def mail(argument):
    """A tool with one argument."""
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}}
    return {"type": "function", "function": {"name": "mail", "parameters": parameters}}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": 2}, "'n' is not supported"),
        ({"logprobs": True}, "'logprobs' is not supported"),
        ({"temperature": 3}, "'temperature' has a value that it cannot have, 3"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "boss", "content": "x"}]}, r"messages\[0\] must be an object with a 'role'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "The last message must be one of the user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "text only"),
        (
            {"tools": [{"type": "function", "function": {"name": "get-it"}}]},
            r"The tool 'get-it' cannot be offered .* letters, digits and underscores",
        ),
        ({"tools": [{"type": "function", "function": {"name": "think"}}]}, "think"),
        ({"tools": [mail("from")]}, "The tool 'mail' has an argument 'from', which cannot be one here"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(agent, options, sentence):
    reading(agent)
    with served(agent) as client, pytest.raises(openai.BadRequestError, match=sentence):
        client.chat.completions.create(**{"model": "mem1", "messages": [{"role": "user", "content": "a"}], **options})


def test_a_model_that_is_not_here_is_not_found(agent):
    reading(agent)
    with served(agent, name="ours/mem1") as client:
        assert client.models.retrieve("ours/mem1").id == "ours/mem1"
        asked = (
            lambda model: client.models.retrieve(model),
            lambda model: client.responses.create(model=model, input="a"),
            lambda model: client.chat.completions.create(model=model, messages=[{"role": "user", "content": "a"}]),
        )
        for ask in asked:
            with pytest.raises(openai.NotFoundError, match=r"must be .ours/mem1., .* got .gpt-4o.") as error:
                ask("gpt-4o")
            assert error.value.code == "model_not_found"


def test_an_address_that_is_not_here_is_an_error_that_clients_read(agent):
    with served(agent) as client:
        with pytest.raises(openai.NotFoundError) as error:
            client.embeddings.create(model="mem1", input="a")
        sentence = "POST /v1/embeddings cannot be answered: there is no such address."
        assert error.value.body["message"] == sentence and error.value.type == "invalid_request_error"
        with pytest.raises(openai.APIStatusError) as error:
            client.get("/chat/completions", cast_to=object)
        assert error.value.status_code == 405
        assert (
            error.value.body["message"]
            == "GET /v1/chat/completions cannot be answered: /v1/chat/completions takes POST."
        )


def test_a_chat_that_is_too_long_is_said_to_the_client(agent):
    reading(agent)
    agent.settings = dataclasses.replace(agent.settings, max_context_length=40)
    with served(agent) as client, pytest.raises(openai.BadRequestError) as error:
        Talk(client).say("long " * 60)
    assert error.value.code == "context_length_exceeded"
    assert "must have at most 40 tokens" in str(error.value) and "row" not in str(error.value)


def test_one_call_at_a_time_is_promised_only_where_a_turn_has_one(agent):
    from support.helpers import tiny_model
    from support.tool_helpers import template_tokenizer

    reading(agent)
    with served(agent) as client:  # with tags
        talk = Talk(client, tools=[SEARCH], parallel_tool_calls=False)
        assert talk.say("tool tea").choices[0].finish_reason == "tool_calls"
    tokenizer = template_tokenizer("qwen3")
    native = Mem1Agent(tiny_model(vocab_size=len(tokenizer)), tokenizer, "tool_calls")
    with served(native) as client, pytest.raises(openai.BadRequestError, match="'parallel_tool_calls' must be true"):
        Talk(client, tools=[SEARCH], parallel_tool_calls=False).say("tea")


NO_SYSTEM_ROLE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)


def test_a_system_prompt_is_told_to_a_model_whose_template_has_no_such_role(actor):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = NO_SYSTEM_ROLE + tokenizer.chat_template
    agent = Mem1Agent(actor, tokenizer, PLAIN, **{**SETTINGS, "conversational": True})
    model = reading(agent, lambda context: "<think>s</think><answer>ok</answer>")
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who?"}]
    with served(agent) as client:
        client.chat.completions.create(model="mem1", messages=messages)
    assert "Be short.\n\nWho?" in model.contexts[0]


def test_a_template_that_takes_no_message_of_the_user_is_one_sentence(actor):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('There must be an image') }}"
    agent = Mem1Agent(actor, tokenizer, PLAIN, **{**SETTINGS, "conversational": True})
    reading(agent)
    with served(agent) as client, pytest.raises(openai.BadRequestError, match="There must be an image"):
        client.chat.completions.create(model="mem1", messages=[{"role": "user", "content": "Who?"}])


TIME = {"type": "function", "function": {"name": "get_time"}}


@pytest.mark.parametrize(
    ("action_tags", "tools", "sentence"),
    [
        ({"find": "search"}, [TIME], "'tools' must have search, since this agent was trained with the tools search only, got get_time."),
        ({"find": "search"}, [], "'tools' must have search, since this agent was trained with the tools search only, got none."),
        ({"a": "search", "b": "open"}, [SEARCH], "'tools' must have open, search, since this agent was trained with the tools open, search only, got search."),
        (None, [{"type": "function", "function": {"name": "think"}}], "The tool 'think' cannot be offered to this agent, for which that word is a tag: give the tool another name."),
    ],
)  # fmt: skip
def test_tools_that_an_agent_was_not_trained_with_are_refused_in_words_of_the_client(
    actor, tokenizer, action_tags, tools, sentence
):
    agent = Mem1Agent(actor, tokenizer, dataclasses.replace(PLAIN, action_tags=action_tags), **SETTINGS)
    reading(agent)
    with served(agent) as client, pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model="mem1", messages=[{"role": "user", "content": "a"}], **({"tools": tools} if tools else {})
        )
    assert error.value.body["message"] == sentence and error.value.param == "tools"


def test_tools_that_an_agent_was_trained_with_are_those_of_the_client_or_of_the_server(actor, tokenizer):
    agent = Mem1Agent(actor, tokenizer, dataclasses.replace(PLAIN, action_tags={"search": "search"}), **SETTINGS)
    reading(agent)
    with served(agent, environment_factory=LookupEnvironment) as client:
        assert Talk(client).say("a").choices[0].message.content == "a"
        (call,) = Talk(client, tools=[TIME, SEARCH]).say("tool tea").choices[0].message.tool_calls
        assert call.function.name == "search"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"model": "gpt"}, "model"),
        ({"tools": [{"type": "function", "function": {"name": "get-it"}}]}, "tools"),
        ({"tools": [SEARCH], "tool_choice": "required", "max_tokens": 3}, "tool_choice"),
        ({"messages": [{"role": "user", "content": "long " * 60}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
    ],
)
def test_the_argument_that_an_agent_cannot_follow_is_named(agent, options, param, stream):
    reading(agent, lambda context: "<think>s</think><answer>ok</answer>")
    agent.settings = dataclasses.replace(agent.settings, max_context_length=100, max_turns=1)
    asked = {"model": "mem1", "messages": [{"role": "user", "content": "a"}], "stream": stream, **options}
    with served(agent) as client, pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(**asked)
    assert error.value.param == param


def test_the_responses_api_names_its_own_arguments(agent):
    reading(agent)
    agent.settings = dataclasses.replace(agent.settings, max_context_length=40)
    with served(agent) as client:
        for options, param in (
            ({"input": "long " * 60}, "input"),
            ({"previous_response_id": "resp_x"}, "previous_response_id"),
            ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
        ):
            with pytest.raises(openai.BadRequestError) as error:
                client.responses.create(**{"model": "mem1", "input": "a", **options})
            assert error.value.param == param
