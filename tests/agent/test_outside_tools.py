"""Tools that run elsewhere: the agent asks, whoever plays answers, in this process or in another."""

from __future__ import annotations

import dataclasses
import json

import pytest
from support.helpers import tiny_model
from support.scripted_agent import scripted
from support.serving import served
from support.tool_helpers import SEARCH_CALL, call, said, template_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason
from mem1_trl.agent.outside_tools import environment_of_schemas
from mem1_trl.environment_runtime.actions import ActionSet

SETTINGS = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 4}
SCHEMA = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Look the secret up.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
TEXTS = [
    "<think>a</think><search>tea</search>",
    "<think>b</think><answer>7</answer>",
    "<think>c</think><answer>8</answer>",
]


def test_outside_or_inside_the_turns_are_the_same(actor, tokenizer):
    class Inside:
        def search(self, query: str) -> str:
            """Look the secret up."""
            return "7"

    expected = scripted(Mem1Agent(actor, tokenizer, SHORT, **SETTINGS), tokenizer, TEXTS).run("q?", Inside())
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **SETTINGS), tokenizer, TEXTS)
    episode = agent.start("q?", schemas=[SCHEMA])
    turn = episode.step()
    assert turn.observation is None and not episode.done
    assert [(call.method, dict(call.arguments)) for call in episode.calls] == [("search", {"query": "tea"})]
    with pytest.raises(RuntimeError, match="1 calls wait for their results"):
        episode.step()
    with pytest.raises(ValueError, match="one result for each of 1 calls, got 2"):
        episode.give(["7", "8"])
    episode = agent.resume(json.loads(json.dumps(episode.to_dict())))  # in another process
    episode.give(["7"])
    assert episode.calls == [] and episode.run().turns == expected.turns
    assert episode.answer == "7"


def test_an_episode_without_its_past_goes_on_as_the_whole_one_does(actor, tokenizer):
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **SETTINGS), tokenizer, [*TEXTS, TEXTS[2], TEXTS[2]])
    episode = agent.start("q?", schemas=[SCHEMA])
    episode.step()
    episode.give(["7"])
    episode.run()
    whole, short = episode.to_dict(), episode.to_dict(past=False)
    assert len(whole["trajectory"]["turns"]) == 2 and len(short["trajectory"]["turns"]) == 1
    one, other = agent.resume(whole), agent.resume(short)
    assert [found.send("and?") for found in (one, other)] == ["8", "8"]
    assert one.trajectory.turns[-1] == other.trajectory.turns[-1]
    assert len(other.to_dict(past=False)["trajectory"]["turns"]) == 1


def test_turns_that_were_forgotten_count(actor, tokenizer):
    """Kept without its past after every turn, an episode is told the same numbers of turns, and ends with the same one; so after a message."""
    found = []
    for past in (True, False):
        agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **SETTINGS), tokenizer, TEXTS[:1] * 8)
        episode = agent.start("q?", schemas=[SCHEMA])
        read = []
        for message in (None, "and?"):
            if message is not None:
                episode.add_message(message)
            for _ in range(4):
                episode = agent.resume(json.loads(json.dumps(episode.to_dict(past=past))))
                read.append(tokenizer.decode(episode.step().prompt_ids))
                if episode.calls:
                    episode.give(["7"])
            assert episode.done and episode.trajectory.stop_reason is StopReason.MAX_TURNS
        assert len(episode.to_dict(past=past)["trajectory"]["turns"]) == (8 if past else 1)
        found.append(read)
    assert found[0] == found[1]
    told = [text.partition("<information>")[2].partition(";")[0] for text in found[1]]
    assert told == ["", "3", "2", "last", "4", "3", "2", "last"]


def test_calls_of_the_last_turn_are_not_waited_for(actor, tokenizer):
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **{**SETTINGS, "max_turns": 1}), tokenizer, TEXTS)
    episode = agent.start("q?", schemas=[SCHEMA])
    assert episode.run().stop_reason is StopReason.MAX_TURNS and episode.calls == []


def test_a_model_with_native_calls_reads_the_schemas_as_they_are():
    tokenizer = template_tokenizer("qwen3")
    schema = {**SCHEMA, "function": {**SCHEMA["function"], "description": "Unlike any other."}}
    agent = Mem1Agent(tiny_model(vocab_size=len(tokenizer)), tokenizer, "tool_calls", max_turns=2)
    episode = agent.start("q?", schemas=[schema])
    prompt = tokenizer.decode(episode._episode.prompt_ids)
    assert "Unlike any other." in prompt and json.dumps(schema["function"]["parameters"]) in prompt


@pytest.mark.parametrize(
    "rule, action", [("on_demand", call("rewrite", '{"summary": "s"}')), ("fold", call("branch", '{"task": "t"}'))]
)
def test_an_action_of_the_context_rule_is_taken_once_though_the_calls_beside_it_wait_in_a_file(rule, action):
    tokenizer = template_tokenizer("qwen3")
    texts = [said("a", SEARCH_CALL), said("b", f"{action}\n{SEARCH_CALL}")]

    def play(resumed):
        model = tiny_model(vocab_size=len(tokenizer))
        agent = Mem1Agent(model, tokenizer, "tool_calls", max_turns=6, context=rule, max_completion_length=400)
        episode = scripted(agent, tokenizer, texts).start("q?", schemas=[SCHEMA])
        episode.step()
        episode.give(["0"])
        episode.step()
        if resumed:
            episode = agent.resume(json.loads(json.dumps(episode.to_dict(past=False))))
        assert [one.method for one in episode.calls] == ["search"]
        episode.give(["7"])
        return episode

    whole, resumed = play(False), play(True)
    assert resumed.trajectory.turns == whole.trajectory.turns
    assert "Error" not in whole.trajectory.turns[-1].observation
    assert resumed.trajectory.metrics["failed_actions"] == whole.trajectory.metrics["failed_actions"] == 0.0


def test_one_kind_of_tools_at_a_time(actor, tokenizer):
    agent = Mem1Agent(actor, tokenizer, SHORT, **SETTINGS)
    with pytest.raises(TypeError, match="not two of them"):
        agent.start("q?", LookupEnvironment(), schemas=[SCHEMA])


def schema_of(name, **properties):
    described = {one: {"type": "string", "description": text} for one, text in properties.items()}
    function = {
        "name": name,
        "description": "Look it up. Returns: a text.",
        "parameters": {"type": "object", "properties": described},
    }
    return {"type": "function", "function": function}


def test_a_tool_may_have_an_argument_called_arguments(actor, tokenizer):
    schema = {"type": "function", "function": {"name": "call", "description": "Call.", "parameters": {
        "type": "object", "properties": {"tool": {"type": "string"}, "arguments": {"type": "object"}}, "required": ["tool"]}}}  # fmt: skip
    text = '<think>a</think><call>{"tool": "weather", "arguments": {"days": 3}}</call>'
    episode = scripted(Mem1Agent(actor, tokenizer, SHORT, **SETTINGS), tokenizer, [text]).start("q?", schemas=[schema])
    episode.step()
    assert [dict(one.arguments) for one in episode.calls] == [{"tool": "weather", "arguments": {"days": 3}}]
    tokenizer = template_tokenizer()
    Mem1Agent(tiny_model(vocab_size=len(tokenizer)), tokenizer, Mem1Protocol.tool_calls(), max_turns=3).start(
        "q?", schemas=[schema]
    )


@pytest.mark.parametrize(
    "text", ["The unit (choices: celsius, fahrenheit)", "A query. Returns: the best page.", "Args: none"]
)
def test_a_tool_may_be_described_by_any_words(text):
    """What they would mean in a docstring is nothing to a client that has sent a schema."""
    tokenizer = template_tokenizer()
    agent = Mem1Agent(tiny_model(vocab_size=len(tokenizer)), tokenizer, Mem1Protocol.tool_calls(), max_turns=3)
    schema = schema_of("look", first=text, second="Another.")
    episode = agent.start("q?", schemas=[schema])
    assert text in tokenizer.decode(episode.to_dict()["prompt_ids"])


DEFINED = {
    "Point": {"type": "object", "properties": {"x": {"type": "integer"}}},
    "Json": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#/$defs/Json"}}]},
    "a/b~": {"type": "boolean"},
}
KINDS = [
    ({"type": "integer"}, "3", 3),
    ({"type": ["integer", "null"]}, "3", 3),
    ({"type": ["integer", "null"]}, "null", None),
    ({"type": "integer", "nullable": True}, "null", None),
    ({"type": ["number", "integer"]}, "3", 3),
    ({"type": ["string", "null"]}, "3", "3"),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "3", 3),
    ({"oneOf": [{"type": "boolean"}, {"type": "integer"}]}, "true", True),
    ({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}, '["a"]', ["a"]),
    ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, '["a"]', '["a"]'),
    ({"anyOf": [{}, {"type": "integer"}]}, "3", "3"),  # a text may be meant
    ({"type": "array", "items": {"type": "integer"}}, '["1"]', [1]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"a": "1"}', {"a": 1}),
    ({"type": "object", "anyOf": [{"required": ["x"]}]}, '{"x": 1}', {"x": 1}),
    ({"items": {"type": "integer"}}, "[1]", [1]),
    ({"enum": [1, 2]}, "1", 1),
    ({"enum": ["a", None]}, "null", None),
    ({"enum": [[1], [2]]}, "[2]", [2]),
    ({"const": True}, "true", True),
    ({"$ref": "#/$defs/Point"}, '{"x": 1}', {"x": 1}),
    ({"allOf": [{"$ref": "#/$defs/Point"}]}, '{"x": 1}', {"x": 1}),
    ({"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]}, '{"x": 1}', {"x": 1}),
    ({"$ref": "#/$defs/Json"}, "[1, [2]]", [1, [2]]),
    ({"$ref": "#/$defs/a~1b~0"}, "true", True),
    ({"$ref": "#/$defs/Nothing"}, "3", "3"),
    ({}, "3", "3"),
]


def schema_with(described):
    parameters = {"type": "object", "properties": {"n": described}, "$defs": DEFINED}
    return {"type": "function", "function": {"name": "f", "description": "Do it.", "parameters": parameters}}


@pytest.mark.parametrize(("described", "text", "value"), KINDS)
def test_a_text_becomes_what_the_schema_of_its_argument_says(actor, tokenizer, described, text, value):
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **SETTINGS), tokenizer, [f"<think>a</think><f>{text}</f>"])
    episode = agent.start("q?", schemas=[schema_with(described)])
    episode.step()
    ((found,),) = [one.arguments.values() for one in episode.calls]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("described", [one for one, _, _ in KINDS])
def test_every_schema_can_be_offered_to_a_model_with_native_calls(described):
    native = template_tokenizer("qwen3", 400)
    agent = Mem1Agent(tiny_model(vocab_size=len(native)), native, "tool_calls", max_turns=2)
    schema = schema_with(described)
    episode = agent.start("q?", schemas=[schema])
    assert json.dumps(schema["function"]["parameters"]) in native.decode(episode._episode.prompt_ids)


def test_a_value_that_is_none_of_an_enumeration_is_said(actor, tokenizer):
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **SETTINGS), tokenizer, ["<think>a</think><f>3</f>", TEXTS[1]])
    agent.protocol = agent.syntax.protocol = dataclasses.replace(SHORT, on_invalid_action="observe")
    episode = agent.start("q?", schemas=[schema_with({"enum": [1, 2]})])
    assert "'3' is not one of 1, 2" in episode.step().observation and episode.calls == []


def test_schemas_that_refer_to_each_other_without_end_are_read_in_time():
    """Each of forty holds the next one three times: all of them together would be 3^40 types."""
    defined = {
        f"A{number}": {"anyOf": [
            {"type": "array", "items": {"$ref": f"#/$defs/A{number + 1}"}},
            {"type": "object", "additionalProperties": {"$ref": f"#/$defs/A{number + 1}"}},
            {"type": "array", "items": {"type": "array", "items": {"$ref": f"#/$defs/A{number + 1}"}}},
        ]} for number in range(40)
    }  # fmt: skip
    schema = schema_with({"$ref": "#/$defs/A0"})
    schema["function"]["parameters"]["$defs"] = defined
    assert ActionSet(environment_of_schemas([schema]), Mem1Protocol.tool_calls(), needs_reset=False).tags == {"f": "f"}


def test_the_tools_of_a_client_of_a_server_get_their_kinds(actor, tokenizer):
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **SETTINGS), tokenizer, ["<think>a</think><f>3</f>"])
    tools = [schema_with({"anyOf": [{"type": "integer"}, {"type": "null"}]})]
    with served(agent) as client:
        asked = [{"role": "user", "content": "q?"}]
        answer = client.chat.completions.create(model="mem1", messages=asked, tools=tools)
    (made,) = answer.choices[0].message.tool_calls
    assert json.loads(made.function.arguments) == {"n": 3}
