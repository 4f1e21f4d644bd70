"""
`Mem1Agent` on `vllm.LLM`, against a stand-in for the engine.

vLLM itself needs a GPU. What is tested is our side of its interface: contexts and one set of sampling parameters for each go in, token ids
and log-probs come out, and episodes are those of the same model in transformers.
"""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
from support.helpers import oracle_logprobs
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.stopping import StopStrings
from mem1_trl.rollout.vllm_generator import VllmGenerator

SETTINGS = {"max_turns": 4, "max_observation_length": 40, "max_completion_length": 64, "conversational": False}
DATA = [{"prompt": f"q{number}?", "secret": str(number % 3)} for number in range(4)]


class Engine:
    """Samples as vLLM does: up to a stop string, which is included if that was asked for, and with raw log-probs."""

    def __init__(self, model, tokenizer, mode="raw_logprobs", longest=4096):
        self.model, self.tokenizer = model, tokenizer
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(logprobs_mode=mode, max_model_len=longest, model="org/name")
        )
        self.asked: list[tuple[list[int], SimpleNamespace]] = []

    def get_tokenizer(self):
        return self.tokenizer

    def generate(self, prompts, sampling_params, use_tqdm):
        assert not use_tqdm
        return [
            self._one(prompt["prompt_token_ids"], own) for prompt, own in zip(prompts, sampling_params, strict=True)
        ]

    def _one(self, prompt, own):
        self.asked.append((prompt, own))
        settings = AgentSettings(max_completion_length=own.max_tokens, temperature=own.temperature)
        if own.temperature and hasattr(own, "seed"):
            torch.manual_seed(own.seed % 2**31)
        stops = getattr(own, "stop", [])
        assert not stops or own.include_stop_str_in_output
        (found,) = TransformersGenerator(self.model, self.tokenizer, settings)([prompt], [stops])
        steps = [{token: SimpleNamespace(logprob=value)} for token, value in zip(found.ids, found.logprobs)]
        reason = "stop" if found.ended else "length"
        output = SimpleNamespace(token_ids=list(found.ids), logprobs=steps, finish_reason=reason)
        return SimpleNamespace(outputs=[output])


@pytest.fixture(autouse=True)
def package(monkeypatch):
    """`vllm.SamplingParams`, the one name that is imported."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **given: SimpleNamespace(**given)))


def played(agent):
    return agent.run_batch(DATA, [LookupEnvironment() for _ in DATA])


def test_episodes_are_those_of_the_same_model_in_transformers(actor, tokenizer):
    engine = Engine(actor, tokenizer)
    mine = played(Mem1Agent(engine, protocol=SHORT, temperature=0.0, **SETTINGS))
    local = played(Mem1Agent(actor, tokenizer, SHORT, temperature=0.0, **SETTINGS))
    for one, other in zip(mine, local):
        assert [(turn.prompt_ids, turn.completion_ids, turn.action) for turn in one.turns] == [
            (turn.prompt_ids, turn.completion_ids, turn.action) for turn in other.turns
        ]
        assert (one.reward, one.stop_reason) == (other.reward, other.stop_reason)
    assert max(len(one.turns) for one in mine) > 1
    for prompt, own in engine.asked:
        assert own.logprobs == 0 and own.max_tokens == 64 and own.temperature == 0.0
        assert {"</search>", "</answer>"} >= set(getattr(own, "stop", [])) and isinstance(prompt, list)
        assert not hasattr(own, "top_p") and not hasattr(own, "top_k") and not hasattr(own, "seed")


def test_what_is_sampled_belongs_to_the_episode_and_has_the_log_probs_of_the_policy(actor, tokenizer):
    agent = Mem1Agent(Engine(actor, tokenizer), protocol=SHORT, temperature=1.0, **SETTINGS)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(played(agent))
    first, again = found
    assert [one.turns for one in first] == [one.turns for one in again]
    assert len({turn.completion_ids for one in first for turn in one.turns}) > 1
    for trajectory in first:
        for scored, turn in zip(oracle_logprobs(actor, trajectory), trajectory.turns):
            torch.testing.assert_close(scored, torch.tensor(turn.logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("mode", "options", "known"),
    [
        ("raw_logprobs", {"temperature": 1.0}, True),
        ("raw_logprobs", {"temperature": 0.5}, False),
        ("processed_logprobs", {"temperature": 0.5}, True),
        ("processed_logprobs", {"temperature": 1.0, "top_p": 0.5}, False),
        ("raw_logits", {"temperature": 1.0}, False),
    ],
)
def test_log_probs_are_recorded_where_they_are_those_of_the_policy(actor, tokenizer, mode, options, known):
    engine = Engine(actor, tokenizer, mode)
    generate = VllmGenerator(engine, tokenizer, AgentSettings(max_completion_length=5, **options))
    (found,) = generate([tokenizer("q?")["input_ids"]], [[]])
    assert (found.logprobs is not None) is known
    assert getattr(engine.asked[0][1], "top_p", 1.0) == options.get("top_p", 1.0)


def test_options_reach_the_engine_and_an_opened_thought_is_not_stopped_in(actor, tokenizer):
    engine = Engine(actor, tokenizer)
    settings = AgentSettings(max_completion_length=5, temperature=1.0, top_k=3, min_p=0.1, repetition_penalty=1.2)
    prompts = [tokenizer(text)["input_ids"] for text in ("q<think>", "q?")]
    VllmGenerator(engine, tokenizer, settings)(prompts, [StopStrings(["</search>"], "</think>"), ["</search>"]])
    first, second = (own for _, own in engine.asked)
    assert not hasattr(first, "stop") and second.stop == ["</search>"]
    assert (second.top_k, second.min_p, second.repetition_penalty) == (3, 0.1, 1.2)


def test_an_end_token_that_only_the_engine_knows_ends_a_turn(actor, tokenizer):
    generate = VllmGenerator(Engine(actor, tokenizer), tokenizer, AgentSettings(max_completion_length=5))
    output = SimpleNamespace(token_ids=[70, 71], logprobs=None, finish_reason="stop")
    assert generate._completion(output, []).ended
    assert not generate._completion(SimpleNamespace(**{**vars(output), "finish_reason": "length"}), []).ended


def test_lengths_are_those_of_the_engine(actor, tokenizer):
    engine = Engine(actor, tokenizer, longest=500)
    agent = Mem1Agent(engine, protocol=SHORT, **SETTINGS)
    assert agent.settings.max_context_length == 436 and agent.describe()["model"] == "org/name"
    with pytest.raises(ValueError, match="must add up to at most 500, the max_model_len of this vLLM, got 564"):
        Mem1Agent(engine, protocol=SHORT, **SETTINGS, max_context_length=500)
    with pytest.raises(ValueError, match="generation_kwargs are arguments of transformers' `generate`"):
        VllmGenerator(
            engine, tokenizer, dataclasses.replace(agent.settings, generation_kwargs={"no_repeat_ngram_size": 2})
        )
