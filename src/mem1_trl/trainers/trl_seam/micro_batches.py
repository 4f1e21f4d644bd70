"""
Micro-batches of about as many tokens each, trained in parts if they are too long, and steps that train nothing.

Wraps `_prepare_inputs`, which cuts a generation batch into micro-batches, and `_compute_loss`, which trains one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import TrainerCallback

from ...update.micro_batches import bins_within
from ...update.unfolding import path_tokens
from ..distillation import TEACHER_LOGPS
from ..refusals import refuse_parts, refuse_skipping
from .batch_rows import has_rows, join_rows, row_chunks, take_rows, with_advantages
from .contract import check_values
from .finite_steps import FiniteSteps
from .helpers import instance_attribute
from .part_metrics import Weights, combined
from .row_pieces import row_pieces, untrained_piece
from .shares import Shares

logger = get_logger(__name__)


class _SkipIdleSteps(TrainerCallback):
    """A step from which every episode was left out changes nothing, though momentum and weight decay would."""

    def __init__(self, trainer: BalancedMicroBatches):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.step_is_idle:
            for module in self.trainer.trained_modules:
                module.zero_grad(set_to_none=True)
        self.trainer.step_is_idle = True


class BalancedMicroBatches(FiniteSteps):
    """Exchanges trajectories between the micro-batches of a step, and trains a long micro-batch in parts."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.step_is_idle = True
        self._said_too_long = False
        super().__init__(*args, **kwargs)
        refuse_parts(self.args, self.is_fsdp_enabled)
        refuse_skipping(self.args, self.aux_loss_enabled)
        self.add_callback(_SkipIdleSteps(self))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        As in [`~transformers.Trainer.training_step`]. DeepSpeed's engine, which steps in its backward pass, makes no step that is idle, and takes
        no part while the policy is frozen.
        """
        if not self.is_deepspeed_enabled:
            return super().training_step(*args, **kwargs)

        def backward(loss: torch.Tensor, **settings: Any) -> None:
            if self.policy_frozen:
                loss.backward()
                return
            with self._no_step_yet() if self.step_is_idle else nullcontext():
                through_the_engine(loss, **settings)

        through_the_engine = self.accelerator.backward
        with instance_attribute(self.accelerator, "backward", backward):
            return super().training_step(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if self.mode == "train":
            self.step_is_idle = self.step_is_idle and bool(inputs.get("idle", False))
        parts = self._parts(inputs)
        if len(parts) == 1:
            return super()._compute_loss(model, parts[0])
        done = torch.zeros((), device=inputs["completion_ids"].device)
        logged = []
        for part in parts[:-1]:
            # The gradient of a part is added now, so that its activations can be freed; `Trainer` adds that of the last
            with self.gradients_stay_here(model):
                with self.metrics_apart() as metrics:
                    loss = super()._compute_loss(model, part)
                logged.append(metrics)
                # As `Trainer` calls it: the loss is already what one step of several is to have
                engine = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
                with torch.autocast(loss.device.type, enabled=False):
                    self.accelerator.backward(loss, **engine)
            done += loss.detach()
        with self.metrics_apart() as metrics:
            loss = super()._compute_loss(model, parts[-1])
        self._log_whole(parts, [*logged, metrics])
        return loss + done

    def _log_whole(self, parts: list[dict[str, Any]], logged: list[dict[str, list[float]]]) -> None:
        """
        Log the metrics of a micro-batch that was trained in parts: of means over tokens the mean, each part weighing as many as it trains in all
        processes. `policy_loss` has factors of its own in each process and is left out.
        """
        sizes = self.accelerator.reduce(torch.stack([self._sizes(part) for part in parts], dim=1), reduction="sum")
        tokens, rows, values, scored, cut = sizes.tolist()
        by_row = self.importance_sampling_level == "sequence" or self.loss_type == "vespo"
        for name, value in combined(logged, Weights(tokens, rows, values, scored), by_row, any(cut)).items():
            self.log_metric(name, value)

    def _sizes(self, part: dict[str, Any]) -> torch.Tensor:
        """How much a part trains, as [`Weights`] says, and whether it is a piece of a row."""
        mask = self.sampled_mask(part)
        taught = part.get(TEACHER_LOGPS)
        scored = mask if taught is None else mask * ~taught.isnan()
        values = mask * part.get("value_weights", 1)
        sizes = [mask.sum(), mask.any(1).sum(), values.sum(), scored.sum(), mask.new_tensor(part.get("cut", False))]
        return torch.stack([size.float() for size in sizes])

    def _parts(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The parts in which a micro-batch is trained, each with its shares of the whole if there are several."""
        wholes = row_chunks(inputs, len(inputs["completion_ids"]) // int(inputs.get("parts", 1)))
        skipped: list[dict[str, Any]] = []
        if self.args.skip_zero_advantages and self.mode == "train":
            kept = [with_advantages(whole) for whole in wholes]
            skipped = [take_rows(whole, ~rows) for whole, rows in zip(wholes, kept) if not rows.all()]
            wholes = [take_rows(whole, rows) for whole, rows in zip(wholes, kept) if rows.any()]
            share = (~torch.cat(kept)).float()
            self.log_masked_mean("micro_batch/skipped_rows", share, torch.ones_like(share))
        pieces = [self._pieces(whole) for whole in wholes]
        missing, nothing = self._missing_passes(sum(map(len, pieces)))
        pieces += [[{**untrained_piece(inputs), "untrained": nothing}] for _ in range(missing)]
        parts = [part for of_whole in pieces for part in of_whole]
        if self.mode == "train" and self.args.max_tokens_per_micro_batch is not None:
            self.log_metric("micro_batch/parts", len(parts))
        if len(parts) == 1 and not skipped:
            return parts
        owners = [index for index, of_whole in enumerate(pieces) for _ in of_whole]
        rows = [len(part["completion_ids"]) if owner < len(wholes) else 0 for part, owner in zip(parts, owners)]
        # What is skipped has its share of the means
        owners += range(len(pieces), len(pieces) + len(skipped))
        rows += [len(part["completion_ids"]) for part in skipped]
        every = [*parts, *skipped]
        sampled = torch.stack([self.sampled_mask(part).sum() for part in every]).tolist()
        forwarded = [path_tokens(self.row_batch(part)) if self.aux_loss_enabled else 1 for part in every]
        shares = Shares.of_parts(rows, sampled, forwarded, owners)
        return [{**part, "shares": share} for part, share in zip(parts, shares)]

    def _missing_passes(self, own: int) -> tuple[int, bool]:
        """
        How many passes are to be added to the `own` of this process over a micro-batch, so that there is one, and as many as in others; and
        whether no process has any of its own.

        Processes must call equally often: each pass has collective calls, in the loss and where weights are in shards.
        """
        alone = self.accelerator.num_processes == 1
        differ = self.args.max_tokens_per_micro_batch is not None or self.args.skip_zero_advantages
        if self.mode != "train" or alone or not differ:
            return max(own, 1) - own, own == 0
        everywhere = int(self.accelerator.gather(torch.tensor([own], device=self.accelerator.device)).max())
        return max(everywhere, 1) - own, everywhere == 0

    def _pieces(self, part: dict[str, Any]) -> list[dict[str, Any]]:
        """A part that is one row above the budget, cut at the branches of its tree; any other as it is."""
        budget = self.args.max_tokens_per_micro_batch
        if budget is None or self.mode != "train" or len(part["completion_ids"]) > 1:
            return [part]
        rows = self.row_batch(part)
        if self.forwarded_tokens(rows) <= budget:
            return [part]
        whole = self._why_rows_stay_whole()
        pieces = row_pieces(part, rows, lambda piece: self._fits(piece, budget)) if whole is None else [part]
        if len(pieces) > 1:
            pieces = [{**piece, "cut": True} for piece in pieces]
        longest = max(self.forwarded_tokens(self.row_batch(piece)) for piece in pieces)
        if longest > budget and not self._said_too_long:
            self._said_too_long = True
            logger.warning(
                f"A pass must forward at most max_tokens_per_micro_batch={budget} tokens, but {whole or 'a single turn'} takes "
                f"{longest}: raise the number to what memory allows, or lower max_context_length."
            )
        return pieces

    def _fits(self, piece: dict[str, Any], budget: int) -> bool:
        return self.forwarded_tokens(self.row_batch(piece)) <= budget

    def passes_with_gradient(self, batch: dict[str, Any]) -> tuple[list[dict[str, Any]], list[torch.Tensor]] | None:
        """
        The rows of a generation batch of this process as passes with gradient may take them: about as long as each other, of at most
        `per_device_train_batch_size` rows, and within the budget of tokens.

        Returns:
            `tuple[list[dict], list[torch.Tensor]]` or `None`: Passes, as many in every process, and the indices of the rows of each; of the last
            there may be none, since these train nothing. `None` if a row of some process must be cut.
        """
        budget, count = self.args.max_tokens_per_micro_batch, len(batch["completion_ids"])
        bins = -(-count // max(1, self.args.per_device_train_batch_size))
        lengths, forwarded = self._lengths(batch)
        found = bins_within(lengths, bins if count % bins == 0 else count, budget, forwarded, self._prompts(batch))
        parts = [part for of_bin in found for part in of_bin]
        # A part of several rows is within the budget
        if not self._everywhere(budget is None or all(len(part) > 1 or forwarded(part) <= budget for part in parts)):
            return None
        missing, _ = self._missing_passes(len(parts))
        rows = [torch.tensor(part, device=batch["completion_ids"].device) for part in parts]
        return [*(take_rows(batch, part) for part in rows), *(untrained_piece(batch) for _ in range(missing))], rows

    def _lengths(
        self, batch: dict[str, Any], trained: torch.Tensor | None = None
    ) -> tuple[list[int], Callable[[list[int]], int]]:
        """Tokens of each row, and how many a pass over some of them forwards; of those that are not `trained`, none."""
        device = batch["prompt_ids"].device
        if trained is None:
            trained = torch.ones(len(batch["completion_ids"]), dtype=torch.bool, device=device)

        def forwarded(part: list[int]) -> int:
            rows = torch.tensor(part, device=device)
            rows = rows[trained[rows]]
            return self.forwarded_tokens(self.row_batch(take_rows(batch, rows))) if len(rows) else 0

        return ((batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)) * trained).tolist(), forwarded

    def _prompts(self, batch: dict[str, Any]) -> list[int] | None:
        """Which prompt each row begins with, as a number; `None` where a pass reads it again for each of them."""
        if self.layout != "packed":
            return None
        prompts = torch.cat([batch["prompt_ids"], batch["prompt_mask"]], dim=1)
        return prompts.unique(dim=0, return_inverse=True)[1].tolist()

    def _why_rows_stay_whole(self) -> str | None:
        """What is too long where trajectories are not cut, with the reason; `None` where they are."""
        reasons = {
            "layout='paper' has no branches": self.layout == "paper",
            "the loss is of whole sequences": self.importance_sampling_level != "token" or self.loss_type == "vespo",
            "experts are balanced within a pass (router_aux_loss_coef)": self.aux_loss_enabled,
            "off_policy_mask_threshold is of whole sequences": self.args.off_policy_mask_threshold is not None,
        }
        found = next((reason for reason, applies in reasons.items() if applies), None)
        return None if found is None else f"a trajectory, which is not cut since {found},"

    def gradients_stay_here(self, model: Any) -> AbstractContextManager[None]:
        """
        While a part is trained whose gradient the other processes need not have yet.

        Where weights are in shards a gradient that stays is whole, in every process: there each part is shared out at once.
        """
        if self.is_deepspeed_enabled:
            return self._no_step_yet()
        return nullcontext() if self.is_fsdp_enabled else self.accelerator.no_sync(model)

    @contextmanager
    def _no_step_yet(self) -> Iterator[None]:
        """DeepSpeed's engine steps in the backward pass in which accelerate says that gradients are complete."""
        state = self.accelerator.gradient_state
        before = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            yield
        finally:
            state._set_sync_gradients(before)

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = check_values("_prepare_inputs", super()._prepare_inputs(generation_batch))
        if self.mode == "train" and self._buffered_inputs is not before:
            assert self._buffered_inputs is not None
            window = min(self.args.gradient_accumulation_steps, len(self._buffered_inputs))
            for start in range(0, len(self._buffered_inputs), window):
                chosen = slice(start, start + window)
                self._buffered_inputs[chosen] = self._rearranged(self._buffered_inputs[chosen])
                self._mark_idle(self._buffered_inputs[chosen])
            inputs = self._buffered_inputs[self._step % (self.args.steps_per_generation or 1)]
        return inputs

    def _mark_idle(self, batches: list[dict[str, Any]]) -> None:
        """
        Say in the micro-batches of an optimizer step whether all of them, of all processes, train nothing, and what a mean over
        them is to be multiplied by, so that it is one over those that train something. Of a step that takes several generation batches they are
        those of one generation batch, since the next is not known yet.
        """
        if "row_scale" not in batches[0]:
            return
        own = torch.stack([self.sampled_mask(batch).sum() for batch in batches]) > 0
        everywhere = self.accelerator.gather(own)
        idle = ~everywhere.any()
        scale = len(everywhere) / everywhere.sum().clamp(min=1)
        for batch, trains in zip(batches, own):
            batch["idle"] = idle
            batch["micro_batch_scale"] = scale * trains
        if idle:
            logger.warning("Every episode of a step was left out of the update, so the step changes nothing.")

    def _rearranged(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        The micro-batches of one optimizer step, of all processes, with trajectories exchanged until all are about equally long, and those of
        one prompt are together as far as that saves tokens.

        The step trains on the same trajectories, in micro-batches of as many rows. Episodes of one turn stay where TRL has
        shuffled them to, unless there is a budget of tokens.
        """
        processes, budget = self.accelerator.num_processes, self.args.max_tokens_per_micro_batch
        if budget is None and processes * len(batches) == 1:
            return batches
        merged = join_rows(batches)
        if processes > 1:
            count = len(merged["completion_ids"])
            merged = {
                key: self._gather_rows(key, value) if has_rows(key, value, count) else value
                for key, value in merged.items()
            }
        if budget is None and int(merged["turn_ids"].max()) == 0:
            return batches
        # A mean over the tokens of a micro-batch depends on which are in it together, and is to stay what it is
        skips = self.args.skip_zero_advantages and self.loss_type != "bnpo"
        lengths, forwarded = self._lengths(merged, with_advantages(merged) if skips else None)
        bins = bins_within(lengths, processes * len(batches), budget, forwarded, self._prompts(merged), processes)
        loads = [sum(lengths[row] for part in parts for row in part) for parts in bins]
        self.log_metric("micro_batch/tokens_max_over_mean", max(loads) * len(loads) / max(sum(loads), 1))
        if budget is None:
            self.log_metric("micro_batch/parts", 1)
        arranged = []
        for index in range(len(batches)):
            parts = bins[index * processes + self.accelerator.process_index]
            rows = torch.tensor([row for part in parts for row in part], device=merged["prompt_ids"].device)
            arranged.append({**take_rows(merged, rows), "parts": torch.tensor(len(parts))})
        return arranged

    def _gather_rows(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """A tensor of the batch with the rows of all processes, padded to the widest as TRL pads it."""
        if value.ndim > 1:
            filler = {"prompt_ids": self.tokenizer.pad_token_id, "completion_ids": self.tokenizer.pad_token_id}
            value = self.accelerator.pad_across_processes(
                value,
                dim=1,
                pad_index=filler.get(key, 1 if key == "parent_offsets" else 0),
                pad_first=key.startswith("prompt"),
            )
        return self.accelerator.gather(value.contiguous())
