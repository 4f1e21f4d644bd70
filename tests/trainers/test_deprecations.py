"""Tests that nothing here uses what transformers is about to remove, where what replaces it exists."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from support.helpers import is_checkpointed, tiny_model, tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, trainer_arguments
from transformers import LlamaForCausalLM, PreTrainedModel

from mem1_trl import Mem1GRPOConfig, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.model_traits import cache_argument, enable_activation_checkpointing
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.settings import AgentSettings

OLD_NAMES = ("past_key_values", "gradient_checkpointing")


@pytest.fixture
def noticed():
    """Warnings that name one of the old names; from the modules of all packages, whoever is blamed."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield lambda: [str(one.message) for one in record if any(name in str(one.message) for name in OLD_NAMES)]


class OldLlama(LlamaForCausalLM):
    """A model of someone's own, written for an older transformers."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)


def test_keys_and_values_have_the_name_that_the_model_gives_them():
    model = tiny_model("llama")
    assert cache_argument(OldLlama(model.config)) == "past_key_values"
    known = inspect.signature(LlamaForCausalLM.forward).parameters
    assert cache_argument(model) in known and (cache_argument(model) == "cache") is ("cache" in known)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_generation_with_kept_keys_uses_no_old_name(noticed, architecture):
    tokenizer = tiny_tokenizer()
    generate = TransformersGenerator(tiny_model(architecture), tokenizer, AgentSettings(max_completion_length=4))
    prompt = tokenizer("ab")["input_ids"]
    for _ in range(2):  # the prompt that two share is read once, the rest in a second call
        generate([prompt, prompt, [*prompt, 5]], [["</a>"]] * 3)
    assert noticed() == []


@pytest.mark.parametrize("kind", [Mem1GRPOConfig, Mem1PPOConfig])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"gradient_checkpointing": False}, False),
        ({"activation_checkpointing": False}, False),
        ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 2}}, True),
    ],
)
def test_a_configuration_uses_no_old_name(noticed, tmp_path, kind, given, expected):
    if not hasattr(kind, "activation_checkpointing"):
        pytest.skip("older transformers")
    args = kind(str(tmp_path), bf16=False, **given)
    assert noticed() == []
    assert args.activation_checkpointing is args.gradient_checkpointing is expected
    assert args.gradient_checkpointing_kwargs == given.get("activation_checkpointing_kwargs")


@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"every_n_layers": 2, "use_reentrant": False}])
def test_checkpointed_layers_give_the_same_gradients(noticed, options):
    if not hasattr(PreTrainedModel, "activation_checkpointing_enable"):
        options = None
    gradients, input_ids = [], torch.tensor([[5, 6, 7, 8]])
    for checkpointed in (False, True):
        model = tiny_model("llama").train()
        if checkpointed:
            enable_activation_checkpointing(model, options)
            assert is_checkpointed(model)
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert noticed() == []
    plain, recomputed = gradients
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_a_critic_is_checkpointed_by_the_new_name(tmp_path, tokenizer, actor, monkeypatch):
    asked = []
    name = "activation_checkpointing_enable"
    if not hasattr(PreTrainedModel, name):
        name = "gradient_checkpointing_enable"
    original = getattr(PreTrainedModel, name)
    monkeypatch.setattr(PreTrainedModel, name, lambda *args, **kw: (asked.append(args), original(*args, **kw)))
    trainer = Mem1PPOTrainer(
        model=actor,
        args=Mem1PPOConfig(**trainer_arguments(tmp_path, max_turns=2, beta=0.0, gradient_checkpointing=True)),
        train_dataset=lookup_dataset(8),
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )
    assert is_checkpointed(trainer.value_model.backbone) and len(asked) == 1
