"""Tools through the gateway, with the openai client as it is: calls, results, streams, and the ids that were read and sampled."""

from __future__ import annotations

import json

import pytest
import torch
from support.helpers import oracle_logprobs
from support.tool_helpers import Says, call, said, template_tokenizer, tool_policy
from trl.chat_template_utils import add_response_schema

pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import openai

from mem1_trl import Mem1Agent, score_trajectories
from mem1_trl.gateway import GatewayEnvironment

SCHEMA = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Look the secret up.",
        "strict": True,
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
KEY, LOCK = call("search", '{"query": "key"}'), call("search", '{"query": "lock"}')


def named_results():
    """A tokenizer whose template begins each result with the name of its tool, as some do that TRL does not know."""
    tokenizer = template_tokenizer("qwen2_5")
    add_response_schema(tokenizer)
    opening = "'\\n<tool_response>\\n'"
    assert opening in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(opening, f"{opening} + message.name + ': '")
    return tokenizer


def played(texts, program, tokenizer=None, **settings):
    """One episode of a program of `(client, messages)` with a model that says `texts`; the trajectory, the tokenizer and the model."""
    tokenizer = template_tokenizer("qwen3") if tokenizer is None else tokenizer
    model = tool_policy(tokenizer)
    agent = Mem1Agent(model, tokenizer, **{"max_turns": 8, "max_completion_length": 200, **settings})
    agent._shared = Says(tokenizer, texts, model)

    def run(row, base_url):
        with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            program(client, [{"role": "user", "content": row["prompt"]}])
        return 1.0

    (trajectory,) = agent.run_batch([{"prompt": "Where?"}], [GatewayEnvironment(run)], keep_failures=True)
    assert trajectory.error is None, trajectory.error
    return trajectory, tokenizer, model


def whole(turn):
    return (*turn.prompt_ids, *turn.completion_ids)


def streamed(chunks):
    """The message that a stream is, put together as OpenAI's documentation says, and its finish reason."""
    content, calls, reason = "", {}, None
    for chunk in chunks:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            for piece in choice.delta.tool_calls or []:
                one = calls.setdefault(piece.index, {"id": "", "name": "", "arguments": ""})
                one["id"] += piece.id or ""
                one["name"] += piece.function.name or ""
                one["arguments"] += piece.function.arguments or ""
            reason = choice.finish_reason or reason
    told = [
        {"id": one["id"], "type": "function", "function": {"name": one["name"], "arguments": one["arguments"]}}
        for one in calls.values()
    ]
    return {"role": "assistant", "content": content or None, "tool_calls": told}, reason


@pytest.mark.parametrize("stream", [False, True])
def test_calls_in_parallel_and_their_results_extend_what_was_sampled(stream):
    """Two calls in one turn, their results, a further call, the answer: each turn reads the ids of the one before."""
    seen = []

    def program(client, messages):
        for _ in range(3):
            asked = dict(model="policy", messages=messages, tools=[SCHEMA])
            if stream:
                message, reason = streamed(client.chat.completions.create(**asked, stream=True))
                message = message if message["tool_calls"] else {"role": "assistant", "content": message["content"]}
            else:
                choice = client.chat.completions.create(**asked).choices[0]
                message, reason = choice.message.model_dump(exclude_none=True), choice.finish_reason
            seen.append((reason, message))
            messages.append(message)
            for one in message.get("tool_calls") or ():
                query = json.loads(one["function"]["arguments"])["query"]
                messages.append({"role": "tool", "tool_call_id": one["id"], "content": f"the {query} is 7"})

    texts = [said("two", f"{KEY}\n{LOCK}"), said("one", KEY), said("done", "It is 7.")]
    trajectory, tokenizer, model = played(texts, program)
    assert [reason for reason, _ in seen] == ["tool_calls", "tool_calls", "stop"]
    names = [[one["function"] for one in message.get("tool_calls") or ()] for _, message in seen]
    assert [[(one["name"], json.loads(one["arguments"])) for one in row] for row in names] == [
        [("search", {"query": "key"}), ("search", {"query": "lock"})],
        [("search", {"query": "key"})],
        [],
    ]
    assert seen[0][1]["content"].strip() == "<think>\ntwo\n</think>" and "It is 7." in seen[2][1]["content"]
    ids = [one["id"] for _, message in seen for one in message.get("tool_calls") or ()]
    assert len(set(ids)) == 3
    first, second, third = trajectory.turns
    assert second.prompt_ids[: len(whole(first))] == whole(first)
    assert third.prompt_ids[: len(whole(second))] == whole(second)
    results = "".join(f"\n<tool_response>\nthe {query} is 7\n</tool_response>" for query in ("key", "lock"))
    rest = f"\n<|im_start|>user{results}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(second.prompt_ids[len(whole(first)) :]) == rest
    assert [tokenizer.decode(turn.completion_ids) for turn in trajectory.turns] == texts
    for layout in ("packed", "per_turn"):
        (scored,) = score_trajectories(model, [trajectory], layout=layout)
        for mine, oracle, turn in zip(scored, oracle_logprobs(model, trajectory), trajectory.turns):
            torch.testing.assert_close(mine.cpu(), oracle, atol=1e-4, rtol=0)
            torch.testing.assert_close(mine.cpu(), torch.tensor(turn.logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5", "llama3_1", "glm4moe", "gptoss", "named"])
def test_results_are_written_with_the_names_of_their_calls(family):
    """The oracle is the template itself, given the names, which OpenAI's API leaves out."""
    tokenizer = named_results() if family == "named" else template_tokenizer(family)
    written = {
        "qwen2_5": f"{KEY}<|im_end|>",
        "named": f"{KEY}<|im_end|>",
        "llama3_1": '{"name": "search", "parameters": {"query": "key"}}<|eot_id|>',
        "glm4moe": "<tool_call>search\n<arg_key>query</arg_key>\n<arg_value>key</arg_value>\n</tool_call><|endoftext|>",
        "gptoss": ' to=functions.search<|channel|>commentary json<|message|>{"query": "key"}<|call|><|return|>',
    }[family]

    def program(client, messages):
        message = client.chat.completions.create(model="policy", messages=messages, tools=[SCHEMA]).choices[0].message
        (one,) = message.tool_calls
        assert (one.function.name, json.loads(one.function.arguments)) == ("search", {"query": "key"})
        result = {"role": "tool", "tool_call_id": one.id, "content": "7"}
        client.chat.completions.create(model="policy", messages=[*messages, message, result], tools=[SCHEMA])

    trajectory, _, _ = played([written, "7"], program, tokenizer)
    made = {"type": "function", "function": {"name": "search", "arguments": {"query": "key"}}}
    schema = {"type": "function", "function": {k: v for k, v in SCHEMA["function"].items() if k != "strict"}}
    chat = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [made]},
        {"role": "tool", "name": "search", "content": "7"},
    ]
    expected = tokenizer.apply_chat_template(chat, tools=[schema], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(trajectory.turns[1].prompt_ids) == expected


def test_a_stop_string_ends_a_turn_where_it_was_sampled():
    """What was sampled is kept up to the token that completes the text; the program is not told the text itself."""
    told = []

    def program(client, messages):
        for stop in ("STOP", ["never", "STOP"]):
            choice = client.chat.completions.create(model="policy", messages=messages, stop=stop).choices[0]
            told.append((choice.message.content, choice.finish_reason))

    trajectory, tokenizer, model = played(["one two STOP three<|im_end|>"] * 2, program)
    assert told == [("one two ", "stop")] * 2
    for turn, oracle in zip(trajectory.turns, oracle_logprobs(model, trajectory)):
        text = tokenizer.decode(turn.completion_ids)
        assert text.startswith("one two STOP") and "three" not in text
        assert len(turn.logprobs) == len(turn.completion_ids) == len(oracle)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"stop": ["a"] * 5}, "'stop' must be a text or a list of at most 4 texts"),
        ({"stop": [""]}, "'stop' must be a text or a list of at most 4 texts"),
        ({"tools": [SCHEMA], "tool_choice": {"type": "custom"}}, "'tool_choice' must be 'auto', 'none' or 'required'"),
        ({"tool_choice": "required"}, "'tool_choice' asks for a tool, which must be among 'tools'"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(options, sentence):
    def program(client, messages):
        with pytest.raises(openai.BadRequestError, match=sentence) as error:
            client.chat.completions.create(model="policy", messages=messages, **options)
        assert error.value.param == sentence.split("'")[1]
        client.chat.completions.create(model="policy", messages=messages)

    assert len(played(["a<|im_end|>"], program)[0].turns) == 1


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "search"}}])
def test_libraries_that_ask_for_a_call_are_answered_with_what_was_sampled(choice):
    def program(client, messages):
        asked = dict(model="policy", messages=messages, tools=[SCHEMA], tool_choice=choice)
        told = client.chat.completions.create(**asked).choices[0]
        assert told.message.tool_calls is None and told.finish_reason == "stop"

    played([said("no", "No call.")], program)


def test_one_call_at_a_time_where_that_is_asked():
    def program(client, messages):
        asked = dict(model="policy", messages=messages, tools=[SCHEMA])
        assert len(client.chat.completions.create(**asked).choices[0].message.tool_calls) == 2
        choice = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
        (one,) = choice.message.tool_calls
        assert json.loads(one.function.arguments) == {"query": "key"}

    played([said("two", f"{KEY}\n{LOCK}")] * 2, program)


@pytest.mark.parametrize(
    ("written", "told"),
    [("[1]", "[1]"), ("5", "5"), ('"{\\"query\\": \\"key\\"}"', '"{\\"query\\": \\"key\\"}"'), ("null", "{}")],
)
def test_arguments_that_are_no_object_are_told_as_they_are(written, told):
    """The model may write anything there; it is for the program to answer it, and the run goes on."""
    heard = []

    def program(client, messages):
        first = client.chat.completions.create(model="policy", messages=messages, tools=[SCHEMA]).choices[0].message
        heard.append(first.tool_calls[0].function.arguments)
        result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "Error: an object, please."}
        messages = [*messages, first.model_dump(exclude_none=True), result]
        second = client.chat.completions.create(model="policy", messages=messages, tools=[SCHEMA])
        heard.append(second.choices[0].message.content)

    trajectory, tokenizer, _ = played([said("a", call("search", written)), "it is 7"], program)
    assert heard == [told, "it is 7"]
    assert "Error: an object, please." in tokenizer.decode(trajectory.turns[1].prompt_ids)


RULES, ASKED = {"role": "developer", "content": "Say little."}, {"role": "user", "content": "Where?"}


def read_by_both_apis(tokenizer, messages):
    """What the model read, once for each API."""

    def program(client, _):
        client.chat.completions.create(model="policy", messages=messages)
        client.responses.create(model="policy", input=messages)

    trajectory, _, _ = played([f"x{tokenizer.eos_token}"] * 2, program, tokenizer)
    return [tokenizer.decode(turn.prompt_ids) for turn in trajectory.turns]


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3_1", "glm4moe", "gptoss"])
def test_a_developer_is_written_as_the_system(family):
    """Most templates know no developer, and some of them write nothing for what they do not know."""
    tokenizer = template_tokenizer(family)
    expected = tokenizer.apply_chat_template(
        [{**RULES, "role": "system"}, ASKED], add_generation_prompt=True, tokenize=False
    )
    assert "Say little." in expected
    assert read_by_both_apis(tokenizer, [RULES, ASKED]) == [expected] * 2


def test_a_template_that_knows_a_developer_writes_one():
    tokenizer = template_tokenizer("qwen2_5")
    tokenizer.chat_template = "{% for one in messages %}{{ '[rules]' if one.role == 'developer' else one.role + ':' }}{{ one.content }};{% endfor %}"
    assert read_by_both_apis(tokenizer, [RULES, ASKED]) == ["[rules]Say little.;user:Where?;"] * 2


@pytest.mark.parametrize("role", ["developer", "system"])
def test_instructions_that_the_template_leaves_out_are_refused(role):
    """The template of gpt-oss writes them at the beginning only."""

    def program(client, messages):
        late = {"role": role, "content": "Say little."}
        sentence = f"leaves out this message of the role '{role}', .* got 'Say little.'"
        with pytest.raises(openai.BadRequestError, match=sentence):
            client.chat.completions.create(model="policy", messages=[*messages, late])
        with pytest.raises(openai.BadRequestError, match=sentence):
            client.responses.create(model="policy", instructions="Be kind.", input=[late, *messages])
        client.responses.create(model="policy", instructions="Be kind.", input=messages)

    tokenizer = template_tokenizer("gptoss")
    trajectory, _, _ = played([f"x{tokenizer.eos_token}"], program, tokenizer)
    assert "Be kind." in tokenizer.decode(trajectory.turns[0].prompt_ids)


def test_names_and_refusals_are_read():
    tokenizer = template_tokenizer("qwen2_5")
    tokenizer.chat_template = (
        "{% for one in messages %}{{ one.role }}{{ ' ' + one.name if one.name }}:{{ one.content }};{% endfor %}"
    )
    chat = [{**ASKED, "name": "Bob"}, {"role": "assistant", "content": None, "refusal": "I may not."}, ASKED]

    def program(client, _):
        client.chat.completions.create(model="policy", messages=chat)

    trajectory, _, _ = played([f"x{tokenizer.eos_token}"], program, tokenizer)
    written = tokenizer.decode(trajectory.turns[0].prompt_ids)
    assert written == "user Bob:Where?;assistant:I may not.;user:Where?;"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("family", ["qwen3", "glm4moe", "gptoss"])
def test_a_thought_apart_is_read_where_the_template_writes_it(family, field):
    """The oracle is the template itself, given the thought under the name that it knows."""
    tokenizer = template_tokenizer(family)
    function = {"name": "search", "arguments": {"query": "key"}}
    made = {"id": "call_1", "type": "function", "function": {**function, "arguments": '{"query": "key"}'}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "7"}

    def program(client, messages):
        answer = {"role": "assistant", "content": None, field: "look for it", "tool_calls": [made]}
        client.chat.completions.create(model="policy", messages=[*messages, answer, result])

    trajectory, _, _ = played([f"x{tokenizer.eos_token}"], program, tokenizer)
    thought = {"thinking" if family == "gptoss" else "reasoning_content": "look for it"}
    chat = [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}], **thought},
        {"role": "tool", "name": "search", "content": "7"},
    ]
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert "look for it" in expected and tokenizer.decode(trajectory.turns[0].prompt_ids) == expected


@pytest.mark.parametrize(
    ("content", "thought", "shared"),
    [
        ("<think>\ntwo\n</think>", None, True),  # as it was answered
        ("<think>\ntwo\n</think>", "two", True),
        ("", "two", True),
        ("", "\ntwo\n", True),
        ("", None, False),
    ],
)
def test_a_thought_goes_back_in_the_content_or_apart_or_in_both(content, thought, shared):
    def program(client, messages):
        asked = dict(model="policy", tools=[SCHEMA])
        first = client.chat.completions.create(**asked, messages=messages).choices[0].message
        assert first.content == "<think>\ntwo\n</think>"
        message = {**first.model_dump(exclude_none=True), "content": content, "reasoning_content": thought}
        result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "7"}
        client.chat.completions.create(**asked, messages=[*messages, message, result])

    trajectory, tokenizer, _ = played([said("two", KEY), "7<|im_end|>"], program)
    first, second = trajectory.turns
    assert (second.prompt_ids[: len(whole(first))] == whole(first)) == shared
    assert tokenizer.decode(second.prompt_ids).count("two") == shared
