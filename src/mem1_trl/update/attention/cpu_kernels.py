"""Attention over a prefix tree that costs only the pairs on each path from the root to a token: no mask, no padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import repeat_kv

from .reach import FULL, Reach

if TYPE_CHECKING:
    from .plan import AttentionPlan, Block


class _TreeAttention(torch.autograd.Function):
    """
    Softmax attention over the blocks of a plan, with the flash kernels of torch.

    Each block has its own output and log-sum-exp; two blocks of one query are joined by weights that follow from these.
    Backward, every block is given the joint output and log-sum-exp: the kernel recomputes its probabilities from them, and
    with the joint normaliser they are the probabilities of the whole softmax, so its gradients simply add up. A sink is one more
    score of the softmax whose value is zero: it joins last, as a log-sum-exp without an output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        rows: list[list[Block]],
        scale: float,
    ) -> torch.Tensor:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output = torch.zeros_like(query)
        precision = torch.promote_types(query.dtype, torch.float32)
        logsumexp = query.new_full(query.shape[:3], -torch.inf, dtype=precision)
        for row, blocks in enumerate(rows):
            for block in blocks:
                q, k, v = _cut(block, row, query, key, value)
                part, part_lse = kernel(q, k, v, 0.0, block.causal, attn_mask=_band(block, q), scale=scale)
                here = slice(block.q_begin, block.q_end)
                if block.causal:  # comes first, and once for each query
                    output[row, :, here], logsumexp[row, :, here] = part[0], part_lse[0]
                    continue
                before = logsumexp[row, :, here]
                joint = torch.logaddexp(before, part_lse[0])
                old, new = (before - joint).exp()[..., None], (part_lse[0] - joint).exp()[..., None]
                output[row, :, here] = (output[row, :, here] * old + part[0] * new).to(output.dtype)
                logsumexp[row, :, here] = joint
        if sinks is not None:
            joint = torch.logaddexp(logsumexp, sinks.to(precision)[:, None])
            output = (output * (logsumexp - joint).exp()[..., None]).to(query.dtype)
            logsumexp = joint
        ctx.save_for_backward(query, key, value, sinks, output, logsumexp)
        ctx.rows, ctx.scale = rows, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, sinks, output, logsumexp = ctx.saved_tensors
        grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for row, blocks in enumerate(ctx.rows):
            for block in blocks:
                q, k, v = _cut(block, row, query, key, value)
                here = slice(block.q_begin, block.q_end)
                grad, out = grad_outputs[0][row : row + 1, :, here], output[row : row + 1, :, here]
                lse = logsumexp[row : row + 1, :, here].contiguous()
                mask = _band(block, q)
                parts = kernel(
                    grad.contiguous(), q, k, v, out, lse, 0.0, block.causal, attn_mask=mask, scale=ctx.scale
                )
                grads[0][row, :, here] += parts[0][0]
                there = slice(block.k_begin, block.k_end)
                for whole, part in zip(grads[1:], parts[1:]):
                    # Query heads that share a key head add up in it
                    whole[row, :, there] += part[0].unflatten(0, (whole.shape[1], -1)).sum(1)
        sinks_grad = None
        if sinks is not None:
            # Its value is zero, so only the normaliser is left of the gradient; padding has no log-sum-exp but the sink's own
            share = (sinks.to(logsumexp.dtype)[:, None] - logsumexp).exp()
            sinks_grad = -(share * (grad_outputs[0] * output).sum(-1)).sum((0, 2)).to(sinks.dtype)
        return (*grads, sinks_grad, None, None)


def _band(block: Block, query: torch.Tensor) -> torch.Tensor | None:
    """What is added to the scores of a block that is visible in part."""
    if block.band is None:
        return None
    size = (block.q_end - block.q_begin, block.k_end - block.k_begin)
    return query.new_full(size, -torch.inf).tril(block.band - 1)


def _cut(block: Block, row: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
    """The arguments of a kernel for a block; keys and values are repeated for their query heads here, so that none is stored so."""
    q = query[row : row + 1, :, block.q_begin : block.q_end]
    groups = query.shape[1] // key.shape[1]
    return [q, *(repeat_kv(x[row : row + 1, :, block.k_begin : block.k_end], groups) for x in (key, value))]


def tree_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    scale: float | None = None,
    reach: Reach = FULL,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Attention of each token over its path. On the CPU only; time and memory are linear in the visible pairs and the tokens.

    Args:
        query (`torch.Tensor`):
            Shape `(B, heads, T, head_dim)`.
        key, value (`torch.Tensor`):
            Shape `(B, key heads, T, head_dim)`; `heads` is a multiple of `key heads`, of which each serves as many in turn. A
            value may be smaller or larger than a key, as in multi-head latent attention.
        plan ([`AttentionPlan`]):
            The plan of the same batch.
        scale (`float`, *optional*):
            What the scores are multiplied by; `None` is `head_dim ** -0.5`.
        reach ([`Reach`], *optional*):
            How far back a token sees on its path.
        sinks (`torch.Tensor`, *optional*):
            Shape `(heads,)`: one more score for every query of a head, with a value of zero.

    Returns:
        `torch.Tensor`: Shape `(B, heads, T, head_dim of value)`; zero on padding.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    size, wanted = max(query.shape[-1], value.shape[-1]), value.shape[-1]
    # The kernel has one size for all: zeros add nothing to a score, and what they add to a value is cut off again
    query, key, value = (pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x for x in (query, key, value))
    return _TreeAttention.apply(query, key, value, sinks, plan.blocks(reach), scale)[..., :wanted]
