"""A callable in place of the policy that forwards rows in a layout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .row_batch import RowBatch
from .scoring import forward_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel


class LayoutModel:
    """
    Takes the place of a policy where TRL calls one, so that TRL's own log-prob code scores each token in its true context.

    TRL passes rows in order, in chunks; the structure of the rows is kept here, beside them.

    Args:
        model (`Callable`):
            A model with TRL's fused head, possibly wrapped for data parallelism or sharding.
        unwrapped ([`~transformers.PreTrainedModel`]):
            The same model without wrappers, asked for its attention implementation and data type.
        rows ([`RowBatch`]):
            The rows TRL is about to pass.
        layout (`str`):
            How to forward them.
        readout (`Callable[[torch.Tensor], torch.Tensor]`, *optional*):
            Computes one more number per token from the hidden states `(N, L, H)` that the log-probs are computed from: returns
            `(N, L)`, of which place `i - 1` is kept for token `i`.
        backbone ([`~torch.nn.Module`], *optional*):
            The part of `unwrapped` whose `last_hidden_state` that is; needed with `readout`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        unwrapped: PreTrainedModel,
        rows: RowBatch,
        layout: str,
        readout: Callable[[torch.Tensor], torch.Tensor] | None = None,
        backbone: torch.nn.Module | None = None,
    ):
        self.model = model
        self.unwrapped = unwrapped
        self.rows = rows
        self.layout = layout
        self.readout = readout
        self.backbone = backbone
        self.read: list[torch.Tensor] = []
        """The results of `readout`, folded back to shape `(B, T - 1)`, for each chunk that was passed; zero where no token was sampled."""
        self._next = 0

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: Any = None, **kwargs: Any
    ) -> Any:
        rows = self.rows[slice(self._next, self._next + len(input_ids))]
        self._next += len(input_ids)
        assert torch.equal(rows.input_ids, input_ids), "TRL passes other tokens than those of the rows"
        assert torch.equal(rows.attention_mask, attention_mask), "TRL masks other tokens than the rows do"
        outputs = None

        def fused(inputs: dict[str, torch.Tensor], wanted: torch.Tensor) -> list[torch.Tensor | None]:
            nonlocal outputs
            if self.readout is None:
                outputs = self.model(**inputs, labels=wanted, **kwargs)
                return [outputs.log_probs, outputs.entropy, None]
            with last_hidden_state(self.backbone) as hidden:
                outputs = self.model(**inputs, labels=wanted, **kwargs)
            read = self.readout(hidden[0])[:, :-1].masked_fill(wanted[:, 1:] == -100, 0.0)
            return [outputs.log_probs, outputs.entropy, read]

        # The load-balancing loss of experts is one of the whole batch
        balanced = bool(kwargs.get("output_router_logits"))
        log_probs, entropy, read = forward_rows(rows, self.layout, self.unwrapped, fused, in_one_call=balanced)
        assert outputs is not None
        if read is not None:
            self.read.append(read)
        outputs.log_probs, outputs.entropy = log_probs, entropy
        return outputs


@contextmanager
def last_hidden_state(backbone: Any) -> Iterator[list[torch.Tensor]]:
    """Collect the last hidden states that a backbone passes to the head while another function calls the model."""
    hidden: list[torch.Tensor] = []
    handle = backbone.register_forward_hook(lambda module, inputs, outputs: hidden.append(outputs.last_hidden_state))
    try:
        yield hidden
    finally:
        handle.remove()
