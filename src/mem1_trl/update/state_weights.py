"""How much each sampled token counts in the policy's loss, by whether it belongs to the state that a turn writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..trajectory import Trajectory


def state_weights(
    trajectories: Sequence[Trajectory], left_out: Sequence[bool], sampled: torch.Tensor, weight: float
) -> torch.Tensor:
    """
    Weights of the tokens of rows: `weight` on the states of their turns, 1 on everything else.

    With turns that sampled `s s a` and `s a a`, where `s` is of the state, and `o`, an observation between them:

        row      s s a o s a a
        weights  w w 1 1 w 1 1

    Args:
        trajectories (`Sequence[Trajectory]`):
            B trajectories.
        left_out (`Sequence[bool]`):
            Which of them have an empty row in place of their own.
        sampled (`torch.Tensor`):
            Shape `(B, T)`, true on the tokens that the model sampled: those of all turns, in their order, whatever the layout.
        weight (`float`):
            Weight of the state.

    Returns:
        `torch.Tensor`: Shape `(B, T)`, float32.
    """
    result = torch.ones(sampled.shape, dtype=torch.float32, device=sampled.device)
    for row, (trajectory, skipped) in enumerate(zip(trajectories, left_out, strict=True)):
        if skipped:
            continue
        of_state: list[bool] = []
        for turn in trajectory.turns:
            end = turn.state_begin + turn.state_tokens
            of_state += [turn.state_begin <= place < end for place in range(len(turn.completion_ids))]
        places = sampled[row].nonzero().flatten()
        result[row, places[torch.tensor(of_state, device=sampled.device)]] = weight
    return result
