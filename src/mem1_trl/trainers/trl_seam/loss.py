"""
TRL's log-probs and TRL's loss, of rows that are trees of turns.

Wraps `_get_per_token_logps_and_entropies`, so that each token is scored in the context that the agent had, and `_compute_loss`,
so that it knows the tree of the rows and can have a further loss, such as a critic's.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger

from ...update.layout_model import LayoutModel
from ...update.layouts import resolve_layout
from ...update.row_batch import RowBatch
from ...update.scoring import forwarded_tokens
from ...update.self_check import is_single_precision, uses_tf32
from ..dropout import dropout_of
from ..run_stopped import RunStopped
from .contract import check_values
from .generation import TurnGeneration
from .helpers import instance_attribute
from .kept_pass import KeptPass
from .shares import TermWeights

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = get_logger(__name__)

_SUSPICIOUS_DIFFERENCE = 1.0  # nats; half precision stays well below
_WRONG_DIFFERENCE = 0.1  # nats; in float32, a thousand times what rounding does


class TreeLoss(TurnGeneration):
    """Computes TRL's loss with each token in its own context."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._scored_rows: RowBatch | None = None  # while TRL scores the rows of a finished batch
        self._in_loss = False
        self._last_logps: torch.Tensor | None = None
        self.loss_logps: torch.Tensor | None = None
        self.last_readout: torch.Tensor | None = None
        self._readouts: list[tuple[torch.Tensor, torch.Tensor]] | None = None  # while a batch is built
        self.kept_pass: KeptPass | None = None  # of the whole batch, until its loss
        self._kept_of_rows: KeptPass | None = None  # while the loss of the batch is computed
        super().__init__(*args, **kwargs)
        self.layout = resolve_layout(
            self.model, self.args.layout, self.args.agent_settings().longest_context(self.model)
        )
        # TRL hands the attention mask to the load-balancing loss, which takes no 4-D one
        if self.aux_loss_enabled and self.layout == "paper":
            raise ValueError(
                f"layout='paper' does not go with the load balancing of experts (router_aux_loss_coef="
                f"{self.router_aux_loss_coef}), which takes no mask of its own: use layout='per_turn', or set it to 0."
            )
        if self.aux_loss_enabled and self.layout == "packed":
            logger.warning(
                "layout='per_turn' instead of 'packed', since the load balancing of experts (router_aux_loss_coef="
                f"{self.router_aux_loss_coef}) takes no tree. Both are exact; 'packed' forwards fewer tokens."
            )
            self.layout = "per_turn"

    def row_batch(self, batch: dict[str, Any]) -> RowBatch:
        """The rows of a batch with their tree structure."""
        return RowBatch.from_trl(batch)

    def forwarded_tokens(self, rows: RowBatch) -> int:
        """Number of tokens, padding included, of the largest forward pass that training on some rows takes."""
        return forwarded_tokens(rows, self.layout, self.accelerator.unwrap_model(self.model))

    def policy_logps(self, batch: dict[str, Any]) -> torch.Tensor:
        """Log-probs of the current policy, without gradient, shape `(B, C)`."""
        return self.score_rows(self.row_batch(batch), batch["completion_ids"].shape[1])

    def score_rows(self, rows: RowBatch, completion_length: int) -> torch.Tensor:
        """Log-probs of the current policy by TRL's own code in the layout of the run, without gradient, shape `(B, C)`."""
        size = self.args.per_device_train_batch_size if self.mode == "train" else self.args.per_device_eval_batch_size
        with torch.no_grad(), self._scoring(rows):
            logps, *_ = self._get_per_token_logps_and_entropies(
                self.model, rows.input_ids, rows.attention_mask, completion_length, batch_size=size
            )
        return logps

    @contextmanager
    def _scoring(self, rows: RowBatch) -> Iterator[None]:
        """While TRL scores rows of a finished batch, of which it passes only the tokens."""
        with instance_attribute(self, "_scored_rows", rows):
            yield

    def _rows_to_score(self, input_ids: torch.Tensor, completion_length: int) -> RowBatch:
        """The rows whose tokens TRL passes: those of a finished batch, or of the one that is being built."""
        if self._scored_rows is not None:
            return self._scored_rows
        if self.current_batch is None:
            raise RuntimeError("Log-probs were asked for outside of a batch: use `mem1_trl.score_trajectories`.")
        return self.current_batch.row_batch(
            input_ids.shape[1] - completion_length,
            completion_length,
            self.tokenizer.pad_token_id,
            self.accelerator.device,
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        kept, self._kept_of_rows = self._kept_of_rows, None
        if self._in_loss and kept is not None and not args and _asks_for(kwargs, self._asked_by_loss):
            self._last_logps, self.loss_logps, self.last_readout = kept.logps, kept.outputs[0], kept.read
            return kept.outputs
        rows = self._rows_to_score(input_ids, logits_to_keep)
        read_beside = self._in_loss or (self._readouts is not None and model is self.model)
        readout = self.hidden_readout if read_beside else None
        layout_model = LayoutModel(model, self.accelerator.unwrap_model(model), rows, self.layout, readout)
        outputs = super()._get_per_token_logps_and_entropies(
            layout_model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        check_values("_get_per_token_logps_and_entropies", outputs)
        self._last_logps = outputs[0].detach()
        self.loss_logps = outputs[0] if self._in_loss else None
        read = torch.cat(layout_model.read)[:, -logits_to_keep:] if layout_model.read else None
        if self._in_loss:
            self.last_readout = read
        elif self._readouts is not None and read is not None:
            self._readouts.append((outputs[0], read))
        return outputs

    @property
    def _asked_by_loss(self) -> dict[str, Any]:
        """What TRL's loss asks of a pass beside log-probs; what it does not name is `None` or absent."""
        return {"compute_entropy": True, "compute_aux_loss": self.aux_loss_enabled}

    def keep_first_pass(self, batch: dict[str, Any]) -> KeptPass:
        """
        Forward a whole batch as its loss will, with gradient, and let the loss go on from there.

        For a batch that is trained as it stands, in one pass and with the weights of now: no step, no cut and no exchange of rows may lie between.
        """
        rows, length = self.row_batch(batch), batch["completion_ids"].shape[1]
        with self._scoring(rows), instance_attribute(self, "_in_loss", True):
            outputs = self._get_per_token_logps_and_entropies(
                self.model_wrapped, rows.input_ids, rows.attention_mask, length, **self._asked_by_loss
            )
        read, self.last_readout, self.loss_logps = self.last_readout, None, None
        self.kept_pass = KeptPass(batch["episode_ids"], tuple(outputs), read)
        return self.kept_pass

    def read_with(self, logps: torch.Tensor | None) -> torch.Tensor | None:
        """
        What `hidden_readout` gave in the very passes that computed these log-probs of the batch that is being built, shape `(B, C)`.

        A reference that is the policy without its adapter is passed as the policy: only the tensor says whose log-probs it holds.
        """
        return next((read for scored, read in self._readouts or () if scored is logps), None)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        has_token_means = self.loss_type == "bnpo" or bool(self.args.entropy_coef) or self.args.use_adaptive_entropy
        weights = TermWeights.of(inputs, self.loss_type, has_token_means)
        # TRL divides everything but the load balancing of experts by the steps, so the factor of means over tokens goes there;
        # the policy's is then made up for in advantages and KL, which its loss is linear in
        policy = weights.policy / weights.token_means
        steps = getattr(self, "current_gradient_accumulation_steps", 1)  # there are none before training
        beta = self.beta * policy if self.kl_in_loss else 0.0
        # TRL has these with vLLM alone. Elsewhere its mask of off-policy sequences takes the old log-probs, which no penalty of sampling changes
        ours = () if self.use_vllm else ("sampling_per_token_logps",)
        inputs = {**inputs, "advantages": inputs["advantages"] * policy}
        if "loss_weights" in inputs:
            of_rows = inputs["advantages"]
            # The objective of a token is linear in its advantage, whatever the loss type
            inputs["advantages"] = (of_rows[:, None] if of_rows.ndim == 1 else of_rows) * inputs["loss_weights"]
        experts = weights.experts / weights.token_means
        given = {name: value for name, value in inputs.items() if name not in ours}
        gradient = torch.is_grad_enabled() and not self.policy_frozen
        kept, self.kept_pass = self.kept_pass, None
        self._kept_of_rows = kept.of_rows(inputs["episode_ids"]) if kept is not None and gradient else None
        with (
            self._scoring(self.row_batch(inputs)),
            instance_attribute(self, "beta", beta),
            instance_attribute(self, "router_aux_loss_coef", self.router_aux_loss_coef * experts),
            instance_attribute(self, "current_gradient_accumulation_steps", steps / weights.token_means),
            instance_attribute(self, "_in_loss", True),
            torch.set_grad_enabled(gradient),
            self._metrics_of_what_is_trained(inputs),
            self._entropy_controlled_where_trained(inputs),
        ):
            loss = check_values("_compute_loss", super()._compute_loss(model, given))
        self._log_sampler_difference(inputs)
        extra = self.extra_loss(inputs)
        self.loss_logps = None
        return loss if extra is None else loss + extra

    @contextmanager
    def _metrics_of_what_is_trained(self, inputs: dict[str, Any]) -> Iterator[None]:
        """
        TRL's metrics without what nothing is learned from: a pass in which no process has a sound episode has none, nor has one that only fills
        up. Where rows are passed over, processes may have different numbers of them, of which TRL gathers some metrics by row.
        """
        if inputs.get("untrained", False) or self._is_empty_everywhere(inputs):
            with self.metrics_not_kept():
                yield
            return
        if self.mode == "eval" or not self.args.skip_zero_advantages or self.accelerator.num_processes == 1:
            yield
            return
        plain = self.accelerator.gather

        def gather(values: torch.Tensor) -> torch.Tensor:
            if values.is_floating_point():  # NaN stands for no row, as TRL has it
                values = self.accelerator.pad_across_processes(values, dim=0, pad_index=torch.nan)
            return plain(values)

        with instance_attribute(self.accelerator, "gather", gather):
            yield

    def _is_empty_everywhere(self, inputs: dict[str, Any]) -> bool:
        """Whether no process has a token that is trained, which only episodes that are left out can bring about."""
        if "row_scale" not in inputs and not self.mask_truncated_completions:
            return False
        own = self.sampled_mask(inputs).any().reshape(1)
        return not bool(self.accelerator.gather(own).any())

    @contextmanager
    def _entropy_controlled_where_trained(self, inputs: dict[str, Any]) -> Iterator[None]:
        """TRL moves the coefficient of an adaptive entropy bonus in each step; one that does not move the policy leaves it alone."""
        if not self.use_adaptive_entropy or not (self.policy_frozen or inputs.get("idle", False)):
            yield
            return
        with (
            instance_attribute(self.args, "entropy_coef_delta", 0.0),
            instance_attribute(self, "_last_world_entropy", self._last_world_entropy),
        ):
            yield

    def _log_sampler_difference(self, inputs: dict[str, Any]) -> None:
        """
        Log the largest difference between the log-prob a token was sampled with and the one the update computes.

        Only before the first step on a batch, when both are of the same weights. The difference is numerical noise, or comes
        from differences between the sampler and the trainer; a context that does not match shows as nats. In float32, where the
        noise is small, a first batch that differs ends the run, unless a setting explains it.
        """
        sampled = None if inputs.get("untrained", False) else inputs.get("sampling_per_token_logps")
        slices = self.args.steps_per_generation or 1
        before_first_step = min(slices, self.args.gradient_accumulation_steps)
        fresh = self.mode == "eval" or self._step % (slices * self.num_iterations) < before_first_step
        if sampled is None or not fresh or self._last_logps is None:
            return
        mask = self.sampled_mask(inputs).bool() & ~sampled.isnan()
        gap = (self._last_logps - sampled).abs().masked_fill(~mask, 0.0).amax()
        largest = self.accelerator.gather(gap.reshape(1)).max().item()
        self.log_metric("sampling/max_logp_difference", largest)
        # On an H200, TF32 was off by .1 nats in one of 30,000 tokens, and by .02 in a small batch
        exact = self.single_precision and not uses_tf32() and not self.use_vllm
        if largest <= (_WRONG_DIFFERENCE if exact else _SUSPICIOUS_DIFFERENCE):
            return
        reason = self._reason_for_difference()
        found = (
            f"A token was sampled with a log-prob {largest:.2f} nats away from what the update computes in layout="
            f"{self.layout!r}, so that its gradient is of another context or another distribution."
        )
        if reason is not None:
            logger.warning_once(f"{found} The reason is {reason}.")
            return
        causes = (
            "What can be the cause: positions that depend on the length of the batch, padding that the model does not mask, "
            "dropout, a penalty or another change of the logits in sampling, a cap on the logits in one of the two"
            + (", another library or data type of the sampler." if self.use_vllm else ".")
        )
        if exact and self.args.check != "off" and self.mode == "train" and self._step < before_first_step:
            raise RunStopped(f"{found} {causes} check='off' trains anyway.")
        logger.warning_once(f"{found} {causes}")

    @property
    def single_precision(self) -> bool:
        """Whether policy and sampler compute in float32."""
        return self.args.mixed_precision == "no" and is_single_precision(self.model)  # a launcher may set it, too

    def _reason_for_difference(self) -> str | None:
        """What the user has chosen that lets sampler and update differ, or `None`."""
        if self.layout == "paper":
            return "layout='paper', which is inexact and kept for comparison"
        if not self.decoding.samples_from_policy:
            return "a setting of sampling beside the temperature (a penalty, a truncation, `generation_kwargs`)"
        if not self.args.disable_dropout and (found := dropout_of(self.model)):
            named = ", ".join(f"{name}={value:g}" for name, value in found.items())
            return f"dropout ({named}), which draws anew for every pass of the model: set disable_dropout=True"
        return None


def _asks_for(asked: dict[str, Any], known: dict[str, Any]) -> bool:
    """Whether a pass is asked for the known results and nothing else."""
    return {name: value for name, value in asked.items() if value is not None} == known
