"""Tests of the reference model: a frozen copy of the policy that a trainer is given, wherever that came from."""

from __future__ import annotations

import copy

import pytest
import torch
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    copy_parameters,
    lookup_dataset,
    record,
    trainer_arguments,
)
from transformers import AutoModelForCausalLM

from mem1_trl import (
    Mem1GRPOConfig,
    Mem1GRPOTrainer,
    Mem1PPOConfig,
    Mem1PPOTrainer,
    score_trajectories,
)

TRAINERS = {
    "GRPO": (Mem1GRPOTrainer, Mem1GRPOConfig, {"num_generations": 4, "beta": 0.1}),
    "PPO": (Mem1PPOTrainer, Mem1PPOConfig, {"kl_in_reward": True}),  # with its default beta
}


def make(tmp_path, name, model, tokenizer, **settings):
    trainer, config, own = TRAINERS[name]
    settings = {"max_turns": 3, "max_observation_length": 40, **own, **settings}
    return trainer(
        model=model,
        args=config(**trainer_arguments(tmp_path, **settings)),
        processing_class=tokenizer,
        train_dataset=lookup_dataset(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )


def policy_of(kind, tmp_path, actor, actor_path, tokenizer, name):
    if kind == "made in memory":
        assert actor.config._name_or_path == ""
        return actor
    model = AutoModelForCausalLM.from_pretrained(actor_path, dtype=torch.float32)
    if kind == "trained by another trainer before":
        make(tmp_path / "before", name, model, tokenizer).train()
    return model


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("kind", ["made in memory", "trained by another trainer before"])
def test_the_reference_is_the_policy_that_was_given(tmp_path, actor, actor_path, tokenizer, kind, name):
    """Two steps away from it, its log-probs are still those of a plain copy from before."""
    torch.manual_seed(5)
    model = policy_of(kind, tmp_path, actor, actor_path, tokenizer, name)
    weights = copy_parameters(model)
    plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    plain.load_state_dict(model.state_dict())
    trainer = make(tmp_path, name, model, tokenizer)
    recorder, played = record(trainer), []
    trainer.rewarded = played.append
    trainer.train()
    assert len(played) == 2
    for batch, trajectories in zip(recorder.batches, played, strict=True):
        expected = score_trajectories(plain, trajectories)
        for index, turns in enumerate(expected):
            sampled = (batch["completion_mask"] * batch["tool_mask"])[index].bool()
            assert torch.allclose(batch["ref_per_token_logps"][index][sampled], torch.cat(turns), atol=1e-4)
    first, second = [log["kl"] for log in recorder.logs if "kl" in log]
    assert abs(first) < 1e-5 < abs(second), "the policy has moved away from its reference"
    reference = trainer.accelerator.unwrap_model(trainer.ref_model)
    assert not reference.training and not any(p.requires_grad for p in reference.parameters())
    storage = {p.data_ptr() for p in trainer.model.parameters()}
    for key, parameter in reference.named_parameters():
        assert torch.equal(parameter, weights[key]) and parameter.data_ptr() not in storage


@pytest.mark.parametrize("name", TRAINERS)
def test_the_copy_and_its_cost_are_announced(tmp_path, actor, tokenizer, capsys, name):
    trainer = make(tmp_path, name, actor, tokenizer)
    size = sum(p.nbytes for p in actor.parameters())
    assert (
        f"The reference model is a frozen copy of the policy, which takes {size / 1e6:,.2f} MB"
        in capsys.readouterr().out
    )
    assert sum(p.nbytes for p in trainer.ref_model.parameters()) == size


def test_a_reference_that_follows_starts_from_the_policy_that_was_given(tmp_path, actor, tokenizer):
    start = copy_parameters(actor)
    trainer = make(tmp_path, "GRPO", actor, tokenizer, sync_ref_model=True, ref_model_sync_steps=1, max_steps=1)
    trainer.train()
    share = trainer.args.ref_model_mixup_alpha
    for key, parameter in trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters():
        expected = (1 - share) * start[key] + share * dict(trainer.model.named_parameters())[key]
        assert torch.allclose(parameter, expected, atol=1e-6)


def test_weights_that_are_split_over_processes_cannot_be_copied(tmp_path, actor, tokenizer):
    """As ZeRO-3 marks the parameters of a model that is made under it: none of them is whole here."""
    model = copy.deepcopy(actor)
    for index, parameter in enumerate(model.parameters()):
        parameter.ds_id = index
    with pytest.raises(ValueError, match=r"beta=0.1 needs a reference model, .* save it and pass the path"):
        make(tmp_path, "GRPO", model, tokenizer)
