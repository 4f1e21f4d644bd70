"""What an agent reads of results that are longer than an observation may be."""

from __future__ import annotations

import json

import pytest
from support.hostile_text import byte_bpe
from support.scripted_agent import scripted
from support.tool_helpers import template_tokenizer
from support.trainer_helpers import SHORT

from mem1_trl import Mem1Agent, Mem1Protocol
from mem1_trl.rollout.observations import ObservationEncoder
from mem1_trl.rollout.settings import AgentSettings

TEXTS = ["鉄" * 200, "🙂é" * 200, "a鉄 " * 200, "\ufffd鉄" * 200]
BUDGETS = range(121, 128)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_tool_that_says_much_is_cut_between_characters(actor, tokenizer, budget):
    def search(query: str) -> str:
        """Search."""
        return "鉄" * 80

    settings = {"max_observation_length": budget, "max_turns": 2, "conversational": False}
    texts = ["<think>a</think><search>b</search>"] * 2
    agent = scripted(Mem1Agent(actor, tokenizer, SHORT, **settings), tokenizer, texts)
    turn = agent.run("q?", tools=[search]).turns[0]
    assert "\ufffd" not in turn.observation and "鉄" + SHORT.truncation_marker in turn.observation
    assert budget - 3 < turn.observation_tokens <= budget


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_left_of_a_text_is_its_beginning(text):
    tokenizer, protocol = byte_bpe(), Mem1Protocol()
    marker = protocol.truncation_marker
    for budget in BUDGETS:
        observations = ObservationEncoder(protocol.syntax(tokenizer), AgentSettings(max_observation_length=budget))
        ids = observations.encode_results([text], ["search"], 3, ["search"])
        messages = observations.encode_message(text, 3, ["search"])
        quoted = observations.quote(text, ["search"])
        for said in (tokenizer.decode(ids.results[0]), tokenizer.decode(messages.results[0]), quoted):
            assert said.endswith(marker) and text.startswith(said.removesuffix(marker)), budget


@pytest.mark.parametrize("text", TEXTS)
def test_a_result_that_a_template_writes_as_json_is_cut_between_characters_and_escapes(text):
    tokenizer, protocol = template_tokenizer("llama3_1", 500), Mem1Protocol.tool_calls()
    text = text.replace(" ", "\n")
    for budget in BUDGETS:
        observations = ObservationEncoder(protocol.syntax(tokenizer), AgentSettings(max_observation_length=budget))
        (ids,) = observations.encode_results([text], ["search"], 3, ["search"]).results
        said = json.loads(f'"{tokenizer.decode(ids)}"')
        assert text.startswith(said.removesuffix(protocol.truncation_marker)), budget
