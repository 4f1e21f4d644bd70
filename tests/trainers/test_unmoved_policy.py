"""Steps that do not move the policy, and batches in part: what TRL's metrics and controls make of them."""

from __future__ import annotations

import pytest
import torch
from support.ppo_helpers import four_plans, wake
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import (
    SHORT,
    NoReward,
    copy_parameters,
    lookup_dataset,
    odd,
    play_scripted,
    record,
    trainer_arguments,
)
from transformers import TrainerCallback

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig

ADAPTIVE = {"use_adaptive_entropy": True, "entropy_coef_delta": 0.05, "entropy_coef_max": 1.0}


class Down(NoReward):
    """Two of four tasks cannot begin."""

    def reset(self, secret="7", prompt="", **row):
        if "q1" in prompt or "q2" in prompt:
            raise KeyError("row")
        return super().reset(secret=secret)


def make(tmp_path, path, tokenizer, environment=Down, plan=lambda index: (2, 0), **settings):
    settings = {
        "num_generations": 2, "max_turns": 4, "max_observation_length": 40, "per_device_train_batch_size": 8, "max_steps": 1,
        "shuffle_dataset": False, "beta": 0.0, "environment_retries": 0, **settings,
    }  # fmt: skip
    trainer = Mem1GRPOTrainer(
        model=path,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
        reward_funcs=odd,
        train_dataset=lookup_dataset(4),
        processing_class=tokenizer,
        environment_factory=environment,
        protocol=SHORT,
    )
    play_scripted(trainer, tokenizer, plan)
    return trainer


class Watch(TrainerCallback):
    """The trainer's coefficient of entropy after each step."""

    def __init__(self, trainer):
        self.trainer, self.seen = trainer, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append((self.trainer.entropy_coef, self.trainer._last_world_entropy))


@pytest.mark.parametrize("split", [{}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}])
def test_rows_that_are_left_out_are_in_no_metric(tmp_path, tokenizer, actor_path, split):
    """Four of eight episodes failed: the entropy and the divergence are those of the others, in whichever micro-batches they are."""
    found = []
    for name, settings in (("whole", {}), ("split", split)):
        trainer = make(tmp_path / name, actor_path, tokenizer, beta=0.1, **settings)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1.01)  # away from the reference
        recorder = record(trainer)
        trainer.train()
        found.append(recorder.logs[0])
    assert found[0]["entropy"] > 0 and found[0]["kl"] > 0
    for name in ("entropy", "kl"):
        assert found[1][name] == pytest.approx(found[0][name], rel=0.05), name


def test_a_batch_of_which_nothing_is_left_has_no_entropy(tmp_path, tokenizer, actor_path):
    class Out(NoReward):
        begun = 0

        def reset(self, secret="7", prompt="", **row):
            Out.begun += 1
            if Out.begun > 9:  # a first look, and the first batch
                raise KeyError("row")
            return super().reset(secret=secret)

    trainer = make(tmp_path, actor_path, tokenizer, Out, max_steps=2)
    recorder = record(trainer)
    trainer.train()
    first, second = recorder.logs[:2]
    assert first["entropy"] > 0 and second.get("entropy") is None


def test_an_adaptive_entropy_bonus_waits_for_a_policy_that_moves(tmp_path, tokenizer, actor_path):
    """Over a warm-up of the critic and an idle step the coefficient stays; the steps between and after move it."""
    trainer = make_ppo(
        tmp_path / "ppo", actor_path, tokenizer, max_steps=4, critic_warmup_steps=2, entropy_target=5.0, entropy_coef=0.0, **ADAPTIVE,
    )  # fmt: skip
    play_scripted(trainer, tokenizer, four_plans)
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    assert [round(coefficient, 3) for coefficient, _ in watch.seen] == [0.0, 0.0, 0.05, 0.1]
    assert [entropy == float("inf") for _, entropy in watch.seen] == [True, True, False, False]

    class Out(NoReward):
        begun = 0

        def reset(self, secret="7", prompt="", **row):
            Out.begun += 1
            if 9 < Out.begun <= 17:
                raise KeyError("row")
            return super().reset(secret=secret)

    trainer = make(
        tmp_path / "grpo", actor_path, tokenizer, Out, lambda index: (1 + index % 3, 0), max_steps=3, entropy_target=0.01,
        entropy_coef=0.2, **ADAPTIVE,
    )  # fmt: skip
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    assert [round(coefficient, 3) for coefficient, _ in watch.seen] == [0.15, 0.15, 0.1]
    assert watch.seen[1][1] == watch.seen[0][1] > 0


def test_a_warm_up_as_long_as_the_run_is_refused_whatever_says_how_long_it_is(tmp_path, tokenizer, actor_path):
    trainer = make_ppo(
        tmp_path, actor_path, tokenizer, plan=four_plans, max_steps=-1, num_train_epochs=2, critic_warmup_steps=2
    )
    before = copy_parameters(trainer.model)
    with pytest.raises(ValueError, match="critic_warmup_steps=2 leaves nothing of the 2 steps of the run"):
        trainer.train()
    with pytest.raises(ValueError, match="critic_warmup_steps=3 leaves nothing of the 3 steps"):
        Mem1PPOConfig(**trainer_arguments(tmp_path, max_steps=3, critic_warmup_steps=3))
    assert all(torch.equal(before[name], parameter) for name, parameter in trainer.model.named_parameters())


@pytest.mark.parametrize("kl_in_reward", [False, True])
def test_a_shared_critic_teaches_the_policy_below_it_after_its_warm_up(tmp_path, tokenizer, actor_path, kl_in_reward):
    """Its loss stops at the head while the policy is frozen, and only then; values may come from passes of the policy throughout."""
    gradients = []
    for weight in (1.0, 1e-9):
        trainer = make_ppo(
            tmp_path / str(weight), actor_path, tokenizer, value_model="shared", critic_warmup_steps=1, vf_coef=weight, beta=0.1,
            kl_in_reward=kl_in_reward, learning_rate=0.0, value_learning_rate=1e-9,
        )  # fmt: skip
        wake(trainer)
        play_scripted(trainer, tokenizer, four_plans)
        recorder = record(trainer)
        trainer.train()
        assert not recorder.gradients[0] and not trainer.value_model.detached
        gradients.append(recorder.gradients[1])
    of_both, of_policy = gradients
    assert of_both.keys() == of_policy.keys()
    changed = [
        name for name, tensor in of_both.items() if not torch.allclose(tensor, of_policy[name], rtol=1e-3, atol=1e-6)
    ]
    assert len(changed) > len(of_both) / 2


def test_the_best_policy_comes_back_with_its_critic(tmp_path, tokenizer, actor_path):
    trainer = make_ppo(
        tmp_path, actor_path, tokenizer, eval_dataset=lookup_dataset(2), max_steps=3, save_strategy="steps", save_steps=1,
        eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_marker", greater_is_better=True,
        value_learning_rate=1e-2,
    )  # fmt: skip
    play_scripted(trainer, tokenizer, four_plans)
    seen, evaluate = {}, trainer.evaluate

    def marked(*args, **kwargs):
        step = trainer.state.global_step
        seen[step] = [copy_parameters(module) for module in (trainer.model, trainer.value_model)]
        return {**evaluate(*args, **kwargs), "eval_marker": float(step == 2)}

    trainer.evaluate = marked
    trainer.train()
    for module, best, last in zip((trainer.model, trainer.value_model), seen[2], seen[3]):
        now = dict(module.named_parameters())
        assert all(torch.equal(best[name], parameter) for name, parameter in now.items())
        assert not all(torch.equal(last[name], parameter) for name, parameter in now.items())


def test_a_run_that_was_interrupted_within_a_batch_begins_with_a_new_one(tmp_path, tokenizer, actor_path):
    trainer = make_ppo(
        tmp_path, actor_path, tokenizer, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    play_scripted(trainer, tokenizer, four_plans)
    compute, calls = trainer._compute_loss, []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(*args)

    trainer._compute_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    recorder = record(trainer)
    trainer.train()
    assert len(recorder.batches) == 1 and trainer._step == 2
    fresh = make_ppo(
        tmp_path / "fresh", actor_path, tokenizer, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )  # fmt: skip
    play_scripted(fresh, tokenizer, four_plans)
    expected = record(fresh)
    fresh.train()
    for name, gradient in expected.gradients[0].items():
        assert torch.allclose(recorder.gradients[0][name], gradient, atol=1e-6), name
