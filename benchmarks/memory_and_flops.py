"""Largest memory of PyTorch's allocator and the number of floating-point operations of a function."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def peak_memory(run: Callable[[], Any], device: str = "cpu") -> int:
    """
    Most bytes that PyTorch's allocator held during `run` beyond what it held before it.

    The same quantity on both devices: `torch.cuda.max_memory_allocated` on a GPU, and on a CPU the running sum over the
    allocations and releases that PyTorch's profiler records. What a library allocates on its own (scratch space of a matrix
    product) is in neither. The run is slower than usual; do not time it.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - start
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def _attention_pairs(query: Any, key: Any, is_causal: bool) -> int:
    """Query-key pairs that are attended to, over batch and heads; causal as PyTorch means it, both begin at one token."""
    batch, heads, queries, _ = query
    keys = key[2]
    pairs = sum(min(index + 1, keys) for index in range(queries)) if is_causal else queries * keys
    return batch * heads * pairs


def _attention_forward(query: Any, key: Any, value: Any, is_causal: bool) -> int:
    return 2 * _attention_pairs(query, key, is_causal) * (query[3] + value[3])


def _attention_backward(query: Any, key: Any, value: Any, is_causal: bool) -> int:
    # Scores again; gradients of values, scores, queries and keys
    return 2 * _attention_pairs(query, key, is_causal) * (3 * query[3] + 2 * value[3])


def _attention_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of fused attention. PyTorch knows no CPU kernel, and takes a causal one for a full one."""
    aten = torch.ops.aten

    def forward(
        query: Any, key: Any, value: Any, dropout: Any = 0.0, is_causal: bool = False, *_: Any, **__: Any
    ) -> int:
        return _attention_forward(query, key, value, is_causal)

    def backward_cpu(
        grad: Any,
        query: Any,
        key: Any,
        value: Any,
        out: Any,
        lse: Any,
        dropout: Any,
        is_causal: bool,
        *_: Any,
        **__: Any,
    ) -> int:
        return _attention_backward(query, key, value, is_causal)

    def backward_flash(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **__: Any) -> int:
        return _attention_backward(query, key, value, rest[7])

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward_cpu,
        aten._scaled_dot_product_flash_attention: forward,
        aten._scaled_dot_product_flash_attention_backward: backward_flash,
    }


def count_flops(run: Callable[[], Any]) -> int:
    """
    Floating-point operations of the matrix products and attention kernels in `run`, by shape; a causal kernel counts half.

    Twice the number of multiplications, as `torch.utils.flop_counter` counts. Elementwise work is left out.
    """
    with FlopCounterMode(display=False, custom_mapping=_attention_formulas()) as counter:
        run()
    return counter.get_total_flops()
