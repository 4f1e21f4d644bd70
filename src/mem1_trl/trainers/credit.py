"""What PPO learns from a batch: rewards become advantages of tokens, and targets of the critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..update.advantages import generalized_advantages, masked_whiten, token_rewards, turn_end_rewards
from ..update.critic.bootstrap import values_after
from ..update.losses import clipped_value_loss, explained_variance
from ..update.turn_advantages import turn_begins, turn_level_advantages, two_level_advantages
from .mem1 import Mem1Trainer
from .trl_seam.batch import is_truncated
from .trl_seam.batch_rows import row_chunks

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..configs import Mem1PPOConfig
    from ..trajectory import Trajectory
    from ..update.critic.critic import SharedValueHead, ValueModel


class CreditingTrainer(Mem1Trainer):
    """The part of [`Mem1PPOTrainer`] that estimates advantages and computes the loss of the critic."""

    args: Mem1PPOConfig
    value_model: ValueModel | SharedValueHead

    def values(self, batch: dict[str, Any]) -> torch.Tensor:
        """Values before each generated token, shape `(B, C)`, float32; zero elsewhere."""
        raise NotImplementedError

    def extend_batch(self, batch: dict[str, Any], trajectories: list[Trajectory], rewards: torch.Tensor) -> None:
        super().extend_batch(batch, trajectories, rewards)
        mask = self.sampled_mask(batch)
        scored = ~rewards.isnan()
        credited = mask * scored[:, None]
        penalty = None
        to_teacher = self.distillation is not None and not self.distillation.in_loss
        kl_in_reward = self.args.kl_in_reward and self.beta != 0.0
        logps: Any = batch.get("old_per_token_logps")
        kept = self.keep_first_pass(batch) if logps is None and self.loss_goes_on_from_kept else None
        if logps is None and (to_teacher or kl_in_reward):
            logps = self.policy_logps(batch) if kept is None else kept.logps
        if kl_in_reward:
            penalty = logps - batch["ref_per_token_logps"]
            self.log_masked_mean("kl", penalty, mask)
        of_turns = [trajectory.turn_rewards for trajectory in trajectories]
        at_turn_ends = turn_end_rewards(of_turns, batch["turn_ids"], credited)
        at_the_end = rewards.nan_to_num(0.0) - at_turn_ends.sum(1)
        token_level = token_rewards(at_the_end, credited, penalty, self.beta) + at_turn_ends
        if to_teacher:
            assert self.distillation is not None
            token_level = token_level - self.args.distillation_weight * self.distillation.gaps(batch, logps) * credited
        if self.args.bootstrap_truncated:
            batch["final_values"] = self._values_where_cut(trajectories)
        if self.args.advantage_level == "turn":
            batch["value_weights"] = self._weights_of_begins(batch, mask)
        batch["token_rewards"], batch["credited"] = token_level, credited
        # Of a shared critic, if the policy was forwarded
        values = self.read_with(logps) if kept is None or kept.read is None else kept.read.detach()
        values, advantages, returns = self._credit(batch, values)
        for name in ("token_rewards", "credited", "final_values"):
            batch.pop(name, None)
        valued = self._valued(batch, credited)
        self._log_values(values, returns, advantages, credited, valued)
        if self.args.whiten_advantages:
            advantages = masked_whiten(advantages, credited, self.accelerator.gather)
        batch["advantages"] = advantages
        self.show_advantages((advantages * credited).sum(1) / credited.sum(1).clamp(min=1))
        batch["old_values"], batch["returns"] = values, returns

    def _credit(
        self, batch: dict[str, Any], values: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Values, advantages and targets of the critic, each `(B, C)`.

        Where the critic [`~CreditingTrainer.learns_from_first_pass`] and no row is to be cut, its gradient is added here: no second forward
        pass, and no moment in which its activations are held beside those of the policy.
        """
        if values is not None:
            return (values, *self._estimate(batch, values))
        chosen = self.passes_with_gradient(batch) if self.learns_from_first_pass else None
        if chosen is None:
            with torch.no_grad():
                size = max(1, self.args.per_device_train_batch_size)
                values = torch.cat([self.values(chunk) for chunk in row_chunks(batch, size)])
            return (values, *self._estimate(batch, values))
        batch["critic_has_learned"] = torch.ones((), dtype=torch.bool, device=batch["completion_ids"].device)
        (passes, rows), found = chosen, []
        for number, chunk in enumerate(passes, 1):
            with self.pass_of_critic(last=number == len(passes)):
                values = self.values(chunk)
                known = values.detach()
                advantages, returns = self._estimate(chunk, known)
                loss, _ = self._value_loss(values, {**chunk, "old_values": known, "returns": returns})
                loss.backward()
            found.append((known, advantages, returns))
        order = torch.cat(rows).argsort()
        # The last passes have no row of the batch
        values, advantages, returns = (torch.cat(parts[: len(rows)])[order] for parts in zip(*found))
        return values, advantages, returns

    @property
    def learns_from_first_pass(self) -> bool:
        """Whether the pass that gives the values of a batch is the one that its critic learns from, since its weights are still the same then."""
        return False

    @property
    def loss_goes_on_from_kept(self) -> bool:
        """Whether a batch is trained as it stands, in one pass, so that its loss can go on from the pass that gives values of a shared critic."""
        return False

    def pass_of_critic(self, last: bool) -> AbstractContextManager[Any]:
        """Around a forward and backward pass of the critic alone, the `last` one before its step or not."""
        raise NotImplementedError

    def _valued(self, batch: dict[str, Any], credited: torch.Tensor) -> torch.Tensor:
        """Tokens whose values have targets, shape `(B, C)`."""
        return credited * (batch["value_weights"] > 0) if "value_weights" in batch else credited

    def _estimate(self, batch: dict[str, Any], values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages by `advantage_level`, and targets of the critic, each `(B, C)`."""
        credited = batch["credited"]
        advantages, returns = self._advantages(
            batch["token_rewards"], values, credited, batch["turn_ids"], batch.get("final_values")
        )
        # A trajectory that nothing scored teaches the critic nothing: its own values are its targets
        return advantages, torch.where(self._valued(batch, credited).bool(), returns, values)

    def _advantages(
        self,
        rewards: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
        turn_ids: torch.Tensor,
        final_values: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns by `advantage_level`, each `(B, C)`."""
        args = self.args
        if args.advantage_level == "turn":
            return turn_level_advantages(rewards, values, mask, turn_ids, args.gamma, args.lam, final_values)
        if args.advantage_level == "two_level":
            of_tokens = (args.token_gamma, args.token_lam)
            return two_level_advantages(
                rewards, values, mask, turn_ids, args.gamma, args.lam, *of_tokens, final_values
            )
        return generalized_advantages(rewards, values, mask, args.gamma, args.lam, final_values)

    def _weights_of_begins(self, batch: dict[str, Any], mask: torch.Tensor) -> torch.Tensor:
        """
        Weights of values in their loss if only those at the begins of turns are used, shape `(B, C)`.

        The loss divides by the number of generated tokens; these make it the mean over the turns of the generation batch.
        """
        begins = turn_begins(mask, batch["turn_ids"])
        counts = self.accelerator.gather(torch.stack([mask.sum(), begins.sum()])[None]).sum(0)
        return begins * (counts[0] / counts[1].clamp(min=1))

    def _values_where_cut(self, trajectories: list[Trajectory]) -> torch.Tensor:
        """Values of the states in which turns were cut at `max_completion_length`, shape `(B,)`, float32; 0 for other episodes."""
        final = torch.zeros(len(trajectories), device=self.accelerator.device)
        cut = [index for index, trajectory in enumerate(trajectories) if is_truncated(trajectory)]
        # Not of the wrapped critic, whose calls are collective: processes have different numbers of such episodes
        size = max(1, self.args.per_device_train_batch_size)
        passes = 0
        if self.weights_are_split:  # where every call is, all the same
            own = torch.tensor([-(-len(cut) // size)], device=self.accelerator.device)
            passes = int(self.accelerator.gather(own).max())
        last = [trajectories[index].turns[-1] for index in cut]
        final[cut] = values_after(last, self.value_model, self.eos_token_ids[0], size, passes)
        return final

    def extra_loss(self, batch: dict[str, Any]) -> torch.Tensor | None:
        of_teacher = super().extra_loss(batch)
        # A shared critic was read off in the forward pass of the policy's loss
        values, self.last_readout = self.last_readout, None
        if values is None:
            values = batch["old_values"] if "critic_has_learned" in batch else self.values(batch)
        self.last_values = values.detach()
        loss, (losses, clipped, mask) = self._value_loss(values, batch)
        self.log_masked_mean("value/loss", losses, mask)
        self.log_masked_mean("value/clip_ratio", clipped, mask)
        return loss if of_teacher is None else loss + of_teacher

    def _value_loss(
        self, values: torch.Tensor, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The critic's part of the loss of a step; and by token, each `(B, C)`: its loss, whether it was clipped, and its weight."""
        mask = self.sampled_mask(batch)
        if "value_weights" in batch:
            mask = mask * batch["value_weights"]
        losses, clipped = clipped_value_loss(values, batch["old_values"], batch["returns"], self.args.cliprange_value)
        loss = self.args.vf_coef * (losses * mask).sum() / self.token_normalizer(batch)
        return loss, (losses.detach(), clipped, mask)

    def _log_values(
        self,
        values: torch.Tensor,
        returns: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        valued: torch.Tensor,
    ) -> None:
        self.log_masked_mean("value/mean", values, valued)
        self.log_masked_mean("value/return_mean", returns, valued)
        self.log_masked_mean("value/advantage_abs_mean", advantages.abs(), mask)
        flat = valued.bool()
        pairs = self.gather_records([torch.stack([values[flat], returns[flat]]).cpu()])
        both = torch.cat(pairs, dim=1)
        self.log_metric("value/explained_variance", explained_variance(both[0], both[1], torch.ones_like(both[0])))
