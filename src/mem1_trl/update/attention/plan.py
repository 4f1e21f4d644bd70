"""The rectangles of a prefix tree's attention that have to be computed: those on the paths from the root, each pair once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .reach import FULL, Reach

if TYPE_CHECKING:
    from ..row_batch import RowBatch

TILE = 512
"""Most queries of a rectangle under a limited reach: what lies outside of the reach at its edges is computed in vain."""

Path = tuple[int, int, list[tuple[int, int]]]
"""A run of a row, `(begin, end)`, and the stretches of the row that lead to it."""


class Block(NamedTuple):
    """
    A rectangle of attention in one row: queries `[q_begin, q_end)` see keys `[k_begin, k_end)`.

    All of them; or, if `causal`, those up to the query's own place, and both ranges are the same; or, with a `band`, query
    `q_begin + i` those from key `k_begin + i + band` on, of which there is at least one.
    """

    q_begin: int
    q_end: int
    k_begin: int
    k_end: int
    causal: bool
    band: int | None = None

    @property
    def pairs(self) -> int:
        """Number of pairs that are visible."""
        queries, keys = self.q_end - self.q_begin, self.k_end - self.k_begin
        if self.causal:
            return queries * (queries + 1) // 2
        if self.band is None:
            return queries * keys
        return sum(keys - max(0, i + self.band) for i in range(queries))


@dataclass(slots=True)
class AttentionPlan:
    """
    The blocks of every row of a batch, the causal ones first, for each reach that a layer asks for.

    Attributes:
        paths (`list[list[Path]]`): The runs of each row.
        parents (`list[dict[int, int]]`): Of each row, the place of the predecessor of each run, by its beginning; -1 at a root.
        tree ([`RowBatch`] or `None`): The row, on devices whose attention takes a block mask.
        used (`int`): How many attention layers have used the plan.
        reaches (`Counter[Reach]`): And how many of them with which limited reach.
        states (`int`): How many recurrent layers have followed it.
        from_hand (`int`): How many layers found it at hand, since none was handed down to them.
    """

    paths: list[list[Path]]
    parents: list[dict[int, int]]
    tree: RowBatch | None = None
    used: int = 0
    reaches: Counter[Reach] = field(default_factory=Counter)
    states: int = 0
    from_hand: int = 0
    made: dict[Any, Any] = field(default_factory=dict)
    """What was made for a layer and serves all others: blocks and block masks by reach, and the segments of recurrent layers."""

    @property
    def rows(self) -> list[list[Block]]:
        """The blocks of layers that see their whole path: each pair of a token and a token on its path exactly once."""
        return self.blocks(FULL)

    @property
    def longest(self) -> int:
        """Tokens of the longest path."""
        return max((depth_of(path) + path[1] - path[0] for row in self.paths for path in row), default=0)

    def blocks(self, reach: Reach) -> list[list[Block]]:
        """The blocks of layers of a reach."""
        if reach.holds(self.longest):
            reach = FULL
        if reach not in self.made:
            self.made[reach] = [_blocks(row, reach) for row in self.paths]
        blocks: list[list[Block]] = self.made[reach]
        return blocks

    @property
    def pairs(self) -> int:
        """Number of attention pairs that the forward pass of one head has to compute, in a layer that sees its whole path."""
        return sum(block.pairs for blocks in self.rows for block in blocks)


def depth_of(path: Path) -> int:
    """Number of tokens before a run on its path."""
    return sum(end - begin for begin, end in path[2])


def plan_attention(batch: RowBatch) -> AttentionPlan:
    """
    Plan the attention of rows: every run sees itself causally, and all of each stretch of its path before it.

    Runs that lie side by side and fork from the same place share one block: all later turns of a MEM1 trajectory see the
    task prompt in a single rectangle. With prompt `P` at 0 to 9, `c1` at 9 to 12, turn 2 at 12 to 20 and turn 3 at 20 to 25,
    both forking off after place 8:

        causal  0-12, 12-20, 20-25
        full    queries 12-25, keys 0-9

    A window is counted along the path. With one of 4 tokens, turn 2, which is at depths 9 to 17, sees of the prompt:

        band    queries 12-15, keys 6-9     place 12 sees 6, 7, 8; place 13 sees 7, 8; place 14 sees 8

    Args:
        batch ([`RowBatch`]):
            The rows.

    Returns:
        [`AttentionPlan`]
    """
    rows = range(len(batch))
    parents = [{begin: parent for begin, _, parent in batch.runs(row)} for row in rows]
    return AttentionPlan([batch.paths(row) for row in rows], parents)


def _blocks(paths: list[Path], reach: Reach) -> list[Block]:
    """The blocks of one row."""
    causal: list[Block] = []
    others: list[Block] = []
    open_blocks: dict[tuple[int, int], int] = {}  # keys -> their last block in `others`

    def add(begin: int, end: int, keys: tuple[int, int]) -> None:
        last = open_blocks.get(keys)
        if last is not None and others[last].q_end == begin:
            others[last] = others[last]._replace(q_end=end)
        else:
            open_blocks[keys] = len(others)
            others.append(Block(begin, end, *keys, False))

    for path in paths:
        begin, end, stretches = path
        own = depth_of(path)
        for first, last in _tiles(own, own + end - begin, reach):
            q_begin, q_end = begin + first - own, begin + last - own
            causal.append(Block(q_begin, q_end, q_begin, q_end, True))
            depth = 0
            for k_begin, k_end in [*stretches, (begin, q_begin)]:
                after = depth + k_end - k_begin
                # What the last query sees, all see; what only the first ones see is a band, one key less with each query
                all_see, some_see = (min(max(reach.first(q), depth), after) for q in (last - 1, first))
                if all_see < after:
                    add(q_begin, q_end, (k_begin + all_see - depth, k_end))
                if some_see < all_see:
                    assert reach.window is not None
                    seeing = min(last, all_see + reach.window - 1) - first
                    others.append(
                        Block(
                            q_begin,
                            q_begin + seeing,
                            k_begin + some_see - depth,
                            k_begin + all_see - depth,
                            False,
                            first - reach.window + 1 - some_see,
                        )
                    )
                depth = after
    return causal + others


def _tiles(begin: int, end: int, reach: Reach) -> list[tuple[int, int]]:
    """A run, as depths, in parts that see all of themselves, and whose first visible token moves with the query or stays."""
    if reach == FULL:
        return [(begin, end)]
    tiles = []
    while begin < end:
        last = min(end, begin + min(TILE, reach.window or TILE))
        if reach.chunk is not None:
            last = min(last, (begin // reach.chunk + 1) * reach.chunk)
        tiles.append((begin, last))
        begin = last
    return tiles
