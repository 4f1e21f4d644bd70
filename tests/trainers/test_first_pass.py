"""
Where a batch has one step, critic and policy learn from the passes that give values and log-probs: the same gradients in fewer passes.
"""

from __future__ import annotations

import pytest
import torch
from support.ppo_helpers import LORA, four_plans, make, wake
from support.trainer_helpers import assert_same_tensors, record

from mem1_trl import Mem1PPOTrainer
from mem1_trl.model_traits import backbone_of
from mem1_trl.trainers.trl_seam.kept_pass import KeptPass

ROUNDING = 1e-4
"""Of the largest number of a tensor: sums in another order differ by 1e-5 on some processors."""


def run(monkeypatch, tmp_path, tokenizer, actor_path, first, **settings):
    """A run; what was recorded, the weights of its critic, and passes of the critic by whether a gradient follows."""
    if not first:
        monkeypatch.setattr(Mem1PPOTrainer, "learns_from_first_pass", False)
    trainer = make(
        tmp_path / str(first), actor_path, tokenizer, "packed", plan=four_plans, **{"max_steps": 2, **settings}
    )
    wake(trainer)
    recorder, passes = record(trainer), []
    values = trainer.values

    def counted(batch):
        found = values(batch)
        if trainer.model.training:
            passes.append(found.requires_grad)
        return found

    trainer.values = counted
    trainer.train()
    monkeypatch.undo()
    return recorder, dict(trainer.value_model.named_parameters()), passes


CASES = {
    "one micro-batch": {},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "turns": {"advantage_level": "turn", "gamma": 0.9, "lam": 0.8},
    "two levels": {"advantage_level": "two_level", "gamma": 0.9, "token_lam": 0.9, "whiten_advantages": False},
    "kl": {"beta": 0.1, "cliprange_value": None, "vf_coef": 0.3},
    "cut turns": {"bootstrap_truncated": True, "max_completion_length": 9},
    "checkpointing": {"gradient_checkpointing": True},
    "a budget": {"max_tokens_per_micro_batch": 120},
    "an adapter": {"peft_config": LORA},
    "clipped gradients": {"max_grad_norm": 0.1},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_gradients_are_those_of_a_pass_of_its_own(monkeypatch, tmp_path, tokenizer, actor_path, settings):
    plain, expected, twice = run(monkeypatch, tmp_path, tokenizer, actor_path, False, **settings)
    once, critic, passes = run(monkeypatch, tmp_path, tokenizer, actor_path, True, **settings)
    for one, other in zip(plain.gradients, once.gradients, strict=True):
        assert_same_tensors(one, other, ROUNDING)
    assert_same_tensors(expected, critic, ROUNDING)
    assert all(passes) and len(passes) == sum(twice) < len(twice)
    for one, other in zip(plain.logs, once.logs):
        for name in ("loss", "value/loss", "value/mean", "value/clip_ratio", "value/grad_norm", "grad_norm"):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    "settings",
    [
        {"num_iterations": 2},
        {"per_device_train_batch_size": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1},
        {"max_tokens_per_micro_batch": 20},
        {"critic_warmup_steps": 1},
    ],
)
def test_elsewhere_values_have_a_pass_of_their_own(monkeypatch, tmp_path, tokenizer, actor_path, settings):
    """Where the weights of a second step differ, rows must be cut, or the policy does not learn."""
    _, _, passes = run(monkeypatch, tmp_path, tokenizer, actor_path, True, **settings)
    assert not all(passes)


def test_what_an_interrupted_step_has_left_is_not_learned(tmp_path, tokenizer, actor_path):
    """The critic has its gradient before the policy's update begins."""
    trainer = make(tmp_path, actor_path, tokenizer, plan=four_plans, max_steps=1)
    compute = trainer._compute_loss

    def interrupted(*args):
        raise KeyboardInterrupt

    trainer._compute_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert any(p.grad is not None for p in trainer.value_model.parameters())
    trainer._compute_loss = compute
    recorder = record(trainer)
    trainer.rollout.generate.prompts.clear()
    trainer.train()
    fresh = make(tmp_path / "fresh", actor_path, tokenizer, plan=four_plans, max_steps=1)
    expected = record(fresh)
    fresh.train()
    assert recorder.logs[0]["value/grad_norm"] == pytest.approx(expected.logs[0]["value/grad_norm"], rel=1e-4)


def run_policy(monkeypatch, tmp_path, tokenizer, actor_path, kept, **settings):
    """A run; what was recorded, the trained weights, and the passes of the policy, by whether a gradient follows."""
    if not kept:
        monkeypatch.setattr(Mem1PPOTrainer, "loss_goes_on_from_kept", False)
    trainer = make(
        tmp_path / f"policy-{kept}",
        actor_path,
        tokenizer,
        plan=four_plans,
        **{"max_steps": 2, "layout": "packed", **settings},
    )
    wake(trainer, policy=0.1)
    recorder, passes = record(trainer), []

    def forward(module, inputs, outputs):
        passes.append(torch.is_grad_enabled() and outputs.last_hidden_state.requires_grad)

    backbone_of(trainer.model).register_forward_hook(forward)
    trainer.train()
    monkeypatch.undo()
    trained = {**dict(trainer.model.named_parameters()), **dict(trainer.value_model.named_parameters())}
    return recorder, trained, passes


SHARED = {"value_model": "shared"}
PENALTY = {"beta": 0.1, "kl_in_reward": True}
POLICY_CASES = {
    "a shared critic": SHARED,
    "turns": {**SHARED, "advantage_level": "turn", "gamma": 0.9, "lam": 0.8},
    "a row for each turn": {**SHARED, "layout": "per_turn"},
    "entropy": {**SHARED, "entropy_coef": 0.1},
    "after a warm-up": {**SHARED, "critic_warmup_steps": 1, "beta": 0.0},
    "a penalty in the reward": {**SHARED, **PENALTY},
    "checkpointing": {**SHARED, "gradient_checkpointing": True},
    "an adapter": {**SHARED, **PENALTY, "peft_config": LORA},
    "left-out episodes": {**SHARED, "mask_truncated_completions": True, "max_completion_length": 9},
}


@pytest.mark.parametrize("settings", POLICY_CASES.values(), ids=POLICY_CASES)
def test_the_loss_goes_on_from_the_pass_that_gave_values(monkeypatch, tmp_path, tokenizer, actor_path, settings):
    plain, expected, twice = run_policy(monkeypatch, tmp_path, tokenizer, actor_path, False, **settings)
    once, trained, passes = run_policy(monkeypatch, tmp_path, tokenizer, actor_path, True, **settings)
    for one, other in zip(plain.gradients, once.gradients, strict=True):
        if one or other:  # a frozen policy has none
            assert_same_tensors(one, other, ROUNDING)
    assert_same_tensors(expected, trained, ROUNDING)
    assert sum(passes) == sum(twice)
    assert passes.count(False) < twice.count(False)
    for one, other in zip(plain.logs, once.logs, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize(
    "settings",
    [
        {**SHARED, "num_iterations": 2},
        {**SHARED, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {**SHARED, "max_tokens_per_micro_batch": 1000},
        PENALTY,  # or activations of the critic would be held beside those of the policy
    ],
)
def test_elsewhere_the_loss_has_a_pass_of_its_own(monkeypatch, tmp_path, tokenizer, actor_path, settings):
    plain, _, twice = run_policy(monkeypatch, tmp_path, tokenizer, actor_path, False, **settings)
    once, _, passes = run_policy(monkeypatch, tmp_path, tokenizer, actor_path, True, **settings)
    assert passes == twice
    for one, other in zip(plain.gradients, once.gradients, strict=True):
        assert_same_tensors(one, other, 0.0)


def test_a_kept_pass_is_of_its_own_rows_only(tmp_path, tokenizer, actor_path):
    """Rows come back in the order of the loss; another batch, or an interrupted step, finds none."""
    ids = torch.tensor([4, 5, 6])
    kept = KeptPass(ids, (torch.tensor([[1.0], [2.0], [3.0]]), None, None), torch.tensor([[7.0], [8.0], [9.0]]))
    found = kept.of_rows(torch.tensor([6, 4, 5]))
    assert found.outputs[0].tolist() == [[3.0], [1.0], [2.0]] and found.outputs[1] is None
    assert found.read.tolist() == [[9.0], [7.0], [8.0]]
    assert kept.of_rows(torch.tensor([4, 5])) is None
    assert kept.of_rows(torch.tensor([4, 5, 7])) is None

    trainer = make(tmp_path, actor_path, tokenizer, plan=four_plans, max_steps=1, **SHARED)
    held = []

    def interrupted(*args):
        held.append(trainer.kept_pass)
        raise KeyboardInterrupt

    compute, trainer._compute_loss = trainer._compute_loss, interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer._compute_loss = compute
    trainer.rollout.generate.prompts.clear()
    recorder = record(trainer)
    trainer.train()
    assert held[0] is not None and trainer.kept_pass is None
    fresh = make(tmp_path / "fresh", actor_path, tokenizer, plan=four_plans, max_steps=1, **SHARED)
    expected = record(fresh)
    fresh.train()
    assert_same_tensors(recorder.gradients[0], expected.gradients[0], ROUNDING)
