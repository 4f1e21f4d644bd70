"""What an option of TRL does to a loss over episodes of several turns: loss and gradients by hand, at ratio 1 and away from it."""

from __future__ import annotations

import pytest
import torch
from support.objectives import (
    Watch,
    entropies_of,
    gradients_of,
    group_advantages,
    logprobs_of,
    policy_loss,
    value_loss,
    values_of,
)
from support.ppo_helpers import gae, wake
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import (
    SHORT,
    NoReward,
    assert_same_tensors,
    cut_first_turns,
    lookup_dataset,
    odd,
    score,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, StopReason


def make_grpo(tmp_path, path, tokenizer, **settings):
    settings = {
        "num_generations": 4, "max_turns": 4, "max_observation_length": 40, "per_device_train_batch_size": 8,
        "num_iterations": 2, "max_steps": 2, "max_grad_norm": 0.0, "learning_rate": 1e-2, "rollout_mode": "lockstep", **settings,
    }  # fmt: skip
    return Mem1GRPOTrainer(
        model=path,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
        reward_funcs=odd,
        train_dataset=lookup_dataset(),
        processing_class=tokenizer,
        environment_factory=NoReward,
        protocol=SHORT,
    )


def is_counted(args, trajectory) -> bool:
    return not (args.mask_truncated_completions and trajectory.stop_reason == StopReason.TRUNCATED)


def recorded(trajectories) -> list[torch.Tensor]:
    return [torch.tensor([p for turn in t.turns for p in turn.logprobs]) for t in trajectories]


GRPO = {
    "dapo": {"loss_type": "dapo"},
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo", "learning_rate": 1e-3},
    "sequence level": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "asymmetric": {"epsilon_high": 0.5},
    "two-sided": {"delta": 1.5, "epsilon_high": 0.3},
    "off-policy mask": {"off_policy_mask_threshold": 0.1},
    "truncated left out": {"mask_truncated_completions": True},
    "high entropy": {"top_entropy_quantile": 0.3},
    "entropy bonus": {"entropy_coef": 0.3},
    "high entropy with a bonus": {"entropy_coef": 0.3, "top_entropy_quantile": 0.3},
    "KL": {"beta": 0.3, "use_bias_correction_kl": False},
    "KL with bias correction": {"beta": 0.3, "use_bias_correction_kl": True},
    "temperature": {"temperature": 0.7},
    "whole batch": {"scale_rewards": "batch"},
}
"""Options, which change the loss of the second pass from that of plain `dapo`."""

SAME_LOSS = ("dapo", "bnpo", "temperature", "whole batch")
"""On one micro-batch `bnpo` is `dapo`; the last two change what goes into a loss."""


@pytest.mark.parametrize(
    ("option", "layout"),
    [*((option, "packed") for option in GRPO), ("vespo", "per_turn"), ("off-policy mask", "per_turn"), ("two-sided", "per_turn")],
)  # fmt: skip
def test_grpo(tmp_path, tokenizer, actor_path, option, layout):
    """Two passes over eight episodes: in the second the ratio is another for each token."""
    trainer = make_grpo(tmp_path, actor_path, tokenizer, layout=layout, **GRPO[option])
    args = trainer.args
    if option == "truncated left out":
        cut_first_turns(trainer, {0: 4, 5: 4})
    watch = Watch(trainer, actor_path)
    trainer.train()
    (trajectories,) = watch.trajectories
    assert {len(t.turns) for t in trajectories} >= {2, 3}
    advantages = group_advantages([score(t) for t in trajectories], 4, args.scale_rewards)
    counted = [is_counted(args, t) for t in trajectories]
    assert counted.count(False) == (2 if option == "truncated left out" else 0)
    with torch.no_grad():
        old = logprobs_of(watch.steps[0].policy, trajectories, args.temperature)
    assert [step.first for step in watch.steps] == [True, False]
    for step in watch.steps:
        new = logprobs_of(step.policy, trajectories, args.temperature)
        entropies = entropies_of(step.policy, trajectories, args.temperature)
        values = {
            "old": old, "advantages": advantages, "entropies": entropies, "reference": old, "sampler": recorded(trajectories),
            "counted": counted,
        }  # fmt: skip
        loss = policy_loss(args, new, **values, beta=args.beta, entropy_coef=args.entropy_coef)
        torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-4, atol=1e-5)
        if option not in SAME_LOSS and not step.first:
            plain = Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=4))
            with torch.no_grad():
                other = policy_loss(plain, new, **{**values, "counted": None})
            assert abs(float(other - loss.detach())) > 1e-3, "the option changes nothing here, so nothing is held"
        assert_same_tensors(gradients_of(loss, step), step.gradients, 1e-3)


def test_adaptive_entropy(tmp_path, tokenizer, actor_path):
    """The weight grows by a step while the entropy is at most its target, shrinks above it, and acts in the next step."""
    targets = {"low": 0.05, "high": 5.0}
    for name, target in targets.items():
        trainer = make_grpo(
            tmp_path / name, actor_path, tokenizer, entropy_coef=0.2, use_adaptive_entropy=True, entropy_target=target,
            entropy_coef_delta=0.05, entropy_coef_max=0.23, entropy_coef_min=0.12, num_iterations=3, max_steps=3,
        )  # fmt: skip
        watch = Watch(trainer, actor_path)
        trainer.train()
        (trajectories,) = watch.trajectories
        advantages = group_advantages([score(t) for t in trajectories], 4, "group")
        old = [row.detach() for row in logprobs_of(watch.steps[0].policy, trajectories)]
        # Nothing before the first measurement; then 0.2 + 0.05 and 0.23 at most, or none at all above the target
        weights = {"high": [0.0, 0.23, 0.23], "low": [0.0] * 3}[name]
        for step, weight in zip(watch.steps, weights, strict=True):
            entropies = entropies_of(step.policy, trajectories)
            assert targets["low"] < float(torch.cat(entropies).mean().detach()) < targets["high"]
            new = logprobs_of(step.policy, trajectories)
            loss = policy_loss(trainer.args, new, old, advantages, entropies, entropy_coef=weight)
            torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-4, atol=1e-5)
            assert_same_tensors(gradients_of(loss, step), step.gradients, 1e-3)
        logged = [logs["entropy_coef"] for logs in trainer.state.log_history if "entropy_coef" in logs]
        expected = {"high": [0.23] * 3, "low": [0.15, 0.12, 0.12]}[name]
        assert logged == pytest.approx(expected)


PPO = {
    "dapo": {},
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
    "sapo": {"loss_type": "sapo"},
    "asymmetric": {"epsilon_high": 0.5},
    "two-sided": {"delta": 1.5, "epsilon_high": 0.3},
    "truncated left out": {"mask_truncated_completions": True},
    "high entropy": {"top_entropy_quantile": 0.3},
    "entropy bonus": {"entropy_coef": 0.3},
    "KL in the loss": {"beta": 0.3, "kl_in_reward": False, "use_bias_correction_kl": False},
    "KL in the reward": {"beta": 0.3},
    "temperature": {"temperature": 0.7},
    "values clipped": {"cliprange_value": 0.02},
}


@pytest.mark.parametrize("option", PPO)
def test_ppo(tmp_path, tokenizer, actor_path, option):
    """Two passes over eight episodes, policy and critic together, from plain forwards of both to all gradients."""
    settings = {"beta": 0.0, "cliprange_value": None, **PPO[option]}
    trainer = make_ppo(
        tmp_path, actor_path, tokenizer, environment=NoReward, reward_funcs=odd, train_dataset=lookup_dataset(8),
        per_device_train_batch_size=8, num_iterations=2, max_steps=2, max_grad_norm=0.0, learning_rate=1e-2, gamma=0.97,
        lam=0.9, whiten_advantages=False, vf_coef=0.7, value_learning_rate=1e-2, **settings,
    )  # fmt: skip
    args = trainer.args
    wake(trainer)
    if option == "truncated left out":
        cut_first_turns(trainer, {0: 4, 5: 4})
    watch = Watch(trainer, actor_path)
    trainer.train()
    (trajectories,) = watch.trajectories
    first = watch.steps[0]
    with torch.no_grad():
        old, old_values = (
            logprobs_of(first.policy, trajectories, args.temperature),
            values_of(first.critic, trajectories),
        )
    counted = [is_counted(args, t) for t in trajectories]
    advantages = []
    for trajectory, values in zip(trajectories, old_values, strict=True):
        rewards = [0.0] * len(values)
        rewards[-1] = score(
            trajectory
        )  # at the first step the policy is its reference, so that no penalty is in the reward
        advantages.append(torch.tensor(gae(rewards, values.tolist(), args.gamma, args.lam)))
    returns = [a + v for a, v in zip(advantages, old_values)]
    kept = [i for i, one in enumerate(counted) if one]
    assert len(kept) == (6 if option == "truncated left out" else 8)
    for step in watch.steps:
        new = logprobs_of(step.policy, trajectories, args.temperature)
        loss = policy_loss(
            args, new, old, advantages, entropies_of(step.policy, trajectories, args.temperature), reference=old,
            counted=counted, beta=0.0 if args.kl_in_reward else args.beta, entropy_coef=args.entropy_coef,
        )  # fmt: skip
        of_critic = [[rows[i] for i in kept] for rows in (values_of(step.critic, trajectories), old_values, returns)]
        loss = loss + args.vf_coef * value_loss(*of_critic, args.cliprange_value)
        torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-4, atol=1e-4)
        assert_same_tensors(gradients_of(loss, step), step.gradients, 2e-3)
    assert (torch.cat(old) - torch.cat(new).detach()).abs().max() > 0.2  # away from ratio 1
