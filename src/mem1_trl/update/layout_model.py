"""A callable in place of the policy that forwards rows in a layout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..model_traits import backbone_of
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
    """

    def __init__(
        self,
        model: Callable[..., Any],
        unwrapped: PreTrainedModel,
        rows: RowBatch,
        layout: str,
        readout: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.model = model
        self.unwrapped = unwrapped
        self.rows = rows
        self.layout = layout
        self.readout = readout
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

        # On GPUs TRL's head does so itself. One turn is left to TRL, so that it trains bit for bit like GRPOTrainer
        narrow = input_ids.device.type == "cpu" and bool((rows.turn_ids > 0).any())

        def fused(inputs: dict[str, torch.Tensor], wanted: torch.Tensor) -> list[torch.Tensor | None]:
            nonlocal outputs
            targets = wanted[:, 1:]
            places = targets != -100
            labels = {"shift_labels": targets[places][None]} if narrow else {"labels": wanted}
            with last_hidden_state(backbone_of(self.unwrapped), places if narrow else None) as hidden:
                outputs = self.model(**inputs, **labels, **kwargs)
            results = [outputs.log_probs, outputs.entropy, None]
            if self.readout is not None:
                read = self.readout(hidden[0])
                results[2] = read if narrow else read[:, :-1].masked_fill(~places, 0.0)
            return [at_places(result, places) if narrow else result for result in results]

        # The load-balancing loss of experts is one of the whole batch
        balanced = bool(kwargs.get("output_router_logits"))
        log_probs, entropy, read = forward_rows(rows, self.layout, self.unwrapped, fused, in_one_call=balanced)
        assert outputs is not None
        if read is not None:
            self.read.append(read)
        outputs.log_probs, outputs.entropy = log_probs, entropy
        return outputs


def at_places(values: torch.Tensor | None, places: torch.Tensor) -> torch.Tensor | None:
    """Values `(1, K)` at the `K` places `(N, L)`, zero elsewhere; connected to the model even if there are none."""
    return None if values is None else values.new_zeros(places.shape).masked_scatter(places, values)


@contextmanager
def last_hidden_state(backbone: nn.Module, places: torch.Tensor | None = None) -> Iterator[list[torch.Tensor]]:
    """
    Collect the last hidden states that a backbone passes to the head while another function calls the model.

    Args:
        backbone ([`~torch.nn.Module`]):
            A model whose output has `last_hidden_state` `(N, L, H)`.
        places (`torch.Tensor`, *optional*):
            Shape `(N, L - 1)`: pass on only the states at these `K` places, as `(1, K, H)`. The head is the largest matrix of a small
            model, and of a trajectory's tokens a tenth may have been sampled.
    """
    hidden: list[torch.Tensor] = []

    def hook(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        if places is not None:
            outputs.last_hidden_state = outputs.last_hidden_state[:, :-1][places][None]
        hidden.append(outputs.last_hidden_state)
        return outputs

    handle = backbone.register_forward_hook(hook)
    try:
        yield hidden
    finally:
        handle.remove()
