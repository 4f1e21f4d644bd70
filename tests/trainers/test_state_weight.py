"""`state_loss_weight`: the tokens of the state count for more or less in the policy's loss, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from support.objectives import (
    Watch,
    gradients_of,
    group_advantages,
    logprobs_of,
    token_objective,
    value_loss,
    values_of,
)
from support.ppo_helpers import gae, wake
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import (
    SHORT,
    NoReward,
    SometimesDown,
    assert_same_tensors,
    cut_first_turns,
    lookup_dataset,
    odd,
    record,
    score,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Trajectory, Turn
from mem1_trl.update.state_weights import state_weights


def make(kind, tmp_path, path, tokenizer, **settings):
    settings = {
        "max_turns": 4, "max_observation_length": 40, "per_device_train_batch_size": 8, "num_iterations": 2, "max_steps": 2,
        "max_grad_norm": 0.0, "learning_rate": 1e-2, "environment_retries": 0, **settings,
    }  # fmt: skip
    if kind == "PPO":
        trainer = make_ppo(
            tmp_path, path, tokenizer, environment=SometimesDown, reward_funcs=odd, train_dataset=lookup_dataset(8), beta=0.0,
            gamma=0.97, lam=0.9, whiten_advantages=False, value_learning_rate=1e-2, cliprange_value=None, vf_coef=0.7, **settings,
        )  # fmt: skip
        wake(trainer)
        return trainer
    return Mem1GRPOTrainer(
        model=path,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=4, **settings)),
        reward_funcs=odd,
        train_dataset=lookup_dataset(),
        processing_class=tokenizer,
        environment_factory=NoReward,
        protocol=SHORT,
    )


def hand_weights(tokenizer, trajectory, weight) -> torch.Tensor:
    """`weight` from `<think>` to `</think>`, both one token here, if the turn has both before its action."""
    begin, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    weights = []
    for turn in trajectory.turns:
        ids = list(turn.completion_ids)
        has_state = begin in ids and end in ids and ids.index(begin) < ids.index(end) and turn.state is not None
        inside = range(ids.index(begin), ids.index(end) + 1) if has_state else range(0)
        weights += [weight if place in inside else 1.0 for place in range(len(ids))]
    return torch.tensor(weights)


@pytest.mark.parametrize("weight", [2.5, 0.0])
@pytest.mark.parametrize(("kind", "layout"), [("PPO", "packed"), ("PPO", "per_turn"), ("GRPO", "packed")])
def test_the_terms_of_the_state_are_weighted(tmp_path, tokenizer, actor_path, kind, layout, weight):
    """Two passes, so that ratios are away from 1: loss and gradients by hand, with cut and (PPO) failed episodes."""
    trainer = make(kind, tmp_path, actor_path, tokenizer, layout=layout, state_loss_weight=weight)
    cut_first_turns(trainer, {0: 2})  # inside its state, so that it has none
    watch = Watch(trainer, actor_path)
    trainer.train()
    (trajectories,) = watch.trajectories
    assert (sum(t.error is not None for t in trajectories) > 0) == (kind == "PPO")
    advantages = group_advantages([0.0 if t.error else score(t) for t in trajectories], 4, "group")
    kept = [index for index, t in enumerate(trajectories) if t.error is None]
    trajectories = [trajectories[index] for index in kept]
    with torch.no_grad():
        old = logprobs_of(watch.steps[0].policy, trajectories)
        old_values = values_of(watch.steps[0].critic, trajectories) if kind == "PPO" else []
    if kind == "PPO":
        advantages = [
            torch.tensor(gae([0.0] * (len(v) - 1) + [score(t)], v.tolist(), 0.97, 0.9))
            for t, v in zip(trajectories, old_values, strict=True)
        ]
    weights = [hand_weights(tokenizer, t, weight) for t in trajectories]
    assert {float(w[0]) for w in weights} == {weight, 1.0}  # the cut episode has no state
    for step in watch.steps:
        new = logprobs_of(step.policy, trajectories)
        terms = [token_objective(trainer.args, *rows) for rows in zip(new, old, advantages, strict=True)]
        loss = -torch.cat([w * term for w, term in zip(weights, terms, strict=True)]).mean()
        if not step.first:
            assert abs(float(loss.detach() + torch.cat(terms).detach().mean())) > 1e-3  # not that of equal weights
        if kind == "PPO":
            returns = [a + v for a, v in zip(advantages, old_values, strict=True)]
            loss = loss + 0.7 * value_loss(values_of(step.critic, trajectories), old_values, returns, None)
        torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-4, atol=1e-4)
        assert_same_tensors(gradients_of(loss, step), step.gradients, 2e-3)


@pytest.mark.parametrize("kind", ["PPO", "GRPO"])
def test_a_weight_of_one_changes_no_bit(tmp_path, tokenizer, actor_path, kind):
    ends = []
    for name, settings in (("plain", {}), ("one", {"state_loss_weight": 1.0})):
        trainer = make(kind, tmp_path / name, actor_path, tokenizer, **settings)
        trainer.train()
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_the_gradient_does_not_depend_on_micro_batches(tmp_path, tokenizer, actor_path):
    """Weights are exchanged, padded and cut with the rows they belong to."""
    ends = []
    for size, budget in ((8, None), (2, None), (8, 60)):
        trainer = make(
            "GRPO", tmp_path / f"{size}-{budget}", actor_path, tokenizer, state_loss_weight=3.0, max_steps=1,
            per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, num_iterations=1,
            max_tokens_per_micro_batch=budget, beta=0.0,
        )  # fmt: skip
        recorder = record(trainer)
        trainer.train()
        ends.append(recorder.gradients[0])
    for other in ends[1:]:
        assert_same_tensors(ends[0], other, 1e-3)


def test_weights_by_hand():
    turns = [
        Turn((1,), (5, 6, 7), state_tokens=2),
        Turn((1,), (8, 9, 10, 11), state_begin=1, state_tokens=2),
        Turn((1,), (12,)),
    ]
    sampled = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    weights = state_weights([Trajectory(turns), Trajectory(turns)], [False, True], sampled, 0.5)
    half = [1, 0.5, 0.5, 1, 1, 1, 0.5, 0.5, 1, 1, 1, 1]
    assert weights.tolist() == [half, [1.0] * 12]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"state_loss_weight": -0.5}, "state_loss_weight must be a finite number of at least 0, got -0.5"),
        ({"state_loss_weight": float("inf")}, "state_loss_weight must be a finite number of at least 0, got inf"),
        ({"state_loss_weight": 2.0, "loss_type": "vespo"}, "loss_type='vespo' takes one advantage for a trajectory"),
        ({"state_loss_weight": 2.0, "off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold=0.5 takes one advantage"),
    ],
)  # fmt: skip
def test_what_cannot_be_weighted_is_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=4, **settings))


def test_without_turns_there_is_no_state_to_weight(tmp_path, tokenizer, actor_path):
    with pytest.raises(ValueError, match=r"state_loss_weight=2.0 needs turns that write a state"):
        Mem1GRPOTrainer(
            model=actor_path,
            args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=4, state_loss_weight=2.0)),
            reward_funcs=odd,
            train_dataset=lookup_dataset(),
            processing_class=tokenizer,
        )
