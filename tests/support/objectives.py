"""TRL's objectives over trajectories, written out from their papers, and a watch that holds every loss of a trainer against them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from support.helpers import oracle_entropies, oracle_logprobs
from support.ppo_helpers import oracle_values
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from mem1_trl import Trajectory
from mem1_trl.update.critic.critic import SharedValueHead, ValueModel

Rows = list[torch.Tensor]
"""One tensor for each trajectory: a number for each sampled token, turn after turn."""


def group_advantages(rewards: list[float], size: int, scale: str) -> Rows:
    """GRPO (arXiv 2402.03300): how much better than its group, in standard deviations of the group, of the batch, or not scaled."""
    groups = torch.tensor(rewards).view(-1, size)
    centred = groups - groups.mean(1, keepdim=True)
    spread = {"group": groups.std(1, keepdim=True), "batch": groups.flatten().std(), "none": torch.tensor(1.0 - 1e-4)}
    return list((centred / (spread[scale] + 1e-4)).flatten())


def token_objective(args: Any, new: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """What is maximised for each sampled token of one trajectory, the KL penalty and all masks left aside."""
    log_ratio = new - old
    if args.importance_sampling_level == "sequence":  # GSPO, arXiv 2507.18071: the geometric mean
        log_ratio = log_ratio.mean().expand_as(new)
    ratio = log_ratio.exp()
    if args.loss_type == "cispo":  # MiniMax-M1, arXiv 2506.13585
        return ratio.clamp(max=args.epsilon_high).detach() * advantage * new
    if args.loss_type == "sapo":  # arXiv 2511.20347
        tau = torch.where(advantage > 0, args.sapo_temperature_pos, args.sapo_temperature_neg)
        return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantage
    if args.loss_type == "vespo":  # the weight of a whole trajectory: w^k e^(lambda (1 - w))
        positive = bool(advantage >= 0)
        k = args.vespo_k_pos if positive else args.vespo_k_neg
        strength = args.vespo_lambda_pos if positive else args.vespo_lambda_neg
        w = (new - old).sum().exp().detach()
        return w**k * torch.exp(strength * (1 - w)) * advantage * new
    clipped = ratio.clamp(1 - args.epsilon, 1 + (args.epsilon if args.epsilon_high is None else args.epsilon_high))
    if args.delta is not None:  # INTELLECT-2, arXiv 2505.07291
        ratio = ratio.clamp(max=args.delta)
    return torch.minimum(ratio * advantage, clipped * advantage)


def policy_loss(
    args: Any,
    new: Rows,
    old: Rows,
    advantages: Rows,
    entropies: Rows,
    reference: Rows | None = None,
    sampler: Rows | None = None,
    counted: list[bool] | None = None,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> torch.Tensor:
    """
    The loss of an optimizer step on one micro-batch.

    Args:
        args ([`~trl.GRPOConfig`]): Names the objective.
        new, old, reference, sampler: Log-probs by the policy, by the policy that played, by the reference, and as recorded.
        advantages: One number for each trajectory, or for each of its tokens.
        entropies: Of the policy.
        counted: Which trajectories are in the loss; the others still count in a mean over trajectories.
        beta, entropy_coef: Weights of the KL divergence to the reference and of the entropy.
    """
    counted = [True] * len(new) if counted is None else counted
    kept = [i for i, one in enumerate(counted) if one]
    threshold = -1.0
    if args.top_entropy_quantile < 1.0:  # arXiv 2506.01939
        threshold = float(torch.quantile(torch.cat([entropies[i] for i in kept]), 1 - args.top_entropy_quantile))
    losses, uncertain = [], []
    for i in kept:
        loss = -token_objective(args, new[i], old[i], advantages[i])
        if args.off_policy_mask_threshold is not None:  # DeepSeek-V3.2, arXiv 2512.02556
            drift = ((old if sampler is None else sampler)[i] - new[i]).mean()
            loss = loss * float(bool(advantages[i] >= 0) or float(drift) <= args.off_policy_mask_threshold)
        loss = loss * (entropies[i] >= threshold)
        if beta:
            gap = reference[i] - new[i]  # type: ignore[index]
            divergence = gap.exp() - gap - 1  # k3, http://joschu.net/blog/kl-approx.html
            if args.use_bias_correction_kl:
                divergence = divergence * (new[i] - old[i]).exp()
            loss = loss + beta * divergence
        losses.append(loss)
        uncertain.append(entropies[i][entropies[i] >= threshold])
    if args.loss_type in ("grpo", "sapo"):
        total = torch.stack([loss.mean() for loss in losses]).sum() / len(new)
    elif args.loss_type == "luspo":
        total = torch.stack([loss.sum() for loss in losses]).sum() / len(new)
    elif args.loss_type == "dr_grpo":
        total = torch.cat(losses).sum() / (len(new) * args.max_completion_length)
    else:
        total = torch.cat(losses).mean()
    return total - entropy_coef * torch.cat(uncertain).mean()


def value_loss(new: Rows, old: Rows, returns: Rows, cliprange: float | None) -> torch.Tensor:
    """Half the squared error of the values, no smaller than that of values held near the old ones."""
    new_, old_, target = torch.cat(new), torch.cat(old), torch.cat(returns)
    error = (new_ - target) ** 2
    if cliprange is not None:
        error = torch.maximum(error, (old_ + (new_ - old_).clamp(-cliprange, cliprange) - target) ** 2)
    return 0.5 * error.mean()


def in_float32(trainer: Any, path: str) -> tuple[PreTrainedModel, Any]:
    """Plain models in float32 with the weights that policy and critic (`None` without one) have at the moment."""
    policy = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    policy.load_state_dict(trainer.model.state_dict())
    if not hasattr(trainer, "value_model"):
        return policy, None
    if isinstance(trainer.value_model, SharedValueHead):
        critic = SharedValueHead(policy)
    else:
        critic = ValueModel(copy.deepcopy(policy.model))
    critic.load_state_dict(trainer.value_model.state_dict())
    return policy, critic


@dataclass
class Step:
    """What a trainer computed at an optimizer step, and the weights it computed it with."""

    loss: torch.Tensor
    policy: PreTrainedModel
    critic: Any
    inputs: dict[str, Any]
    logps: torch.Tensor
    """The policy's log-probs of the tokens of `inputs`."""
    first: bool
    """Whether the trajectories were played by these very weights."""
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


class Watch(TrainerCallback):
    """
    Keeps, for each optimizer step of a trainer with one micro-batch a step, its loss, its gradients and the weights before it.

    Args:
        trainer: The trainer, before it trains.
        path (`str`): Where its model was loaded from.
    """

    def __init__(self, trainer: Any, path: str):
        self.trainer = trainer
        self.steps: list[Step] = []
        self.trajectories: list[list[Trajectory]] = []
        self.batches: list[dict[str, Any]] = []
        trainer.add_callback(self)
        loss_of, generate = trainer._compute_loss, trainer._generate_and_score_completions
        rewarded = trainer.rewarded
        fresh = False

        def compute_loss(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            nonlocal fresh
            models = in_float32(trainer, path)
            loss = loss_of(model, inputs)
            self.steps.append(Step(loss.detach().clone(), *models, inputs, trainer._last_logps, first=fresh))
            fresh = False
            return loss

        def generate_and_score(inputs: Any) -> dict[str, Any]:
            nonlocal fresh
            batch = generate(inputs)
            self.batches.append(batch)
            fresh = True
            return batch

        def keep(trajectories: list[Trajectory]) -> None:
            self.trajectories.append(trajectories)
            rewarded(trajectories)

        trainer._compute_loss, trainer._generate_and_score_completions = compute_loss, generate_and_score
        trainer.rewarded = keep

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        modules = {"policy": self.trainer.model, "critic": getattr(self.trainer, "value_model", None)}
        self.steps[-1].gradients = {
            f"{kind}.{name}": parameter.grad.detach().float().clone()
            for kind, module in modules.items()
            if module is not None
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        }


def gradients_of(loss: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
    """Gradients of an oracle's loss, under the names of [`Watch`]."""
    loss.backward()
    modules = {"policy": step.policy, "critic": step.critic}
    return {
        f"{kind}.{name}": parameter.grad
        for kind, module in modules.items()
        if module is not None
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def sampled_tokens(batch: dict[str, Any], values: torch.Tensor) -> Rows:
    """The entries of `(B, C)` values that belong to sampled tokens, for each row of a batch."""
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    return [row[kept] for row, kept in zip(values, mask)]


def logprobs_of(model: PreTrainedModel, trajectories: list[Trajectory], temperature: float = 1.0) -> Rows:
    """Log-probs of all sampled tokens, for each trajectory."""
    return [torch.cat(oracle_logprobs(model, trajectory, temperature)) for trajectory in trajectories]


def entropies_of(model: PreTrainedModel, trajectories: list[Trajectory], temperature: float = 1.0) -> Rows:
    """Entropies at all sampled tokens, for each trajectory."""
    return [oracle_entropies(model, trajectory, temperature) for trajectory in trajectories]


def values_of(critic: Any, trajectories: list[Trajectory]) -> Rows:
    """Values before all sampled tokens, for each trajectory."""
    return [oracle_values(critic, trajectory) for trajectory in trajectories]
