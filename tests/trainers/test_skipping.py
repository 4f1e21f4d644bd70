"""`skip_zero_advantages` changes nothing that is learned: gradients of steps that pass over some trajectories, and what they forward."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support.helpers import tiny_model
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import (
    SHORT,
    NoReward,
    ScriptedGenerator,
    assert_same_tensors,
    lookup_dataset,
    train_and_count,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer

THIRD = 1 / 3


def of_turns(turns):
    """A policy whose episode `i` searches until its last turn, of `turns[i]`, and thinks of something of its own."""

    def script(call, index, prompt):
        place = [i for i, count in enumerate(turns) if count > call][index]
        last = turns[place] == call + 1
        action = "<answer>1</answer>" if last else f"<search>{'uvwxyz'[(call + place) % 6]}</search>"
        return f"<think>{'k' * (1 + place % 3)}</think>{action}"

    return script


def rewarding(numbers):
    """A reward function that gives each episode of a batch its number."""

    def given(completions, **kwargs):
        return list(numbers)

    return given


TURNS = [1, 2, 3, 4, 2, 2, 1, 3]
MIXED = [0.0, 1.0, THIRD, 0.5, *[THIRD] * 4]  # the second group of four is equal


def step(tmp_path, tokenizer, skip, rewards=MIXED, turns=TURNS, **settings):
    """One step; what was recorded, and the tokens of each pass with gradient."""
    settings = {
        "num_generations": 4, "per_device_train_batch_size": 8, "max_turns": 4, "max_observation_length": 40, "max_steps": 1,
        "beta": 0.0, "max_grad_norm": 0.0, "max_completion_length": 40, "skip_zero_advantages": skip, "shuffle_dataset": False,
        **settings,
    }  # fmt: skip
    torch.manual_seed(0)
    trainer = Mem1GRPOTrainer(
        model=tiny_model("llama"),
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path / str(skip), **settings)),
        reward_funcs=rewarding(rewards),
        train_dataset=lookup_dataset(2),
        processing_class=tokenizer,
        environment_factory=NoReward,
        protocol=SHORT,
    )
    trainer.rollout.mode = "lockstep"
    trainer.rollout.generate = ScriptedGenerator(tokenizer, of_turns(turns), settings["max_completion_length"])
    return train_and_count(trainer)


LOSSES = ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo"]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_gradient_is_that_of_all_trajectories(tmp_path, tokenizer, loss_type):
    more = {"importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    plain, whole = step(tmp_path, tokenizer, False, loss_type=loss_type, **more)
    skipping, some = step(tmp_path, tokenizer, True, loss_type=loss_type, **more)
    assert max(g.abs().max() for g in plain.gradients[0].values()) > 1e-3
    assert_same_tensors(plain.gradients[0], skipping.gradients[0], 1e-4)
    assert float(skipping.losses[0]) == pytest.approx(float(plain.losses[0]), rel=1e-4, abs=1e-6)
    assert len(some) == len(whole) == 1 and some[0] < 0.7 * whole[0]
    assert skipping.logs[0]["micro_batch/skipped_rows"] == 0.5
    assert "micro_batch/skipped_rows" not in plain.logs[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens_per_micro_batch": 120, "loss_type": "grpo"},
        {"max_tokens_per_micro_batch": 60},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "loss_type": "bnpo",
            "layout": "per_turn",
        },
        {
            "per_device_train_batch_size": 4,
            "steps_per_generation": 2,
            "gradient_accumulation_steps": 1,
            "max_steps": 2,
        },
        {"num_iterations": 2, "max_steps": 2},
        {"scale_rewards": "batch", "epsilon_high": 0.3, "delta": 2.0},
        {"advantage_level": "turn"},
    ],
    ids=lambda settings: ",".join(map(str, settings.values())),
)
def test_with_what_else_decides_about_passes(tmp_path, tokenizer, settings):
    plain, whole = step(tmp_path, tokenizer, False, **settings)
    skipping, some = step(tmp_path, tokenizer, True, **settings)
    assert len(plain.gradients) == len(skipping.gradients) == settings.get("max_steps", 1)
    for one, other in zip(plain.gradients, skipping.gradients):
        assert_same_tensors(one, other, 1e-4)
    assert sum(some) < 0.8 * sum(whole)
    if budget := settings.get("max_tokens_per_micro_batch"):
        assert max(some) <= budget and len(some) < len(whole)


@pytest.mark.parametrize("advantage_level", ["episode", "turn"])
def test_tokens_of_high_entropy_are_a_share_of_what_is_trained(tmp_path, tokenizer, monkeypatch, advantage_level):
    """The gradient of a run that forwards all trajectories and looks for these tokens among those with an advantage."""
    settings = {"top_entropy_quantile": 0.3, "advantage_level": advantage_level}
    skipping, some = step(tmp_path, tokenizer, True, **settings)
    unlike, whole = step(tmp_path / "all", tokenizer, False, **settings)
    mask_of, loss_of = Mem1GRPOTrainer.get_high_entropy_mask, Mem1GRPOTrainer._compute_loss
    trained = []

    def compute_loss(self, model, inputs):
        trained[:] = [inputs["advantages"].reshape(len(inputs["advantages"]), -1).any(1)]
        return loss_of(self, model, inputs)

    def of_trained(self, entropies, mask, threshold):
        return mask_of(self, entropies, mask * trained[0][:, None], threshold)

    monkeypatch.setattr(Mem1GRPOTrainer, "_compute_loss", compute_loss)
    monkeypatch.setattr(Mem1GRPOTrainer, "get_high_entropy_mask", of_trained)
    plain, _ = step(tmp_path / "oracle", tokenizer, False, **settings)
    assert_same_tensors(plain.gradients[0], skipping.gradients[0], 1e-4)
    assert any((g - unlike.gradients[0][n]).abs().max() > 1e-4 for n, g in plain.gradients[0].items()), (
        "or nothing is tested"
    )
    assert sum(some) < 0.7 * sum(whole)


def test_micro_batches_are_balanced_by_what_is_trained(tmp_path, tokenizer):
    """Of two micro-batches, one does not get all that is trained."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    recorder, tokens = step(tmp_path, tokenizer, True, **settings, turns=[2] * 8)
    assert len(tokens) == 2 and max(tokens) < 1.2 * min(tokens)
    assert recorder.logs[0]["micro_batch/skipped_rows"] == 0.5


def test_equal_rewards_have_no_advantage_however_they_round(tmp_path, tokenizer):
    """The mean of three numbers of 0.1 is not 0.1 in float32, which TRL's scaling by a standard deviation of 0 turns into advantages."""
    recorder, _ = step(
        tmp_path, tokenizer, True, num_generations=3, per_device_train_batch_size=6,
        rewards=[0.1, 0.1, 0.1, 0.7, 0.7, 0.2], turns=TURNS[:6],
    )  # fmt: skip
    (batch,) = recorder.batches
    by_episode = dict(zip(batch["episode_ids"].tolist(), batch["advantages"].tolist()))
    assert [by_episode[i] == 0.0 for i in range(6)] == [True] * 3 + [False] * 3


def test_a_step_without_any_advantage(tmp_path, tokenizer):
    """Takes a pass over three tokens, and is a step with a gradient of zero, as in TRL."""
    recorder, tokens = step(tmp_path, tokenizer, True, rewards=[0.5] * 8)
    assert tokens == [3]
    assert all(not gradient.any() for gradient in recorder.gradients[0].values())
    assert recorder.logs[0]["micro_batch/skipped_rows"] == 1.0
    assert "entropy" not in recorder.logs[0], "there is nothing to measure"


def test_metrics_of_tokens_are_of_what_is_trained(tmp_path, tokenizer):
    """Micro-batches of one row, of which half train nothing."""
    whole, _ = step(tmp_path / "whole", tokenizer, True)
    recorder, tokens = step(
        tmp_path, tokenizer, True, per_device_train_batch_size=1, gradient_accumulation_steps=8,
    )  # fmt: skip
    assert sorted(tokens)[:4] == [3] * 4 and min(sorted(tokens)[4:]) > 3
    assert recorder.logs[0]["entropy"] == pytest.approx(whole.logs[0]["entropy"], rel=0.02)


@pytest.mark.parametrize(
    "settings", [{"layout": "paper"}, {"mask_truncated_completions": True, "max_completion_length": 6}]
)
def test_other_rows(tmp_path, tokenizer, settings):
    """Of another layout; and of episodes that were cut, which are left out with an advantage or without."""
    plain, _ = step(tmp_path, tokenizer, False, **settings)
    skipping, _ = step(tmp_path, tokenizer, True, **settings)
    if "max_completion_length" in settings:
        assert 0 < plain.logs[0]["episode/stop_reason/truncated"] < 1
    assert_same_tensors(plain.gradients[0], skipping.gradients[0], 1e-4)


@pytest.mark.parametrize(
    "other",
    [
        {"beta": 0.1},
        {"entropy_coef": 0.1},
        {"use_adaptive_entropy": True},
        {"distillation_weight": 0.5},
        {"multi_objective_aggregation": "normalize_then_sum"},
    ],
)
def test_what_learns_from_all_trajectories_is_refused_beside_it(tmp_path, other):
    (name,) = other
    with pytest.raises(ValueError, match=f"{name}=.* needs the trajectories without an advantage"):
        Mem1GRPOConfig(
            **trainer_arguments(tmp_path, num_generations=4, skip_zero_advantages=True, **{"beta": 0.0, **other})
        )


def test_a_critic_and_balanced_experts_are_refused(tmp_path, actor_path, tokenizer):
    with pytest.raises(ValueError, match="skip_zero_advantages=True works on whole sequences or groups"):
        make_ppo(tmp_path, actor_path, tokenizer, skip_zero_advantages=True)
    experts = tiny_model(
        "qwen3", model_type="qwen3_moe", output_router_logits=True, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, decoder_sparse_step=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="by which the load of experts is balanced"):
        Mem1GRPOTrainer(
            model=experts,
            args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=4, skip_zero_advantages=True)),
            reward_funcs=rewarding([0.0]),
            train_dataset=Dataset.from_dict({"prompt": ["q"], "secret": ["1"]}),
            processing_class=tokenizer,
            environment_factory=NoReward,
            protocol=SHORT,
        )
