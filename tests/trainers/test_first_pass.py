"""A critic learns from the pass that gives its values, where that is the pass of its only step: the same gradients in fewer passes."""

from __future__ import annotations

import pytest
from support.ppo_helpers import LORA, four_plans, make, wake
from support.trainer_helpers import assert_same_tensors, record

from mem1_trl import Mem1PPOTrainer


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
        assert_same_tensors(one, other, 1e-5)
    assert_same_tensors(expected, critic, 1e-5)
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
