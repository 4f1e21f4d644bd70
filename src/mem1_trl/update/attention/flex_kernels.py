"""Attention over a prefix tree on a GPU: FlexAttention with a block mask that is made from the plan, not from a dense mask."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from ..row_batch import RowBatch, tree_context_mask
from .compiled_flex import attention, compiled
from .plan import Block, depth_of, plan_attention
from .reach import FULL, Reach

if TYPE_CHECKING:
    from .plan import AttentionPlan

logger = logging.getLogger(__name__)

BLOCK = 128  # tokens; FlexAttention's own default


def block_mask(tree: RowBatch, plan: AttentionPlan, reach: Reach = FULL) -> BlockMask:
    """
    The mask of one row as FlexAttention takes it: blocks that are skipped, computed whole, or computed under a mask.

    How many pairs of a block are visible follows from the rectangles of the plan, so no `(T, T)` mask is ever made. Inside
    a block a token `q` of run `r` sees a token `k` of run `s` if `k <= q`, `k` lies before the end of what `r` sees of `s`, and
    their depths are no further apart than the reach.

    The row is padded, with a run of its own, to [`padded_size`], and there is one predicate for every reach. Otherwise torch would compile
    again for a size of 1, for a length that is not a whole number of blocks, and for each further predicate.

    Args:
        tree ([`RowBatch`]):
            One row without padding, as [`mem1_trl.update.folding.fold_rows`] returns it.
        plan ([`AttentionPlan`]):
            Its plan.
        reach ([`Reach`], *optional*):
            How far back a token sees on its path.

    Returns:
        `BlockMask`: For sequences of as many tokens, in blocks of 128.
    """
    tokens, device = tree.input_ids.shape[1], tree.input_ids.device
    size = padded_size(tokens)
    (blocks,) = plan.blocks(reach)
    visible = _visible_pairs([*blocks, Block(tokens, size, tokens, size, True)] if size > tokens else blocks, size)
    whole = visible == BLOCK * BLOCK
    paths = [*plan.paths[0], (tokens, size, [])]  # the padding, which may be empty: there are always two runs
    begins = np.asarray([begin for begin, _, _ in paths])
    run_of = torch.from_numpy(np.searchsorted(begins, np.arange(size), side="right") - 1).to(device)
    limits = np.zeros((len(paths), len(paths)), dtype=np.int64)
    for run, (_, end, stretches) in enumerate(paths):
        limits[run, run] = end
        for first, last in stretches:
            limits[run, np.searchsorted(begins, first, side="right") - 1] = last
    limit = torch.from_numpy(limits).to(device)
    # The first depth that each token sees, which says all about a window or a chunk
    depths = np.concatenate([depth_of(path) + np.arange(path[1] - path[0]) for path in paths])
    depth, first_seen = (
        torch.from_numpy(np.asarray(x)).to(device) for x in (depths, [reach.first(d) for d in depths.tolist()])
    )

    def within(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (k < limit[run_of[q], run_of[k]]) & (depth[k] >= first_seen[q])

    return BlockMask.from_kv_blocks(
        *_columns((visible > 0) & ~whole, device),
        *_columns(whole, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=within,
        seq_lengths=(size, size),
    )


def padded_size(tokens: int) -> int:
    """The length that a row of so many tokens is padded to: whole blocks, and two of them at least."""
    return max(-(-tokens // BLOCK), 2) * BLOCK


def _visible_pairs(rectangles: list[Block], size: int) -> np.ndarray:
    """Number of visible pairs in each block of queries and keys; each rectangle looks at the blocks that it touches only."""
    count = -(-size // BLOCK)
    pairs = np.zeros((count, count), dtype=np.int64)

    def touched(begin: int, end: int) -> tuple[slice, np.ndarray]:
        blocks = slice(begin // BLOCK, -(-end // BLOCK))
        edges = np.arange(blocks.start, blocks.stop) * BLOCK
        return blocks, np.minimum(edges + BLOCK, end) - np.maximum(edges, begin)

    for part in rectangles:
        (down, queries), (across, keys) = touched(part.q_begin, part.q_end), touched(part.k_begin, part.k_end)
        if part.band is not None:
            firsts = part.k_begin + np.maximum(0, np.arange(part.q_end - part.q_begin) + part.band)
            edges = np.arange(across.start, across.stop) * BLOCK
            lasts = np.minimum(edges + BLOCK, part.k_end)
            of_query = np.clip(lasts - np.maximum(edges, firsts[:, None]), 0, None)
            product = np.add.reduceat(of_query, np.cumsum([0, *queries[:-1]]), axis=0)
        else:
            product = np.outer(queries, keys)
            if part.causal:
                product = np.tril(product, -1) + np.diag(queries * (queries + 1) // 2)
        pairs[down, across] += product
    return pairs


def _columns(wanted: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row of blocks: how many are wanted, and their columns, those first; shapes `(1, 1, n)` and `(1, 1, n, n)`."""
    counts = wanted.sum(axis=1)
    columns = np.argsort(~wanted, axis=1, kind="stable")
    return tuple(torch.from_numpy(x.astype(np.int32))[None, None].to(device) for x in (counts, columns))  # type: ignore[return-value]


def _compiles(device: torch.device) -> bool:
    """Whether FlexAttention is compiled on a device; without it, it is a dense product."""
    return device.type == "cuda"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    scale: float | None = None,
    reach: Reach = FULL,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Attention of each token over its path, by a block mask that is made once for all layers of a reach.

    Args:
        query (`torch.Tensor`):
            Shape `(1, heads, T, head_dim)`.
        key, value (`torch.Tensor`):
            Shape `(1, key heads, T, head_dim)`. A value may have another size.
        plan ([`AttentionPlan`]):
            The plan of the row, with its tree.
        scale (`float`, *optional*):
            What the scores are multiplied by; `None` is `head_dim ** -0.5`.
        reach ([`Reach`], *optional*):
            How far back a token sees on its path.
        sinks (`torch.Tensor`, *optional*):
            Shape `(heads,)`: one more score for every query of a head, with a value of zero.

    Returns:
        `torch.Tensor`: Shape `(1, heads, T, head_dim of value)`.
    """
    assert plan.tree is not None
    if reach.holds(plan.longest):
        reach = FULL
    mask = plan.made.get(("block mask", reach))
    if mask is None:
        mask = plan.made["block mask", reach] = block_mask(plan.tree, plan, reach)
    tokens = query.shape[2]
    padding = padded_size(tokens) - tokens
    query, key, value = (torch.nn.functional.pad(states, (0, 0, 0, padding)) for states in (query, key, value))
    function = compiled if _compiles(query.device) else attention
    found = function(query, key, value, mask, scale, sinks is not None)
    if sinks is None:
        return found[:, :, :tokens]
    output, lse = (part[:, :, :tokens] for part in found)
    kept = torch.sigmoid(lse - sinks.to(lse.dtype)[:, None])
    return (output * kept[..., None]).to(query.dtype)


@functools.cache
def flex_attention_is_exact(
    device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int | None = None
) -> bool:
    """
    Whether FlexAttention runs on a device and agrees with dense attention, in output and gradients, on a small tree.

    Asked once per device, data type and sizes of a head (its query and, if it differs, its value), before anything is trained with it. The answer is no on a CPU.
    """
    if device.type != "cuda":
        return False
    try:
        # The first to ask may be a pass without gradients or under autocast, and the answer is kept for all of them
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            error = _largest_error(device, dtype, head_dim, value_dim or head_dim)
    except Exception as problem:  # compiling a kernel may fail in many ways, and one row per turn is there instead
        logger.warning(
            f"One row per turn instead of FlexAttention over a tree, which failed here: {type(problem).__name__}: {problem}"
        )
        return False
    # Half precision rounds at 2^-8 (bfloat16) or 2^-11 of numbers of order one; a wrong mask is off by order one
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    exact = error <= tolerance  # NaN is not
    if not exact:
        logger.warning(f"One row per turn instead of FlexAttention over a tree, which is off by {error:.1e} here.")
    return exact


def _largest_error(device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int) -> float:
    """Largest difference to dense attention over outputs and gradients, relative to the largest number."""
    tree = _small_tree(device)
    size = tree.input_ids.shape[1]
    generator = torch.Generator(device="cpu").manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, size, head_size, generator=generator).to(device, dtype).requires_grad_()
        for heads, head_size in ((4, head_dim), (2, head_dim), (2, value_dim))
    )
    weights = torch.randn(1, 4, size, value_dim, generator=generator).to(device, dtype)

    def results(output: torch.Tensor) -> list[torch.Tensor]:
        return [output, *torch.autograd.grad((output.float() * weights.float()).sum(), (query, key, value))]

    dense = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=tree_context_mask(tree)[:, None], enable_gqa=True
    )
    plan = plan_attention(tree)
    plan.tree = tree
    planned = attend(query, key, value, plan)
    errors = [
        ((one - other).abs().max() / other.abs().max().clamp(min=1e-6)).float()
        for one, other in zip(results(planned), results(dense))
    ]
    return float(torch.stack(errors).max())  # NaN if one is, which Python's `max` would lose


def _small_tree(device: torch.device) -> RowBatch:
    """A root of 150 tokens and three branches off place 139, the third with a branch of its own."""
    runs = [(150, 0), (90, 139), (60, 139), (200, 139), (40, 330)]  # length, and place of the predecessor
    size = sum(length for length, _ in runs)
    offsets, begin = torch.ones(size, dtype=torch.long), 0
    for length, parent in runs:
        if begin:
            offsets[begin] = begin - parent
        begin += length
    ones = torch.ones(1, size, dtype=torch.long)
    tree = RowBatch(ones, ones, torch.zeros(1, size, dtype=torch.bool), ones, offsets[None])
    return tree.to(device)
