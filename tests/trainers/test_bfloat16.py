"""
Training in bfloat16, TRL's default: what is promised in float32 is, and the rest is as near to float32 as the plain model.

A number of 100 is a multiple of 0.5 in bfloat16, one of 4 a multiple of 1/64. So values are moved to 100, where the noise of
half-precision hidden states is far below that grid.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.objectives import (
    Rows,
    Watch,
    entropies_of,
    gradients_of,
    group_advantages,
    logprobs_of,
    policy_loss,
    sampled_tokens,
    value_loss,
    values_of,
)
from support.ppo_helpers import gae, make, wake
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer

GAMMA, LAM, BETA = 0.97, 0.9, 0.5
NOISE = 0.1
"""Nats, and units of value: the error that half precision makes in a log-prob or a value of these models is well below."""

RUNS = [(weights, layout) for weights in ("float32", "bfloat16") for layout in ("packed", "per_turn")]
COMMON: dict[str, Any] = {
    "bf16": True, "beta": BETA, "max_steps": 2, "num_iterations": 2, "per_device_train_batch_size": 8, "max_grad_norm": 0.0,
    "learning_rate": 2e-3, "rollout_mode": "lockstep",
}  # fmt: skip


def settings_of(weights: str, layout: str) -> dict[str, Any]:
    return {**COMMON, "layout": layout, "model_init_kwargs": {"dtype": weights}}


def off_grid(values: torch.Tensor) -> float:
    """Share of numbers that are not bfloat16: nearly all of numbers that were computed in float32."""
    assert values.dtype == torch.float32
    return float((values != values.bfloat16().float()).float().mean())


def per_row(batch: dict[str, torch.Tensor], key: str) -> Rows:
    return sampled_tokens(batch, batch[key])


@pytest.fixture(scope="module", params=[*RUNS, ("bfloat16", "packed", "shared")], ids="-".join)
def ppo(request, tmp_path_factory, tokenizer, actor_path):
    """Two passes of PPO over eight episodes, with weights and a layout, and a critic of its own or shared."""
    weights, layout, *critic = request.param
    trainer = make(
        tmp_path_factory.mktemp("ppo"), actor_path, tokenizer, train_dataset=lookup_dataset(8), whiten_advantages=False,
        gamma=GAMMA, lam=LAM, cliprange_value=None, value_learning_rate=1e-2,
        value_model=critic[0] if critic else None, **settings_of(weights, layout),
    )  # fmt: skip
    wake(trainer, policy=0.05)
    with torch.no_grad():
        trainer.value_model.head.bias.fill_(100.123)
    watch = Watch(trainer, actor_path)
    trainer.train()
    assert str(trainer.model.dtype) == f"torch.{weights}"
    return trainer, watch


def logs_of(trainer, name: str) -> float:
    """A number that the first step logged."""
    return next(logs[name] for logs in trainer.state.log_history if name in logs)


def test_values_are_float32(ppo):
    trainer, watch = ppo
    assert trainer.value_model.head.weight.dtype == torch.float32
    (batch,), (trajectories,) = watch.batches, watch.trajectories
    with torch.no_grad():
        oracle = values_of(watch.steps[0].critic, trajectories)
    values = torch.cat(per_row(batch, "old_values"))
    assert off_grid(values) > 0.9
    torch.testing.assert_close(values, torch.cat(oracle), atol=NOISE, rtol=0)


def test_advantages_and_returns_are_those_of_double_precision(ppo):
    """From the very values and log-probs of the batch, so that not even their noise is allowed for."""
    trainer, watch = ppo
    (batch,) = watch.batches
    rows = {key: per_row(batch, key) for key in ("old_values", "old_per_token_logps", "ref_per_token_logps", "advantages", "returns")}  # fmt: skip
    for row, trajectory in enumerate(watch.trajectories[0]):
        values = rows["old_values"][row].double()
        penalty = BETA * (rows["old_per_token_logps"][row].double() - rows["ref_per_token_logps"][row].double())
        rewards = (-penalty).tolist()
        rewards[-1] += trajectory.reward
        expected = torch.tensor(gae(rewards, values.tolist(), GAMMA, LAM))
        torch.testing.assert_close(rows["advantages"][row], expected, atol=2e-4, rtol=1e-5)
        torch.testing.assert_close(rows["returns"][row].double(), expected.double() + values, atol=2e-4, rtol=0)
    gap = torch.cat(rows["old_per_token_logps"]).double() - torch.cat(rows["ref_per_token_logps"]).double()
    assert gap.abs().max() > 0.02
    assert logs_of(trainer, "kl") == pytest.approx(float(gap.mean()), rel=1e-5)


def test_logprobs_of_sampler_policy_and_reference_are_float32(ppo):
    trainer, watch = ppo
    (batch,), (trajectories,) = watch.batches, watch.trajectories
    with torch.no_grad():
        oracle = torch.cat(logprobs_of(watch.steps[0].policy, trajectories))
        reference = trainer.ref_model.float()
        oracles = {"sampling": oracle, "old": oracle, "ref": torch.cat(logprobs_of(reference, trajectories))}
    for name, expected in oracles.items():
        logps = torch.cat(per_row(batch, f"{name}_per_token_logps"))
        torch.testing.assert_close(logps, expected, atol=NOISE, rtol=0)
        assert off_grid(logps) > 0.7  # the likeliest token may be a difference of two multiples of the grid
    gap = torch.cat(per_row(batch, "old_per_token_logps")) - torch.cat(per_row(batch, "sampling_per_token_logps"))
    assert logs_of(trainer, "sampling/max_logp_difference") == pytest.approx(float(gap.abs().max()), abs=1e-6)
    assert float(gap.abs().max()) < NOISE  # next to none where products do not depend on the rows beside them


def relative_error(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], kind: str) -> float:
    names = [name for name in other if name.startswith(kind)]
    assert names
    error = sum(float(((one[name] - other[name]) ** 2).sum()) for name in names)
    return (error / sum(float((other[name] ** 2).sum()) for name in names)) ** 0.5


def gradients_as_near_as_the_plain_model(step, loss_of, kinds: tuple[str, ...]) -> None:
    """Gradients of a step are about as near to those in float32 as those of the plain model in half precision, turn by turn."""
    exact = {name: grad.clone() for name, grad in gradients_of(loss_of(), step).items()}
    for module in (step.policy, step.critic):
        if module is not None:
            module.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = gradients_of(loss_of(), step)
    for kind in kinds:
        assert relative_error(step.gradients, exact, kind) < 2.5 * relative_error(plain, exact, kind) < 0.2


def test_loss_and_gradients_of_ppo(ppo):
    trainer, watch = ppo
    (batch,), (trajectories,) = watch.batches, watch.trajectories
    step = watch.steps[0]
    advantages, returns, old_values = (per_row(batch, key) for key in ("advantages", "returns", "old_values"))
    error = torch.cat(old_values).double() - torch.cat(returns).double()
    expected = -torch.cat(advantages).double().mean() + 0.5 * error.square().mean()
    # At ratio 1, and with the very values of the batch; a thousandth of a percent of two thousand
    torch.testing.assert_close(step.loss.double(), expected, atol=0, rtol=1e-5)

    def loss_of():
        new = logprobs_of(step.policy, trajectories)
        old = [row.detach() for row in new]
        loss = policy_loss(trainer.args, new, old, advantages, entropies=[torch.zeros_like(row) for row in old])
        return loss + value_loss(values_of(step.critic, trajectories), old_values, returns, None)

    gradients_as_near_as_the_plain_model(step, loss_of, ("policy", "critic"))


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_loss_and_gradients_of_grpo(tmp_path, tokenizer, actor_path, run):
    """Both passes: in the second, ratio and divergence are away from nothing."""

    def lengths(trajectories, **kwargs):
        return [t.num_generated_tokens + 0.37 for t in trajectories]

    trainer = Mem1GRPOTrainer(
        model=actor_path,
        args=Mem1GRPOConfig(
            **trainer_arguments(
                tmp_path, num_generations=4, max_turns=4, max_observation_length=40, **settings_of(*run)
            )
        ),
        reward_funcs=lengths,
        train_dataset=lookup_dataset(),
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )
    watch = Watch(trainer, actor_path)
    trainer.train()
    (batch,), (trajectories,) = watch.batches, watch.trajectories
    rewards = [trajectory.reward for trajectory in trajectories]
    advantages = group_advantages(rewards, 4, "group")
    torch.testing.assert_close(batch["advantages"], torch.stack(advantages), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        old = logprobs_of(watch.steps[0].policy, trajectories)
    logged = [logs["kl"] for logs in trainer.state.log_history if "kl" in logs]
    for number, step in enumerate(watch.steps):

        def loss_of(step=step):
            new, entropies = (f(step.policy, trajectories) for f in (logprobs_of, entropies_of))
            return policy_loss(trainer.args, new, old, advantages, entropies, reference=old, beta=BETA)

        gradients_as_near_as_the_plain_model(step, loss_of, ("policy",))
        exact = torch.cat(logprobs_of(step.policy, trajectories)).detach()
        # Rows were shuffled, so their log-probs are compared in order of size
        new = sampled_tokens(step.inputs, step.logps)
        assert off_grid(torch.cat(new)) > 0.7
        torch.testing.assert_close(torch.cat(new).sort().values, exact.sort().values, atol=NOISE, rtol=0)
        # From these log-probs on everything is exact
        mine = [row.double() for row in new]
        before, reference = (
            [row.double() for row in per_row(step.inputs, f"{name}_per_token_logps")] for name in ("old", "ref")
        )
        of_rows = list(step.inputs["advantages"].double())
        zeros = [torch.zeros_like(row) for row in mine]
        loss = policy_loss(trainer.args, mine, before, of_rows, zeros, reference=reference, beta=BETA)
        torch.testing.assert_close(step.loss.double(), loss, atol=1e-6, rtol=1e-5)
        gap, ratio = torch.cat(reference) - torch.cat(mine), (torch.cat(mine) - torch.cat(before)).exp()
        divergence = (gap.exp() - gap - 1) * ratio  # `use_bias_correction_kl`
        assert logged[number] == pytest.approx(float(divergence.mean()), abs=1e-7, rel=1e-4)
    assert logged[1] > 0.005
