"""The rectangles of a prefix tree's attention that have to be computed: those on the paths from the root, each pair once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..row_batch import RowBatch


class Block(NamedTuple):
    """
    A rectangle of attention in one row: queries `[q_begin, q_end)` see keys `[k_begin, k_end)`.

    All of them, or, if `causal`, those up to the query's own place; then both ranges are the same.
    """

    q_begin: int
    q_end: int
    k_begin: int
    k_end: int
    causal: bool


@dataclass(slots=True)
class AttentionPlan:
    """
    The blocks of every row of a batch, the causal ones first.

    Attributes:
        rows (`list[list[Block]]`): Together they hold each pair of a token and a token on its path exactly once.
        block_mask (`BlockMask` or `None`): The same for FlexAttention, on devices where it is used.
        used (`int`): How many attention layers have used the plan.
    """

    rows: list[list[Block]]
    block_mask: Any = None
    used: int = 0

    @property
    def pairs(self) -> int:
        """Number of attention pairs that the forward pass of one head has to compute."""
        total = 0
        for blocks in self.rows:
            for b in blocks:
                size = b.q_end - b.q_begin
                total += size * (size + 1) // 2 if b.causal else size * (b.k_end - b.k_begin)
        return total


def plan_attention(batch: RowBatch) -> AttentionPlan:
    """
    Plan the attention of rows: every run sees itself causally, and all of each stretch of its path before it.

    Runs that lie side by side and fork from the same place share one block: all later turns of a MEM1 trajectory see the
    task prompt in a single rectangle. With prompt `P` at 0 to 9, `c1` at 9 to 12, turn 2 at 12 to 20 and turn 3 at 20 to 25,
    both forking off after place 8:

        causal  0-12, 12-20, 20-25
        full    queries 12-25, keys 0-9

    Args:
        batch ([`RowBatch`]):
            The rows.

    Returns:
        [`AttentionPlan`]
    """
    rows = []
    for row in range(len(batch)):
        causal: list[Block] = []
        full: list[Block] = []
        open_blocks: dict[tuple[int, int], int] = {}  # stretch -> its last block in `full`
        for begin, end, stretches in batch.paths(row):
            causal.append(Block(begin, end, begin, end, True))
            for stretch in stretches:
                last = open_blocks.get(stretch)
                if last is not None and full[last].q_end == begin:
                    full[last] = full[last]._replace(q_end=end)
                else:
                    open_blocks[stretch] = len(full)
                    full.append(Block(begin, end, *stretch, False))
        rows.append(causal + full)
    return AttentionPlan(rows)
