"""Parts of a row's turns as smaller trees: the same tokens in the same contexts."""

from __future__ import annotations

import random

import pytest
import torch
from support.helpers import random_trajectory

from mem1_trl.update.row_batch import RowBatch, tree_positions
from mem1_trl.update.rows import Row, build_row
from mem1_trl.update.turn_paths import kept_tokens, turn_paths


def contexts_of(batch: RowBatch) -> dict[int, tuple[list[int], list[bool]]]:
    """Token ids on the path of each turn, and which of them it sampled."""
    return {
        turn: (batch.input_ids[0, path].tolist(), torch.isin(path, own).tolist())
        for turn, path, own in turn_paths(batch, 0)
    }


def test_the_example_of_the_docstring():
    """p1 p2 c1 k c2: the second turn reads p1 p2 k."""
    row = Row([11, 12], [21, 31, 22], [1, 0, 1], [0, 1, 1], [1, 2, 1], None)
    batch = RowBatch.from_rows([row], prompt_length=4, completion_length=5)  # with padding on both sides
    first, second = turn_paths(batch, 0)
    assert (first.path.tolist(), first.own.tolist()) == ([2, 3, 4], [4])
    assert (second.path.tolist(), second.own.tolist()) == ([2, 3, 5, 6], [6])
    kept = kept_tokens(batch, 0, [second])
    assert kept.places.tolist() == [2, 3, 5, 6]
    assert kept.parent_offsets.tolist() == [1, 1, 1, 1]
    assert kept.sampled.tolist() == [False, False, False, True]


def test_a_turn_that_shares_nothing_stays_a_root():
    """The row's first token is kept, since TRL wants a prompt, but nothing reads it."""
    row = Row([11, 12], [21, 31, 32, 22], [1, 0, 0, 1], [0, 1, 1, 1], [1, 4, 1, 1], None)
    batch = RowBatch.from_rows([row])
    _, second = turn_paths(batch, 0)
    kept = kept_tokens(batch, 0, [second])
    assert kept.places.tolist() == [0, 3, 4, 5] and kept.parent_offsets.tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize("context", ["mem1", "full"])
@pytest.mark.parametrize("seed", range(5))
def test_each_turn_reads_and_samples_the_same_in_its_piece(seed, context):
    generator = random.Random(seed)
    row = build_row(random_trajectory(generator, 6, context=context), "packed")
    batch = RowBatch.from_rows([row], prompt_length=len(row.prompt_ids) + 3)
    positions, wanted = tree_positions(batch)[0], contexts_of(batch)
    turns = turn_paths(batch, 0)
    generator.shuffle(turns)
    seen = {}
    for part in (turns[:1], turns[1:3], turns[3:]):
        kept = kept_tokens(batch, 0, part)
        mask = torch.ones(1, len(kept.places), dtype=torch.long)
        piece = RowBatch(
            batch.input_ids[:, kept.places],
            mask,
            kept.sampled[None],
            batch.turn_ids[:, kept.places],
            kept.parent_offsets[None],
        )
        assert torch.equal(tree_positions(piece)[0], positions[kept.places])
        seen |= contexts_of(piece)
    assert seen == wanted
