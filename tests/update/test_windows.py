"""Windows, chunks and sinks of attention over a prefix tree, against softmax attention under the dense mask."""

import random

import pytest
import torch
from support.helpers import random_trajectory

from mem1_trl.update.attention import cpu_kernels, flex_kernels, plan
from mem1_trl.update.attention.plan import plan_attention
from mem1_trl.update.attention.reach import FULL, Reach
from mem1_trl.update.folding import fold_rows
from mem1_trl.update.row_batch import RowBatch, tree_context_mask, tree_positions
from mem1_trl.update.rows import build_row

REACHES = [
    FULL,
    *(Reach(window=size) for size in (1, 2, 7, 16, 50, 1000)),
    *(Reach(chunk=size) for size in (1, 5, 16, 1000)),
]


def batch_of(seed: int, *turns: int, context: str = "mem1") -> RowBatch:
    generator = random.Random(seed)
    return RowBatch.from_rows(
        [
            build_row(random_trajectory(generator, n, generator.randint(1, 40), context=context), "packed")
            for n in turns
        ]
    )


def dense_mask(batch: RowBatch, reach: Reach) -> torch.Tensor:
    """Who sees whom, by what a reach says of positions."""
    positions = tree_positions(batch)
    queries, keys = positions[:, :, None], positions[:, None, :]
    mask = tree_context_mask(batch)
    if reach.window is not None:
        mask = mask & (queries - keys < reach.window)
    if reach.chunk is not None:
        mask = mask & (queries // reach.chunk == keys // reach.chunk)
    return mask


def dense_attention(batch, reach, query, key, value, scale, sinks):
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * (scale or query.shape[-1] ** -0.5)
    scores = scores.masked_fill(~dense_mask(batch, reach)[:, None], -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    return scores.softmax(-1)[..., : key.shape[2]] @ value.repeat_interleave(groups, 1)


@pytest.mark.parametrize("tile", [3, 512])
@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize("context", ["mem1", "full"])
def test_blocks_hold_every_visible_pair_once(context, reach, tile, monkeypatch):
    monkeypatch.setattr(plan, "TILE", tile)
    batch = batch_of(0, 6, 1, 4, context=context)
    planned = plan_attention(batch)
    covered = torch.zeros(len(batch), *[batch.input_ids.shape[1]] * 2, dtype=torch.long)
    for row, blocks in enumerate(planned.blocks(reach)):
        for b in blocks:
            part = torch.ones(b.q_end - b.q_begin, b.k_end - b.k_begin, dtype=torch.long)
            part = part.tril() if b.causal else part if b.band is None else part.triu(b.band)
            assert part.any(1).all(), "a softmax over nothing is not a number"
            assert int(part.sum()) == b.pairs
            covered[row, b.q_begin : b.q_end, b.k_begin : b.k_end] += part
    visible = dense_mask(batch, reach) & batch.attention_mask.bool()[:, :, None]
    assert torch.equal(covered, visible.long())


def test_a_window_that_holds_every_path_is_none():
    planned = plan_attention(batch_of(1, 8))
    assert planned.blocks(Reach(window=planned.longest)) is planned.blocks(FULL)
    assert planned.blocks(Reach(window=planned.longest - 1)) is not planned.blocks(FULL)


@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize("reach", [FULL, Reach(window=7), Reach(window=30), Reach(chunk=16)], ids=str)
def test_output_and_gradients_equal_dense_attention(reach, sunk):
    batch = batch_of(2, 6, 2)
    real = batch.attention_mask.bool()[:, None, :, None]
    torch.manual_seed(0)
    size = batch.input_ids.shape[1]
    states = [torch.randn(len(batch), heads, size, 16, requires_grad=True) for heads in (4, 2, 2)]
    sinks = torch.randn(4, requires_grad=True) if sunk else None
    weights = torch.randn(len(batch), 4, size, 16) * real
    inputs = [*states, *([sinks] if sunk else [])]
    planned = cpu_kernels.tree_attention(*states, plan_attention(batch), 0.3, reach, sinks)
    dense = dense_attention(batch, reach, *states, 0.3, sinks)
    torch.testing.assert_close(planned * real, dense * real, atol=1e-5, rtol=1e-5)
    expected, found = (torch.autograd.grad((output * weights).sum(), inputs) for output in (dense, planned))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("reach", [FULL, Reach(window=40), Reach(window=200), Reach(chunk=150)], ids=str)
def test_pairs_of_flex_blocks_are_those_of_the_mask(reach):
    generator = random.Random(3)
    rows = [build_row(random_trajectory(generator, n, 150, (30, 90), (0, 90)), "packed") for n in (3, 4)]
    tree = fold_rows(RowBatch.from_rows(rows)).tree
    size = tree.input_ids.shape[1]
    (blocks,) = plan_attention(tree).blocks(reach)
    count = -(-size // flex_kernels.BLOCK)
    padded = torch.zeros(count * flex_kernels.BLOCK, count * flex_kernels.BLOCK, dtype=torch.long)
    padded[:size, :size] = dense_mask(tree, reach)[0]
    expected = padded.view(count, flex_kernels.BLOCK, count, flex_kernels.BLOCK).sum((1, 3))
    assert torch.equal(torch.from_numpy(flex_kernels._visible_pairs(blocks, size)), expected)
