"""Tests of training adapters on quantized weights (QLoRA), by bitsandbytes, on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from support.ppo_helpers import LORA, Gradients, four_plans, stir
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    ScriptedGenerator,
    assert_same_tensors,
    lookup_dataset,
    planned,
    trainer_arguments,
)
from transformers import BitsAndBytesConfig

from mem1_trl import Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.trainers.bitsandbytes_cpu import keep_gradients_through_4bit

bnb = pytest.importorskip("bitsandbytes")

QUANTIZATIONS = {
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "int8": dict(load_in_8bit=True),
}


def make(tmp_path, actor_path, tokenizer, quantization: str, value_model=None, **settings) -> Mem1PPOTrainer:
    settings = {"max_turns": 4, "max_observation_length": 40, "max_steps": 1, **settings}
    # The matrices of the tiny model are below the size from which bitsandbytes quantizes
    trainer = Mem1PPOTrainer(
        model=actor_path,
        args=Mem1PPOConfig(**trainer_arguments(tmp_path, **settings)),
        train_dataset=lookup_dataset(),
        eval_dataset=lookup_dataset(),
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
        peft_config=copy.deepcopy(LORA),
        quantization_config=BitsAndBytesConfig(**QUANTIZATIONS[quantization]),
        value_model=value_model,
    )
    trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(four_plans))
    return trainer


def wake(trainer: Mem1PPOTrainer) -> None:
    """Give the critic's head weights, so that its adapter gets gradients."""
    torch.manual_seed(11)
    torch.nn.init.normal_(trainer.value_model.head.weight, std=0.5)


def quantized_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [
        m
        for m in model.modules()
        if isinstance(m, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)) and not hasattr(m, "lora_A")
    ]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_an_evaluation_in_between_does_not_change_the_gradients(
    tmp_path, tokenizer, actor_path, quantization, monkeypatch
):
    """On CPUs with AVX512_BF16, which the test pretends to be on, all gradients would be zero afterwards, without a word."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    gradients = {}
    for evaluate in (False, True):
        trainer = make(tmp_path / str(evaluate), actor_path, tokenizer, quantization, max_grad_norm=0.0, beta=0.1)
        layers = quantized_layers(trainer.model)
        assert len(layers) >= 14  # seven projections in two layers
        stir(trainer.model, 1)
        stir(trainer.value_model, 2)
        wake(trainer)
        if evaluate:
            trainer.evaluate()
        if quantization == "nf4":
            assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
            assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)
        of_policy, of_critic = Gradients(trainer.model), Gradients(trainer.value_model)
        trainer.add_callback(of_policy)
        trainer.add_callback(of_critic)
        trainer.train()
        gradients[evaluate] = {**of_policy.steps[0], **{f"critic.{k}": v for k, v in of_critic.steps[0].items()}}
    norms = {name: float(gradient.float().norm()) for name, gradient in gradients[False].items()}
    assert sum(norm > 0 for norm in norms.values()) == len(norms) == 18  # 8 of each adapter, and the head's two
    assert_same_tensors(gradients[False], gradients[True], 1e-5)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_critic_shares_the_quantized_weights_and_their_state(tmp_path, tokenizer, actor_path, quantization):
    runs = {}
    for critic in (None, actor_path):
        trainer = make(tmp_path / str(critic is None), actor_path, tokenizer, quantization, critic, max_grad_norm=0.0)
        mine, theirs = quantized_layers(trainer.value_model), quantized_layers(trainer.model)
        shared = {id(layer) for layer in mine} <= {id(layer) for layer in theirs}
        assert shared == (critic is None) and len(mine) == 14
        stir(trainer.model, 1)
        stir(trainer.value_model.adapters, 2)
        wake(trainer)
        gradients = Gradients(trainer.value_model)
        trainer.add_callback(gradients)
        trainer.train()
        runs[critic] = {
            name.replace("base_model.model.", "")
            .replace("model.", "")
            .removeprefix("backbone.")
            .removeprefix("adapters."): g
            for name, g in gradients.steps[0].items()
        }
    assert_same_tensors(runs[None], runs[actor_path], 1e-5)


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_an_eight_bit_optimizer_moves_adapters_and_head(tmp_path, tokenizer, actor_path, optim):
    trainer = make(tmp_path, actor_path, tokenizer, "nf4", optim=optim, max_steps=2, value_learning_rate=1e-2)
    wake(trainer)
    modules = {"policy": trainer.model, "critic": trainer.value_model}
    before = {
        f"{k}.{n}": p.detach().clone() for k, m in modules.items() for n, p in m.named_parameters() if p.requires_grad
    }
    trainer.train()
    assert type(trainer.optimizer.optimizer).__module__.startswith("bitsandbytes")
    after = {f"{k}.{n}": p.detach() for k, m in modules.items() for n, p in m.named_parameters() if p.requires_grad}
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not [name for name in still if "lora_B" in name or ".head." in name]
    assert all(bool(torch.isfinite(value).all()) for value in after.values())


def test_repacked_weights_are_restored():
    layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(torch.randn(64, 64), requires_grad=False, quant_type="nf4", module=layer)
    layer = layer.to("cpu")
    whole = layer.weight.data.clone()
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )
    layer.support_avx512bf16_for_cpu = True
    assert not torch.equal(layer.weight.data.flatten(), whole.flatten())
    keep_gradients_through_4bit(torch.nn.Sequential(layer))
    assert not layer.support_avx512bf16_for_cpu
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    assert torch.equal(layer.weight.data.flatten(), whole.flatten())
    inputs = torch.randn(3, 64, requires_grad=True)
    layer(inputs).sum().backward()
    assert inputs.grad.abs().max() > 0
