"""Attention over a prefix tree that costs only the pairs on each path from the root to a token: no mask, no padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from ...model_traits import attention_implementation, head_sizes, module_dtype
from . import flex_kernels

if TYPE_CHECKING:
    from .plan import AttentionPlan, Block

# Keyword under which a plan travels through a model's forward down to its attention
PLAN_ARGUMENT = "mem1_attention_plan"


class _TreeAttention(torch.autograd.Function):
    """
    Softmax attention over the blocks of a plan, with the flash kernels of torch.

    Each block has its own output and log-sum-exp; two blocks of one query are joined by weights that follow from these.
    Backward, every block is given the joint output and log-sum-exp: the kernel recomputes its probabilities from them, and
    with the joint normaliser they are the probabilities of the whole softmax, so its gradients simply add up.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, scale: float
    ) -> torch.Tensor:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output = torch.zeros_like(query)
        precision = torch.promote_types(query.dtype, torch.float32)
        logsumexp = query.new_full(query.shape[:3], -torch.inf, dtype=precision)
        for row, blocks in enumerate(plan.rows):
            for block in blocks:
                q, k, v = _cut(block, row, query, key, value)
                part, part_lse = kernel(q, k, v, 0.0, block.causal, scale=scale)
                here = slice(block.q_begin, block.q_end)
                if block.causal:  # comes first, and once for each query
                    output[row, :, here], logsumexp[row, :, here] = part[0], part_lse[0]
                    continue
                before = logsumexp[row, :, here]
                joint = torch.logaddexp(before, part_lse[0])
                old, new = (before - joint).exp()[..., None], (part_lse[0] - joint).exp()[..., None]
                output[row, :, here] = (output[row, :, here] * old + part[0] * new).to(output.dtype)
                logsumexp[row, :, here] = joint
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.plan, ctx.scale = plan, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, output, logsumexp = ctx.saved_tensors
        grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for row, blocks in enumerate(ctx.plan.rows):
            for block in blocks:
                q, k, v = _cut(block, row, query, key, value)
                here = slice(block.q_begin, block.q_end)
                grad, out = grad_outputs[0][row : row + 1, :, here], output[row : row + 1, :, here]
                lse = logsumexp[row : row + 1, :, here].contiguous()
                parts = kernel(grad.contiguous(), q, k, v, out, lse, 0.0, block.causal, scale=ctx.scale)
                grads[0][row, :, here] += parts[0][0]
                there = slice(block.k_begin, block.k_end)
                for whole, part in zip(grads[1:], parts[1:]):
                    # Query heads that share a key head add up in it
                    whole[row, :, there] += part[0].unflatten(0, (whole.shape[1], -1)).sum(1)
        return (*grads, None, None)


def _cut(block: Block, row: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
    """The arguments of a kernel for a block; keys and values are repeated for their query heads here, so that none is stored so."""
    q = query[row : row + 1, :, block.q_begin : block.q_end]
    groups = query.shape[1] // key.shape[1]
    return [q, *(repeat_kv(x[row : row + 1, :, block.k_begin : block.k_end], groups) for x in (key, value))]


def tree_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, scale: float | None = None
) -> torch.Tensor:
    """
    Attention of each token over its path. On the CPU only; time and memory are linear in `plan.pairs` and the tokens.

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

    Returns:
        `torch.Tensor`: Shape `(B, heads, T, head_dim of value)`; zero on padding.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    size, wanted = max(query.shape[-1], value.shape[-1]), value.shape[-1]
    # The kernel has one size for all: zeros add nothing to a score, and what they add to a value is cut off again
    query, key, value = (pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x for x in (query, key, value))
    return _TreeAttention.apply(query, key, value, plan, scale)[..., :wanted]


def _attention_with_plans(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """transformers' `sdpa`, but a call that carries a plan is computed by it."""
    plan: AttentionPlan | None = kwargs.pop(PLAN_ARGUMENT, None)
    if plan is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    plan.used += 1
    device = query.device.type
    if torch.is_autocast_enabled(device):  # as autocast does for sdpa, whose inner operator is called here
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if plan.block_mask is not None:
        output = flex_kernels.attend(query, key, value, plan.block_mask, kwargs.get("scaling"))
    else:
        output = tree_attention(query, key, value, plan, kwargs.get("scaling"))
    return output.transpose(1, 2).contiguous(), None


def register() -> None:
    """
    Put plans into transformers' `sdpa` attention, for calls that carry one; all others go to the original.

    Registered under the same name instead of a new one, so that no model has to be switched back and forth: with gradient
    checkpointing the forward pass runs again inside the backward pass, when a switch would have been undone.
    """
    AttentionInterface.register("sdpa", _attention_with_plans)


def can_plan(model: Any, device: torch.device) -> bool:
    """
    Whether a model's attention can follow a plan on a device: `sdpa` without dropout on its probabilities, on the CPU by the
    kernels of this module, on a GPU by FlexAttention where that has shown to be right.
    """
    config = model.config.get_text_config()
    dropout = max(getattr(config, name, 0.0) or 0.0 for name in ("attention_dropout", "attn_pdrop"))
    if (
        attention_implementation(model) != "sdpa"
        or (model.training and dropout > 0.0)
        or _kind(model) in _WITHOUT_PLANS
    ):
        return False
    if device.type == "cpu":
        return hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")
    return flex_kernels.flex_attention_is_exact(device, module_dtype(model), *head_sizes(model))


_WITHOUT_PLANS: set[str] = set()


def never_plan_again(model: Any) -> None:
    """Remember that a class of models does not hand keyword arguments down to its attention."""
    _WITHOUT_PLANS.add(_kind(model))


def _kind(model: Any) -> str:
    """Name of the class of a model, below any adapter."""
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
