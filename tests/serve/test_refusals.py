"""What `mem1 serve` does not do, said to the openai client in one sentence."""

from __future__ import annotations

import dataclasses

import pytest
from support.reading_agent import reading
from support.serving import SEARCH, Talk, served

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
