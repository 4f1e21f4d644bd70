"""FlexAttention as it is compiled: one function for each kind of attention layer, and an error where torch would stop compiling."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import torch
from torch._dynamo import exc
from torch.nn.attention import flex_attention as _module
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.flex_attention import flex_attention as _flex_attention

BACKEND: Any = "inductor"
"""What compiles; tests put something in its place that a CPU can do."""

_OVERRUN: Any = getattr(exc, "FailOnRecompileLimitHit", ())


flex_attention: Any = _flex_attention  # its overloads know no plain `bool`

AuxRequest: Any = getattr(_module, "AuxRequest", None)
"""How torch is asked for more than the output, from 2.9 on; `return_lse` is on its way out."""


class CompileLimitReached(RuntimeError):
    """A function was compiled as often as torch allows, and would be a dense product from now on."""


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_mask: BlockMask,
    scale: float | None,
    return_lse: bool,
) -> Any:
    """FlexAttention as it is written, which is a dense product where it is not compiled; with `return_lse`, a pair."""
    grouped = query.shape[1] != key.shape[1]
    if not return_lse:
        return flex_attention(query, key, value, block_mask=block_mask, scale=scale, enable_gqa=grouped)
    if AuxRequest is None:
        return flex_attention(
            query, key, value, block_mask=block_mask, scale=scale, enable_gqa=grouped, return_lse=True
        )
    output, beside = flex_attention(
        query, key, value, block_mask=block_mask, scale=scale, enable_gqa=grouped, return_aux=AuxRequest(lse=True)
    )
    return output, beside.lse


def compiled(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scale: float | None, return_lse: bool
) -> Any:
    """
    FlexAttention by the compiled function of this kind of layer.

    Torch counts the graphs of a function by its code and allows 8 (`torch._dynamo.config.recompile_limit`). What makes another graph is
    what differs between models (heads, their sizes, the scale, the data type), so that each of those has a function with code of its own;
    in one of them, graphs differ only by which tensors have gradients. The length of a row does not, since it is padded
    (see [`mem1_trl.update.attention.flex_kernels.padded_size`]).

    Raises:
        [`CompileLimitReached`]: Where torch would go on without compiling.
    """
    kind = (query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3], value.shape[3], scale, return_lse)
    try:
        return function_of(kind)(query, key, value, mask, scale, return_lse)
    except _OVERRUN as problem:
        limit = torch._dynamo.config.recompile_limit
        raise CompileLimitReached(
            f"FlexAttention must be compiled at most {limit} times for one kind of attention layer, which was exceeded by "
            f"{query.shape[1]} heads of {query.shape[3]}, and would be a dense product from now on: raise "
            "torch._dynamo.config.recompile_limit, or set layout='per_turn'."
        ) from problem


@functools.cache
def function_of(kind: tuple[Any, ...]) -> Any:
    """The compiled function of a kind of layer."""
    code = attention.__code__.replace(co_name=f"attention_{function_of.cache_info().currsize}")
    own = FunctionType(code, attention.__globals__, code.co_name)
    return torch.compile(own, dynamic=True, fullgraph=True, backend=BACKEND)
