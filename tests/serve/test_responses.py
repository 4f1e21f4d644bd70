"""OpenAI's Responses API of `mem1 serve` and of the gateway, spoken to by the openai client as it is."""

from __future__ import annotations

import json

import pytest
from support.reading_agent import reading

pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

import openai

from mem1_trl import Mem1Agent
from mem1_trl.gateway import GatewayEnvironment
from mem1_trl.serve import StateStore, serve_agent

SEARCH = {
    "type": "function",
    "name": "search",
    "description": "Search.",
    "strict": True,
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
}


@pytest.fixture
def client(agent):
    agent.reads = reading(agent)
    with serve_agent(agent) as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_answers_follow_each_other_by_their_ids(agent, client):
    first = client.responses.create(model="mem1", input="a", instructions="say")
    assert (first.output_text, first.status, first.object) == ("say a", "completed", "response")
    assert [item.type for item in first.output] == ["message"] and first.usage.input_tokens > 0
    second = client.responses.create(model="mem1", input="b", previous_response_id=first.id)
    other = client.responses.create(model="mem1", input="c", previous_response_id=first.id, instructions="say")
    assert (second.output_text, other.output_text) == ("say a b", "say a c")  # each goes on from the first
    third = client.responses.create(
        model="mem1", input=[{"role": "user", "content": "d"}], previous_response_id=second.id
    )
    assert third.output_text == "say a b d" and third.previous_response_id == second.id
    lengths = {
        len(context) - len(context.split("<think>")[-1].split("</think>")[0]) for context in agent.reads.contexts
    }
    assert third.usage.input_tokens == len(agent.tokenizer(agent.reads.contexts[-1])["input_ids"])
    assert len(lengths) <= 2 + 2  # what is read besides the state does not grow


def test_a_client_that_sends_everything_goes_on_from_the_same_state(agent, client):
    """The same chat through either API has one state."""
    said = [{"role": "user", "content": "a"}]
    answer = client.responses.create(model="mem1", input=said, store=False)
    said += [item.model_dump() for item in answer.output]
    said.append({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]})
    assert client.responses.create(model="mem1", input=said).output_text == "a b"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "c"}]
    assert client.chat.completions.create(model="mem1", messages=chat).choices[0].message.content == "a c"
    assert all("<think>a</think>" in context for context in agent.reads.contexts[1:])
    with pytest.raises(openai.BadRequestError, match=r"is not known \(any more\): send the whole chat"):
        client.responses.create(model="mem1", input="x", previous_response_id=answer.id)  # it was not to be stored


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_made_by_the_client(agent, client, stream):
    asked = dict(model="mem1", input="tool tea", tools=[SEARCH])
    if stream:
        with client.responses.stream(**asked) as events:
            kinds = [event.type for event in events]
            found = events.get_final_response()
        assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
        assert kinds[-3:] == [
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    else:
        found = client.responses.create(**asked)
    (call,) = found.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "search", {"query": "tea"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "green"}
    after = client.responses.create(model="mem1", input=[result], previous_response_id=found.id, tools=[SEARCH])
    assert after.output_text == "tool tea green"
    whole = [{"role": "user", "content": "tool tea"}, call.model_dump(exclude={"parsed_arguments"}), result]
    assert client.responses.create(model="mem1", input=whole, tools=[SEARCH]).output_text == "tool tea green"


def test_a_stream_is_the_same_answer_in_pieces(agent, client):
    with client.responses.stream(model="mem1", input="one two three") as events:
        seen = list(events)
        found = events.get_final_response()
    pieces = [event.delta for event in seen if event.type == "response.output_text.delta"]
    assert found.output_text == "".join(pieces) == "one two three" and len(pieces) > 3
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert found.usage.output_tokens > 0 and found.status == "completed"
    assert client.responses.create(model="mem1", input="four", previous_response_id=found.id).output_text.endswith(
        "four"
    )
    raw = client.responses.create(model="mem1", input="x", stream=True)
    assert [event.type for event in raw][-1] == "response.completed"


def test_a_cut_answer_is_incomplete(client):
    found = client.responses.create(model="mem1", input="b" * 40, max_output_tokens=12)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert found.max_output_tokens == 12


def test_answers_are_found_again_after_a_restart_and_only_by_their_key(agent, tmp_path):
    from mem1_trl.wire.app import WireLimits

    reading(agent)
    limits = WireLimits(keys=("one", "two"))
    with serve_agent(agent, store=StateStore(tmp_path), limits=limits) as url:
        mine = openai.OpenAI(base_url=url, api_key="one", max_retries=0)
        first = mine.responses.create(model="mem1", input="a")
    with serve_agent(agent, store=StateStore(tmp_path), limits=limits) as url:
        mine, other = (openai.OpenAI(base_url=url, api_key=key, max_retries=0) for key in ("one", "two"))
        assert mine.responses.create(model="mem1", input="b", previous_response_id=first.id).output_text == "a b"
        with pytest.raises(openai.BadRequestError, match="is not known"):
            other.responses.create(model="mem1", input="b", previous_response_id=first.id)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"background": True}, "'background' is not supported"),
        ({"text": {"format": {"type": "json_object"}}}, r"'text\.format' is not supported"),
        ({"text": {"verbosity": "low"}}, r"'text\.verbosity' is not supported"),
        ({"text": {"format": {"type": "text"}, "colour": 1}}, r"'text\.colour' is not supported"),
        ({"tools": [{"type": "web_search"}]}, "Each of 'tools' must be of type 'function'"),
        ({"input": []}, "'input' must be a text or a list of at least one item"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"input\[0\] is of type 'item_reference'"),
        ({"input": [{"role": "boss", "content": "x"}]}, r"input\[0\] must be an object with a 'role'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "text only"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "'tool_call_id'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(client, options, sentence):
    with pytest.raises(openai.BadRequestError, match=sentence):
        client.responses.create(**{"model": "mem1", "input": "a", **options})


def test_what_the_agent_reads_each_time_stays(client):
    first = client.responses.create(model="mem1", input="a", instructions="say")
    for options in ({"instructions": "shout"}, {"tools": [SEARCH]}):
        with pytest.raises(openai.BadRequestError, match="must be those of the first response"):
            client.responses.create(model="mem1", input="b", previous_response_id=first.id, **options)


def test_a_program_speaks_it_through_the_gateway(actor, tokenizer):
    agent = Mem1Agent(actor, tokenizer, max_completion_length=8, max_turns=4)

    def program(row, base_url):
        with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            items = [{"role": "user", "content": "a"}]
            first = client.responses.create(model="policy", input=items, instructions="be brief")
            items += [item.model_dump() for item in first.output] + [{"role": "user", "content": "b"}]
            client.responses.create(model="policy", input=items, instructions="be brief")
            with pytest.raises(openai.BadRequestError, match="send the whole chat"):
                client.responses.create(model="policy", input="c", previous_response_id=first.id)
        return 1.0

    (trajectory,) = agent.run_batch([{"prompt": "q"}], [GatewayEnvironment(program)], keep_failures=True)
    assert trajectory.error is None and len(trajectory.turns) == 2
    texts = [tokenizer.decode(turn.prompt_ids) for turn in trajectory.turns]
    assert texts[0] == "system:be brief;user:a;assistant:" and texts[1].startswith(texts[0])
