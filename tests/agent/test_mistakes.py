"""What an agent cannot be given is refused in one sentence, before anything is played."""

from __future__ import annotations

import pytest
from support.helpers import ARCHITECTURES, tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment
from transformers import AutoConfig, AutoModelForCausalLM

from mem1_trl import Mem1Agent
from mem1_trl.rollout.settings import AgentSettings


@pytest.fixture
def agent(actor):
    return Mem1Agent(actor, tiny_tokenizer(), SHORT, max_turns=2, max_completion_length=8)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"prompt": "Buy two."}, "A task must be a text or a list of messages, got a dict"),
        (7, "got a int: a message is"),
        (["Buy two."], "got a list"),
        ([], "got no message"),
        ([{"role": "user", "content": "Buy two."}], "need a chat template, and this tokenizer has none"),
    ],
)
def test_a_task_of_another_kind(agent, task, words):
    for play in (agent.run, agent.start):
        with pytest.raises(ValueError, match=words):
            play(task, LookupEnvironment())


def test_a_class_in_place_of_an_environment(agent):
    words = r"must be an instance, got the class LookupEnvironment: pass LookupEnvironment\(\)"
    for play in (agent.run, agent.start):
        with pytest.raises(TypeError, match=words):
            play("q0?", LookupEnvironment)


def test_a_budget_of_observations_without_room_is_refused_before_a_turn(actor):
    environment = LookupEnvironment()
    agent = Mem1Agent(actor, tiny_tokenizer(), SHORT, max_turns=3, max_completion_length=40, max_observation_length=11)
    passes = []
    actor.register_forward_pre_hook(lambda *_: passes.append(1))
    words = r"max_observation_length=11 is less than .* need \(12 tokens\): raise it"
    for play in (agent.run, agent.start):
        with pytest.raises(ValueError, match=words):
            play("q0?", environment)
    assert not passes and not hasattr(environment, "queries")
    agent.start("q0?", environment, options={"max_observation_length": 12}).close()


@pytest.mark.parametrize(("architecture", "table"), [("gpt2", "n_positions"), ("opt", "max_position_embeddings")])
def test_contexts_beyond_the_positions_that_a_model_has_learned(architecture, table):
    """A model that computes its positions goes on; one that looks them up would fail in the middle of an episode."""
    own = {
        "model_type": "opt",
        "vocab_size": 320,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    config = {**ARCHITECTURES.get(architecture, own), table: 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    words = "max_context_length and max_completion_length must add up to at most 64, the positions that this model has embeddings for, got 65"
    with pytest.raises(ValueError, match=words):
        Mem1Agent(model, tiny_tokenizer(), SHORT, max_context_length=57, max_completion_length=8)
    agent = Mem1Agent(model, tiny_tokenizer(), SHORT, max_context_length=56, max_completion_length=8)
    with pytest.raises(ValueError, match=words):
        agent.start("q0?", LookupEnvironment(), options={"max_completion_length": 9})
    assert len(agent.generate([[5] * 56], [[]])[0].ids) <= 8


def test_contexts_beyond_the_positions_that_a_model_computes(actor):
    settings = AgentSettings(max_context_length=4000, max_completion_length=100)
    assert actor.config.max_position_embeddings < 4100 and settings.with_context_limit(actor) == settings
