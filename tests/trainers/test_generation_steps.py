"""Generation batches that are not one optimizer step: what a step averages over, and what is logged before the weights move."""

from __future__ import annotations

import pytest
import torch
from support.objectives import Watch, sampled_tokens, values_of
from support.ppo_helpers import four_plans, make, wake
from support.trainer_helpers import assert_same_tensors, lookup_dataset, record

SPLITS = [(1, 4), (2, 4), (4, 4), (4, 2)]
"""Micro-batches of an optimizer step, and of a generation batch; with (4, 2) a step trains on two generation batches."""


@pytest.mark.parametrize(("accumulation", "slices"), SPLITS)
def test_ppo_averages_over_the_tokens_of_one_step(tmp_path, tokenizer, actor_path, accumulation, slices):
    """A micro-batch adds its sums over tokens, divided by its step's share of the tokens of its generation batch."""
    trainer = make(
        tmp_path, actor_path, tokenizer, plan=four_plans, train_dataset=lookup_dataset(8), per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation, steps_per_generation=slices, max_steps=4 // accumulation, beta=0.0,
        vf_coef=0.7, whiten_advantages=False, cliprange_value=None, max_grad_norm=0.0, learning_rate=1e-12,
        value_learning_rate=1e-12,
    )  # fmt: skip
    wake(trainer)
    watch = Watch(trainer, actor_path)
    trainer.train()
    assert len(watch.steps) == 4 and len(watch.batches) == 4 // slices
    totals = [sum(len(row) for row in sampled_tokens(batch, batch["advantages"])) for batch in watch.batches]
    for number, step in enumerate(watch.steps):
        advantages, values, returns = (
            torch.cat(sampled_tokens(step.inputs, step.inputs[key])) for key in ("advantages", "old_values", "returns")
        )
        tokens = totals[number // slices] * accumulation / slices
        loss = (-advantages.sum() + 0.7 * 0.5 * (values - returns).square().sum()) / tokens
        torch.testing.assert_close(step.loss, loss, rtol=1e-4, atol=1e-5)
    assert len({int(step.inputs["completion_mask"].sum()) for step in watch.steps}) > 1
    # The critic's gradient over all steps, from plain forwards of every turn
    critic = watch.steps[0].critic
    for batch, trajectories, total in zip(watch.batches, watch.trajectories, totals):
        returns = torch.cat(sampled_tokens(batch, batch["returns"]))
        error = torch.cat(values_of(critic, trajectories)) - returns
        (0.7 * 0.5 * error.square().sum() / (total * accumulation / slices)).backward()
    expected = {f"critic.{name}": p.grad for name, p in critic.named_parameters()}
    taken = [step.gradients for step in watch.steps if step.gradients]
    assert len(taken) == 4 // accumulation
    summed = {name: sum(gradients[name] for gradients in taken) for name in expected}
    assert_same_tensors(expected, summed, 1e-3)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trajectories_are_exchanged_within_a_step_only(tmp_path, tokenizer, actor_path, accumulation):
    """Balancing changes which micro-batch a trajectory is in, not which optimizer step trains on it."""
    of_steps = []
    for balanced in (True, False):
        trainer = make(
            tmp_path / str(balanced), actor_path, tokenizer, plan=four_plans, train_dataset=lookup_dataset(8), beta=0.0,
            per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, steps_per_generation=4,
            max_steps=4 // accumulation, learning_rate=1e-12, value_learning_rate=1e-12,
        )  # fmt: skip
        if not balanced:
            trainer._rearranged = lambda batches: batches
        watch = Watch(trainer, actor_path)
        trainer.train()
        rows = [
            torch.cat([step.inputs["prompt_ids"], step.inputs["completion_ids"]], dim=1).tolist()
            for step in watch.steps
        ]
        of_steps.append(
            [sorted(row for part in rows[i : i + accumulation] for row in part) for i in range(0, 4, accumulation)]
        )
    assert of_steps[0] == of_steps[1]
    assert of_steps[0][0] != of_steps[0][1]


@pytest.mark.parametrize(("accumulation", "steps_until_next"), [(1, 8), (2, 4), (4, 2)])
def test_the_sampler_is_compared_before_the_weights_move(
    tmp_path, tokenizer, actor_path, accumulation, steps_until_next
):
    """Two passes over four micro-batches: only the first step of the first is of the weights that sampled."""
    trainer = make(
        tmp_path, actor_path, tokenizer, train_dataset=lookup_dataset(8), per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation, steps_per_generation=4, num_iterations=2, max_steps=steps_until_next + 1,
        beta=0.0, learning_rate=1e-2,
    )  # fmt: skip
    recorder = record(trainer)
    trainer.train()
    steps = [logs for logs in recorder.logs if "loss" in logs]
    compared = [number for number, logs in enumerate(steps) if "sampling/max_logp_difference" in logs]
    assert compared == [0, steps_until_next]
    assert all(steps[number]["sampling/max_logp_difference"] < 1e-4 for number in compared)
