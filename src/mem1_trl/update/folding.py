"""The rows of a batch as one row without padding, in which a common beginning of several rows is stored once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .row_batch import RowBatch


@dataclass(frozen=True, slots=True)
class FoldedRows:
    """
    A batch of `B` rows of `T` tokens as one tree in one row of `N` tokens.

    Attributes:
        tree ([`RowBatch`]):
            The one row. Its turns are those of the batch, numbered through.
        places (`torch.Tensor`):
            Shape `(B, T)`, int64: where each token of the batch is in the row; -1 for padding. A sampled token has a
            place of its own, right after its predecessor.
    """

    tree: RowBatch
    places: torch.Tensor

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """
        Bring values of the row's sampled tokens back to the batch.

        Args:
            values (`torch.Tensor`):
                Shape `(1, N - 1)`; the value of the token at place `i` is at `i - 1`.

        Returns:
            `torch.Tensor`: Shape `(B, T - 1)`, in the same manner; zero where no token was sampled. Differentiable.
        """
        tool_mask = self.tree.tool_mask[0, self.places.clamp(min=0)] & (self.places >= 0)
        wanted = tool_mask[:, 1:]
        spread = values.new_zeros(wanted.shape)
        return spread.masked_scatter(wanted, values[0, self.places[:, 1:][wanted] - 1])


def fold_rows(batch: RowBatch) -> FoldedRows:
    """
    Fold the rows of a batch into one tree: the samples of a group share their task prompt, all tasks the system prompt.

    With the rows `p1 p2 a` and `p1 p2 b` (one prompt, two samples):

        row     p1 p2 a p2 b        predecessor of the second p2: p1

    Only the tokens before the first sampled one are shared, and of the second and later rows at most all but the last
    token of it, since a completion must come right after its predecessor. Rows are taken in the order of their prompts,
    in which the longest common beginning is always with the row before.

    Args:
        batch ([`RowBatch`]):
            Rows of the `"packed"` layout.

    Returns:
        [`FoldedRows`]
    """
    device = batch.input_ids.device
    ids, offsets = batch.input_ids.cpu().numpy(), batch.parent_offsets.cpu().numpy()
    turn_ids, tool_mask = batch.turn_ids.cpu().numpy(), batch.tool_mask.cpu().numpy()
    real = batch.attention_mask.cpu().numpy().astype(bool)
    columns = [np.flatnonzero(row) for row in real]
    contexts = [ids[b, c[: _context_length(tool_mask[b, c])]] for b, c in enumerate(columns)]
    order = sorted(range(len(batch)), key=lambda b: contexts[b].tolist())

    places = np.full(ids.shape, -1, dtype=np.int64)
    pieces: list[np.ndarray] = []  # of each row: its columns that are not shared
    owners: list[int] = []
    parents: list[np.ndarray] = []
    size, previous = 0, -1
    for b in order:
        shared = 0
        if previous >= 0:
            shared = min(_common(contexts[b], contexts[previous]), len(contexts[b]) - 1)
            places[b, columns[b][:shared]] = places[previous, columns[previous][:shared]]
        own = columns[b][shared:]
        places[b, own] = np.arange(size, size + len(own))
        above = own - offsets[b, own]  # the predecessor's column
        inside = above >= columns[b][0]
        parents.append(np.where(inside, places[b, np.where(inside, above, own)], -1))
        pieces.append(own)
        owners.append(b)
        size += len(own)
        previous = b

    def gather(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[b, own] for b, own in zip(owners, pieces)])

    first_turns = np.cumsum([0, *(int(turn_ids[b].max()) + 1 for b in owners[:-1])])
    turns = np.concatenate([turn_ids[b, own] + first for b, own, first in zip(owners, pieces, first_turns)])
    tree = RowBatch(
        *(
            torch.from_numpy(np.ascontiguousarray(values))[None].to(device)
            for values in (
                gather(ids),
                np.ones(size, dtype=np.int64),
                gather(tool_mask),
                turns,
                np.arange(size) - np.concatenate(parents),
            )
        )
    )
    return FoldedRows(tree, torch.from_numpy(places).to(device))


def _context_length(tool_mask: np.ndarray) -> int:
    """Tokens before the first sampled one; the whole row if none was sampled."""
    return int(tool_mask.argmax()) if tool_mask.any() else len(tool_mask)


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the common beginning of two arrays."""
    limit = min(len(first), len(second))
    differs = np.flatnonzero(first[:limit] != second[:limit])
    return int(differs[0]) if len(differs) else limit
