"""Tests of what a trainer is given as objects: a model in memory, an optimizer, an adapter."""

from __future__ import annotations

import inspect

import pytest
import torch
from peft import PeftModel, get_peft_model
from support import ppo_helpers
from support.ppo_helpers import LORA
from support.trainer_helpers import SHORT, LookupEnvironment, copy_parameters, lookup_dataset, trainer_arguments
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer

BOTH = [(Mem1GRPOConfig, Mem1GRPOTrainer, 0.04), (Mem1PPOConfig, Mem1PPOTrainer, None)]


def make(config, trainer, tmp_path, model, tokenizer, optimizers=(None, None), **settings):
    if trainer is Mem1GRPOTrainer:
        settings = {"num_generations": 4, **settings}
    return trainer(
        model,
        args=config(**trainer_arguments(tmp_path, **{"max_turns": 3, "max_observation_length": 40, **settings})),
        train_dataset=lookup_dataset(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
        processing_class=tokenizer,
        optimizers=optimizers,
    )


# The reference model


@pytest.mark.parametrize(("config", "trainer", "beta"), BOTH)
def test_the_reference_is_the_policy_as_it_is_now(tmp_path, tokenizer, actor_path, config, trainer, beta):
    """Weights that have changed since they were loaded are the reference's, too; they stay when the policy moves."""
    model = AutoModelForCausalLM.from_pretrained(actor_path)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    now = copy_parameters(model)
    run = make(config, trainer, tmp_path, model, tokenizer, **({} if beta is None else {"beta": beta}))
    assert run.beta == (0.001 if beta is None else beta)
    assert run.ref_model is not run.model and not run.ref_model.training
    for name, parameter in run.ref_model.named_parameters():
        assert torch.equal(parameter, now[name]) and not parameter.requires_grad
    run.train()
    moved = [name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, now[name])]
    assert moved
    for name, parameter in run.ref_model.named_parameters():
        assert torch.equal(parameter, now[name])
    assert run.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_model_in_memory_has_a_reference(tmp_path, tokenizer, actor):
    """PPO's default `beta` asks for one."""
    actor.config._name_or_path = ""
    run = make(Mem1PPOConfig, Mem1PPOTrainer, tmp_path, actor, tokenizer)
    assert run.ref_model is not None
    run.train()
    assert run.state.global_step == 2


def test_without_a_penalty_there_is_none(tmp_path, tokenizer, actor):
    assert make(Mem1PPOConfig, Mem1PPOTrainer, tmp_path, actor, tokenizer, beta=0.0).ref_model is None
    adapted = get_peft_model(actor, LORA)
    assert (
        make(Mem1PPOConfig, Mem1PPOTrainer, tmp_path, adapted, tokenizer).ref_model is None
    )  # the base is the reference


def test_trl_makes_its_reference_by_the_function_that_is_replaced():
    assert "create_model_from_path" in inspect.unwrap(GRPOTrainer.__init__).__code__.co_names


# An optimizer and its schedule


@pytest.mark.parametrize("value_model", [None, "shared"])
def test_an_optimizer_that_is_passed_trains_as_one_that_is_made(tmp_path, tokenizer, actor_path, value_model):
    """Policy and critic after three steps under a falling schedule, against the same optimizer by name."""
    weights = []
    for given in (False, True):
        model = AutoModelForCausalLM.from_pretrained(actor_path)
        optimizers = (None, None)
        if given:
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
            optimizers = optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (3 - step) / 3)
        run = Mem1PPOTrainer(
            model,
            args=Mem1PPOConfig(**trainer_arguments(
                tmp_path, max_turns=4, max_observation_length=40, optim="sgd", learning_rate=1e-2, value_learning_rate=3e-3,
                lr_scheduler_type="linear", max_steps=3, weight_decay=0.0, beta=0.0, save_strategy="steps", save_steps=2,
                output_dir=str(tmp_path / str(given)),
            )),
            train_dataset=lookup_dataset(), environment_factory=LookupEnvironment, protocol=SHORT,
            processing_class=tokenizer, optimizers=optimizers, value_model=value_model,
        )  # fmt: skip
        ppo_helpers.wake(run)
        start = copy_parameters(run.value_model)
        run.train()
        assert (run.critic_optimizer is not None) == given
        weights.append(
            torch.cat([p.detach().flatten() for module in (run.model, run.value_model) for p in module.parameters()])
        )
        assert any(not torch.equal(p, start[name]) for name, p in run.value_model.named_parameters())
    assert torch.equal(*weights)
    assert (tmp_path / "True" / "checkpoint-2" / "critic" / "optimizer.pt").is_file()


def test_an_optimizer_beside_float16_is_refused(tmp_path, tokenizer, actor):
    optimizer = torch.optim.SGD(actor.parameters(), lr=1e-2)
    arguments = trainer_arguments(tmp_path, fp16=True, use_cpu=False)
    with pytest.raises(ValueError, match="`optimizers` cannot be passed to Mem1PPOTrainer with fp16"):
        Mem1PPOTrainer(
            actor, args=Mem1PPOConfig(**arguments), train_dataset=lookup_dataset(), processing_class=tokenizer,
            environment_factory=LookupEnvironment, optimizers=(optimizer, None),
        )  # fmt: skip


# An adapter that was loaded for use


@pytest.mark.parametrize(("config", "trainer", "beta"), BOTH)
def test_a_frozen_adapter_is_refused_and_a_trainable_one_trains(
    tmp_path, tokenizer, actor_path, config, trainer, beta
):
    saved = tmp_path / "adapter"
    get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), LORA).save_pretrained(saved)
    frozen = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(actor_path), saved)
    with pytest.raises(ValueError, match=r"must have weights that are trained, got none: .*is_trainable=True"):
        make(config, trainer, tmp_path, frozen, tokenizer)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(actor_path), saved, is_trainable=True)
    run = make(config, trainer, tmp_path, model, tokenizer)
    before = copy_parameters(run.model)
    run.train()
    assert any("lora" in name and not torch.equal(p, before[name]) for name, p in run.model.named_parameters())


@pytest.mark.parametrize(("config", "trainer", "beta"), BOTH)
def test_the_reference_of_an_adapter_is_a_copy_of_the_one_that_trains(
    tmp_path, tokenizer, actor_path, config, trainer, beta
):
    """TRL copies the adapter of one name, and would fail without it, or hold the policy against another one."""
    named = get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), LORA, adapter_name="mine")
    settings = {} if beta is None else {"beta": beta}
    words = "needs a copy of the adapter as a reference, .* named 'default', but the active adapter is 'mine'.* set beta=0.0"
    with pytest.raises(ValueError, match=words):
        make(config, trainer, tmp_path, named, tokenizer, **settings)
    two = get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), LORA)
    two.add_adapter("mine", LORA)
    two.set_adapter("mine")
    with pytest.raises(ValueError, match=words):
        make(config, trainer, tmp_path, two, tokenizer, **settings)
    steps = {"save_strategy": "steps", "save_steps": 1, "beta": 0.0}
    run = make(config, trainer, tmp_path, named, tokenizer, max_steps=2, **steps)
    before = copy_parameters(run.model)
    run.train()
    again = get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), LORA, adapter_name="mine")
    rest = make(config, trainer, tmp_path, again, tokenizer, max_steps=2, **steps)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    ended = copy_parameters(run.model)
    assert all(torch.equal(p, ended[name]) for name, p in rest.model.named_parameters())
    assert any(".mine." in name and not torch.equal(p, before[name]) for name, p in run.model.named_parameters())


def test_a_directory_with_an_adapter_alone_is_no_model(tmp_path, tokenizer, actor_path):
    get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), LORA).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        ValueError, match=r"holds an adapter without its model: load the model, and pass `PeftModel.from_pretrained"
    ):
        make(Mem1GRPOConfig, Mem1GRPOTrainer, tmp_path, str(tmp_path / "adapter"), tokenizer)
