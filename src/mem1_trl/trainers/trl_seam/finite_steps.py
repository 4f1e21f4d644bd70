"""
No optimizer step with a gradient that is not finite, and no checkpoint with weights that are not.

Wraps `_compute_loss`, to remember what each backward pass was computed from, and `_get_grad_norm` of `Trainer`, which is called
between the last backward pass and the optimizer step. Resets `_tr_loss`, in which `Trainer` would keep a NaN for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.logging import get_logger

from ...update.sharded_tensors import whole
from ..non_finite import first_non_finite, non_finite_rows
from ..run_stopped import RunStopped
from .contract import check_values
from .loss import TreeLoss

logger = get_logger(__name__)

_LOST_STEPS = 3
"""Steps in a row that are not taken after which a run ends."""

_NAMED = 8
"""Episodes that a message names at most."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """
    The rows of one backward pass.

    Attributes:
        batch (`dict`):
            The batch.
        logps, values (`torch.Tensor` or `None`):
            Shape `(B, C)`: what policy and critic computed.
    """

    batch: dict[str, Any]
    logps: torch.Tensor | None
    values: torch.Tensor | None


class FiniteSteps(TreeLoss):
    """Drops a gradient that is not finite, says which episodes it came from, and ends a run that only has such gradients."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._trained: list[_Trained] = []
        self._lost_steps = 0
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.last_values = None
        loss = super()._compute_loss(model, inputs)
        if self.mode == "train":
            self._trained.append(_Trained(inputs, self._last_logps, self.last_values))
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = check_values("_get_grad_norm", super()._get_grad_norm(model, grad_norm))
        if isinstance(norm, torch.Tensor):
            norm = whole(norm)  # of weights that are split over processes it is the norm of a part
        norms = {"policy": norm, **self.clip_extra_gradients()}
        trained, self._trained = self._trained, []
        finite = all(one is None or math.isfinite(float(one)) for one in norms.values())
        # Every process takes the step, or none does
        if self._everywhere(finite) or self._scaler_lowers_its_scale():
            self._lost_steps = 0
            return norm
        self._lost_steps += 1
        sizes = ", ".join(f"{name} {float(one):g}" for name, one in norms.items() if one is not None)
        problem = f"The gradient of step {self.state.global_step + 1} is not finite (norm: {sizes}). {self._suspects(trained)}"
        if self.is_deepspeed_enabled:
            raise RunStopped(
                f"{problem} DeepSpeed has taken the step, so the weights are lost: resume from the last checkpoint."
            )
        if self._lost_steps >= _LOST_STEPS:
            raise RunStopped(
                f"{problem} So {_LOST_STEPS} steps in a row were not taken and the run ends; no such gradient has "
                "reached the weights. Correct what gives such numbers (rewards, learning rate, data type), then resume from the "
                "last checkpoint."
            )
        if self.accelerator.scaler is None:  # which skips the step itself
            for module in (model, *self.trained_modules):
                module.zero_grad(set_to_none=True)  # neither momentum nor weight decay moves a weight without gradient
        logger.warning(f"{problem} The step is not taken.")
        return norm

    def _everywhere(self, flag: bool) -> bool:
        """Whether a flag is true in all processes."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.gather(torch.tensor([flag], device=self.accelerator.device)).all())

    def _scaler_lowers_its_scale(self) -> bool:
        """Whether float16 overflowed because of the scale of the loss: its scaler skips the step, and tries a smaller one."""
        if self.is_deepspeed_enabled:
            return self.args.mixed_precision == "fp16"
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1.0

    def _suspects(self, trained: list[_Trained]) -> str:
        """A sentence that names the episodes of a step, of all processes, whose numbers are not finite."""
        local = []
        for part in trained:
            mask = self.sampled_mask(part.batch)
            ids = part.batch.get("episode_ids")
            for row, names in non_finite_rows(part.batch, mask, part.logps, part.values).items():
                number = row if ids is None else int(ids[row])
                prompt = part.batch["prompt_ids"][row][part.batch["prompt_mask"][row].bool()].tolist()
                local.append((number, f"episode {number} ({self.short_prompt(prompt)}): {', '.join(names)}"))
        found = [text for _, text in sorted(dict.fromkeys(self.gather_records(local)))]
        if not found:
            return (
                "Advantages, log-probs and values of its episodes are finite, so it overflowed in the backward pass."
            )
        more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        return f"Not finite, or too large: {'; '.join(found[:_NAMED])}{more}."

    def check_weights(self) -> None:
        """
        Check what a checkpoint is about to hold, in all processes together.

        Raises:
            [`RunStopped`]: If a weight, or a number of an optimizer that is not sharded, is not finite.
        """
        named = [item for module in self.trained_modules for item in module.named_parameters()]
        if self.optimizer is not None and not self.is_deepspeed_enabled:
            states = enumerate(self.optimizer.state.values())
            named += [(f"{key} of the optimizer", value) for _, state in states for key, value in state.items()]
        bad = first_non_finite(named)
        names = [name for name in self.gather_records([bad]) if name is not None]
        if names:
            raise RunStopped(
                f"The numbers of a checkpoint must be finite, but those of {names[0]} are not at step "
                f"{self.state.global_step}, so none is written: resume from the last complete checkpoint."
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log numbers as TRL does. `Trainer` sets the sum of losses to zero by subtracting it from itself: NaN would stay NaN."""
        if "loss" in logs and not math.isfinite(float(self._tr_loss)):
            self._tr_loss.zero_()
        super().log(logs, start_time)
