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
from .contract import check_values
from .generation import TurnGeneration
from .helpers import instance_attribute

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = get_logger(__name__)

ROW_MEANS = ("grpo", "sapo", "dr_grpo", "luspo")
"""Loss types of TRL that are a mean over the rows of a micro-batch."""

_SUSPICIOUS_DIFFERENCE = 1.0  # nats; half precision stays well below


class TreeLoss(TurnGeneration):
    """Computes TRL's loss with each token in its own context."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._scored_rows: RowBatch | None = None  # while TRL scores the rows of a finished batch
        self._in_loss = False
        self._last_logps: torch.Tensor | None = None
        self.last_readout: torch.Tensor | None = None
        super().__init__(*args, **kwargs)
        self.layout = resolve_layout(self.model, self.args.layout)
        if self.aux_loss_enabled and self.layout == "packed":
            # TRL hands the attention mask to the load-balancing loss, which takes no 4-D one
            self.layout = "per_turn"

    def row_batch(self, batch: dict[str, Any]) -> RowBatch:
        """The rows of a batch with their tree structure."""
        return RowBatch.from_trl(batch)

    def forwarded_tokens(self, rows: RowBatch) -> int:
        """Number of tokens, padding included, of the largest forward pass that training on some rows takes."""
        return forwarded_tokens(rows, self.layout, self.accelerator.unwrap_model(self.model))

    def policy_logps(self, batch: dict[str, Any]) -> torch.Tensor:
        """Log-probs of the current policy, without gradient, shape `(B, C)`."""
        rows = self.row_batch(batch)
        size = self.args.per_device_train_batch_size if self.mode == "train" else self.args.per_device_eval_batch_size
        with torch.no_grad(), self._scoring(rows):
            logps, *_ = self._get_per_token_logps_and_entropies(
                self.model, rows.input_ids, rows.attention_mask, batch["completion_ids"].shape[1], batch_size=size
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
        rows = self._rows_to_score(input_ids, logits_to_keep)
        readout, backbone = (self._in_loss and self.hidden_readout) or (None, None)
        layout_model = LayoutModel(model, self.accelerator.unwrap_model(model), rows, self.layout, readout, backbone)
        outputs = super()._get_per_token_logps_and_entropies(
            layout_model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        check_values("_get_per_token_logps_and_entropies", outputs)
        self._last_logps = outputs[0].detach()
        self.last_readout = torch.cat(layout_model.read)[:, -logits_to_keep:] if layout_model.read else None
        return outputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        beta = self.beta if self.kl_in_loss else 0.0
        if "row_scale" in inputs and self.loss_type in ROW_MEANS:
            # The mean over rows counts those that were left out; advantages and KL are what the loss is linear in
            inputs = {**inputs, "advantages": inputs["advantages"] * inputs["row_scale"]}
            beta = beta * inputs["row_scale"].item()
        gradient = torch.is_grad_enabled() and not self.policy_frozen
        with (
            self._scoring(self.row_batch(inputs)),
            instance_attribute(self, "beta", beta),
            instance_attribute(self, "_in_loss", True),
            torch.set_grad_enabled(gradient),
        ):
            loss = check_values("_compute_loss", super()._compute_loss(model, inputs))
        share = inputs.get("loss_share", 1.0)
        loss = loss if share == 1.0 else share * loss
        self._log_sampler_difference(inputs)
        extra = self.extra_loss(inputs)
        return loss if extra is None else loss + extra

    def _log_sampler_difference(self, inputs: dict[str, Any]) -> None:
        """
        Log the largest difference between the log-prob a token was sampled with and the one the update computes.

        Only before the first step on a batch, when both are of the same weights. The difference is numerical noise, or comes
        from differences between the sampler and the trainer; a context that does not match shows as nats.
        """
        sampled = inputs.get("sampling_per_token_logps")
        slices = self.args.steps_per_generation or 1
        before_first_step = min(slices, self.args.gradient_accumulation_steps)
        fresh = self.mode == "eval" or self._step % (slices * self.num_iterations) < before_first_step
        if sampled is None or not fresh or self._last_logps is None:
            return
        mask = self.sampled_mask(inputs).bool() & ~sampled.isnan()
        gap = (self._last_logps - sampled).abs().masked_fill(~mask, 0.0).amax()
        largest = self.accelerator.gather(gap.reshape(1)).max().item()
        self.log_metric("sampling/max_logp_difference", largest)
        if largest > _SUSPICIOUS_DIFFERENCE and self.layout == "packed" and not self.use_vllm:
            logger.warning_once(
                f"A token was sampled with a log-prob {largest:.2f} nats away from what the update computes. Within one "
                "library that is more than rounding: use layout='per_turn', and report the model to mem1-trl."
            )
