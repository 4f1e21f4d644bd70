"""The turns of a row, each with its path: what a turn reads and samples, and what a part of the turns needs of the row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .row_batch import RowBatch


class TurnPath(NamedTuple):
    """
    A turn with sampled tokens in a row of `T` tokens.

    Attributes:
        turn (`int`): Its number.
        path (`torch.Tensor`): Places of its tokens, from the root to the last one it sampled, int64, ascending.
        own (`torch.Tensor`): Places of the tokens that it sampled.
    """

    turn: int
    path: torch.Tensor
    own: torch.Tensor


def turn_paths(batch: RowBatch, row: int) -> list[TurnPath]:
    """The turns of a row that sampled something, in their order; tensors on the CPU."""
    runs = batch.paths(row)
    tool_mask, turn_ids = batch.tool_mask[row].cpu(), batch.turn_ids[row].cpu()
    found = []
    for turn in turn_ids[tool_mask].unique().tolist():
        own = (tool_mask & (turn_ids == turn)).nonzero().flatten()
        last = int(own[-1])
        begin, stretches = next((run[0], run[2]) for run in runs if run[0] <= last < run[1])
        path = torch.cat([torch.arange(*stretch) for stretch in [*stretches, (begin, last + 1)]])
        found.append(TurnPath(turn, path, own))
    return found


class KeptTokens(NamedTuple):
    """
    What some turns of a row need of it.

    Attributes:
        places (`torch.Tensor`): Places in the row, ascending: the paths of the turns, and the row's first token.
        parent_offsets (`torch.Tensor`): How many places before each of them its predecessor is, once the others are gone.
        sampled (`torch.Tensor`): Bool, true on tokens that these turns sampled; what other turns sampled is context here.
    """

    places: torch.Tensor
    parent_offsets: torch.Tensor
    sampled: torch.Tensor


def kept_tokens(batch: RowBatch, row: int, turns: Sequence[TurnPath]) -> KeptTokens:
    """
    The tokens of a row on the paths of some of its turns, as a smaller tree.

    With a row `p1 p2 c1 k c2` in which `k` follows `p2`, the second turn needs `p1 p2 k c2`, in which `k` follows the token before it.
    What a turn reads is the same in both, and so are its log-probs and their gradients: gradients of sums over tokens add up
    over any partition of the turns.
    """
    first = int(batch.attention_mask[row].nonzero()[0])
    places = torch.cat([torch.tensor([first]), *(turn.path for turn in turns)]).unique()
    new_place = {place: index for index, place in enumerate(places.tolist())}
    offsets = batch.parent_offsets[row].cpu()[places].tolist()
    # A root has a predecessor before the row
    parents = [
        new_place[place - offset] if place - offset >= first else -1 for place, offset in zip(new_place, offsets)
    ]
    moved = torch.tensor([index - parent for index, parent in enumerate(parents)])
    moved[0] = 1
    return KeptTokens(places, moved, torch.isin(places, torch.cat([turn.own for turn in turns])))
