"""Tools that run elsewhere: the agent asks, whoever plays answers, in this process or in another."""

from __future__ import annotations

import json

import pytest
from support.helpers import tiny_model
from support.scripted_agent import scripted
from support.tool_helpers import SEARCH_CALL, call, said, template_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason

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
