"""The mask of a prefix tree in the form that a model takes."""

from __future__ import annotations

import torch


def model_mask(context_mask: torch.Tensor, implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """
    Turn a visibility mask into the form an attention implementation takes.

    `sdpa` reads booleans. `eager` adds its mask to the scores: given booleans it would add 0 or 1 and so let every token see
    the future, which is what the reference implementation of MEM1 does.

    Args:
        context_mask (`torch.Tensor`):
            Shape `(B, T, T)`, bool, true where query sees key.
        implementation (`str`):
            `"sdpa"` or `"eager"`.
        dtype (`torch.dtype`):
            Data type of the model's activations.

    Returns:
        `torch.Tensor`: Shape `(B, 1, T, T)`, bool for `sdpa`; 0 or the least finite number of `dtype` for `eager`.
    """
    mask = context_mask[:, None]
    if implementation == "sdpa":
        return mask
    if implementation == "eager":
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    raise ValueError(
        f"attn_implementation={implementation!r} takes no explicit mask: use layout='per_turn', or load the model with "
        "attn_implementation='sdpa'."
    )
