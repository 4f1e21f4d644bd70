"""A tree of turns as one ordinary causal row for each turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .like_lengths import like_lengths
from .row_batch import RowBatch
from .turn_paths import turn_paths


@dataclass(frozen=True, slots=True)
class UnfoldedTurns:
    """
    The tree of a batch unfolded: one ordinary causal row per turn, padded on the right.

    Attributes:
        input_ids (`torch.Tensor`): Shape `(N, L)`, `N` turns over the whole batch.
        attention_mask (`torch.Tensor`): Shape `(N, L)`, 1 on tokens.
        tool_mask (`torch.Tensor`): Shape `(N, L)`, bool, true on the tokens that this turn sampled.
        sources (`torch.Tensor`): Shape `(N, L)`, where each token is in the flattened `(B * T)` batch.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    tool_mask: torch.Tensor
    sources: torch.Tensor

    def calls(self) -> list[UnfoldedTurns]:
        """
        The rows in calls of like length, the longest first, each no wider than its longest row.

        In one call where several processes train: they must call a sharded model equally often.
        """
        processes = torch.distributed
        if processes.is_available() and processes.is_initialized() and processes.get_world_size() > 1:
            return [self]
        lengths = self.attention_mask.sum(dim=1).tolist()
        calls = []
        for rows in like_lengths(lengths):
            index = torch.tensor(rows, device=self.input_ids.device)
            calls.append(
                UnfoldedTurns(*(getattr(self, name)[index, : lengths[rows[0]]] for name in self.__dataclass_fields__))
            )
        return calls


def unfold_turns(batch: RowBatch) -> UnfoldedTurns | None:
    """
    Unfold every turn into the sequence that was generated: its path from the root to its last sampled token.

    Returns:
        [`UnfoldedTurns`] or `None`: `None` if the batch holds no sampled token.
    """
    size = batch.input_ids.shape[1]
    paths: list[torch.Tensor] = []
    turns: list[torch.Tensor] = []
    for row in range(len(batch)):
        for _, path, own in turn_paths(batch, row):
            paths.append(path + row * size)
            turns.append(torch.isin(path, own))
    if not paths:
        return None
    device = batch.input_ids.device
    pad = torch.nn.utils.rnn.pad_sequence
    sources = pad(paths, batch_first=True, padding_value=-1).to(device)
    attention_mask = (sources >= 0).long()
    sources = sources.clamp(min=0)
    input_ids = batch.input_ids.flatten()[sources].masked_fill(attention_mask == 0, int(batch.input_ids[0, 0]))
    tool_mask = pad(turns, batch_first=True, padding_value=False).to(device)
    return UnfoldedTurns(input_ids, attention_mask, tool_mask, sources)


def path_tokens(batch: RowBatch) -> int:
    """Number of tokens of all rows of [`unfold_turns`], padding not counted; 0 if the batch holds no sampled token."""
    turns = unfold_turns(batch)
    return 0 if turns is None else int(turns.attention_mask.sum())
