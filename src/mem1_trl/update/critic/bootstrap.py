"""The critic's value of the state after a turn, from which nothing was sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..row_batch import RowBatch
from ..rows import Row
from ..scoring import forward_rows
from .critic import token_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...trajectory import Turn
    from .critic import SharedValueHead, ValueModel


def values_after(
    turns: Sequence[Turn], critic: ValueModel | SharedValueHead, token_id: int, batch_size: int, passes: int = 0
) -> torch.Tensor:
    """
    Values of the states that turns ended in: their contexts and all that they generated.

    Args:
        turns (`Sequence[Turn]`):
            N turns.
        critic ([`ValueModel`] or [`SharedValueHead`]):
            The critic.
        token_id (`int`):
            Any token: a value is that before a token, and this one stands after the turn.
        batch_size (`int`):
            Number of turns in one forward pass.
        passes (`int`, *optional*, defaults to `0`):
            Least number of forward passes. Where each needs all processes, those that have fewer turns make up for it.

    Returns:
        `torch.Tensor`: Shape `(N,)`, float32, without gradient.
    """
    found = []
    for start in range(0, max(len(turns), passes * batch_size), batch_size):
        rows = [_one_more_token(turn, token_id) for turn in turns[start : start + batch_size]]
        counts = bool(rows)
        rows = rows or [Row([token_id], [token_id], [1], [0], [1], None)]
        batch = RowBatch.from_rows(rows, token_id, critic.head.weight.device)
        with torch.no_grad():
            (values,) = forward_rows(batch, "per_turn", critic.backbone, token_values(critic))
        assert values is not None
        if counts:
            found.append(values.sum(dim=1))  # each row has one
    return torch.cat(found) if found else torch.zeros(0, device=critic.head.weight.device)


def _one_more_token(turn: Turn, token_id: int) -> Row:
    """A turn as a row of its own in which one more token, and no other, counts as sampled."""
    completion = [*turn.completion_ids, token_id]
    return Row(
        prompt_ids=list(turn.prompt_ids),
        completion_ids=completion,
        tool_mask=[0] * len(turn.completion_ids) + [1],
        turn_ids=[0] * len(completion),
        parent_offsets=[1] * len(completion),
        logprobs=None,
    )
