"""A row of a batch as several rows, each of which holds some of its turns with all that these read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...update.turn_paths import TurnPath, kept_tokens, turn_paths
from .batch_rows import has_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...update.row_batch import RowBatch

Batch = dict[str, Any]


def row_pieces(batch: Batch, rows: RowBatch, fits: Callable[[Batch], bool]) -> list[Batch]:
    """
    A batch of one row, cut at the branches of its tree into as few batches as fit, in the order of the turns.

    Each carries the beginning that it shares with the others. Their sums over sampled tokens add up to those of the whole, in the
    loss and in the gradient.

    Args:
        batch (`dict`):
            A batch with one row.
        rows ([`RowBatch`]):
            The same row with its tree.
        fits (`Callable[[dict], bool]`):
            Whether a piece is small enough. A single turn is a piece, whether it fits or not.

    Returns:
        `list[dict]`: Batches of one row; the batch as it is, if no more than one of its turns has sampled tokens.
    """
    turns = turn_paths(rows, 0)
    if len(turns) < 2:
        return [batch]
    groups = [[turns[0]]]
    for turn in turns[1:]:
        if fits(_piece(batch, rows, [*groups[-1], turn])):
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return [_piece(batch, rows, group) for group in groups]


def _piece(batch: Batch, rows: RowBatch, turns: list[TurnPath]) -> Batch:
    kept = kept_tokens(rows, 0, turns)
    device = batch["completion_ids"].device
    prompt, completion = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
    in_prompt = kept.places < prompt
    of_prompt, of_completion = kept.places[in_prompt].to(device), (kept.places[~in_prompt] - prompt).to(device)
    piece = {}
    for key, value in batch.items():
        if not has_rows(key, value, 1) or value.ndim < 2:
            piece[key] = value
        elif key.startswith("prompt_"):
            piece[key] = value[:, of_prompt]
        else:  # a value for the whole row, such as a ratio of sequences, stays
            piece[key] = value[:, of_completion] if value.shape[1] == completion else value
    piece["parent_offsets"] = kept.parent_offsets[~in_prompt][None].to(device)
    piece["tool_mask"] = piece["tool_mask"] * kept.sampled[~in_prompt][None].to(device)
    return piece
