"""A row of a batch as several rows, each of which holds some of its turns with all that these read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...update.turn_paths import TurnPath, kept_tokens, turn_paths
from .batch_rows import has_rows, take_rows

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


def untrained_piece(batch: Batch) -> Batch:
    """
    A batch of one row with three tokens, none of which is trained: a pass that adds nothing to any gradient.

    Two of them are of the completion, since TRL takes a width of one for a number of whole sequences.

    Args:
        batch (`dict`):
            A batch, of whose first row the tokens are.
    """
    last = batch["prompt_ids"].shape[1] - 1
    one, two = torch.ones(1, dtype=torch.long), torch.ones(2, dtype=torch.long)
    # Prompts are padded on the left, completions on the right
    return _tokens(take_rows(batch, slice(0, 1)), last * one, 0 * two, parent_offsets=two, sampled=~two.bool())


def _piece(batch: Batch, rows: RowBatch, turns: list[TurnPath]) -> Batch:
    kept = kept_tokens(rows, 0, turns)
    prompt = batch["prompt_ids"].shape[1]
    in_prompt = kept.places < prompt
    completion = ~in_prompt
    return _tokens(
        batch,
        kept.places[in_prompt],
        kept.places[completion] - prompt,
        kept.parent_offsets[completion],
        kept.sampled[completion],
    )


def _tokens(
    batch: Batch,
    of_prompt: torch.Tensor,
    of_completion: torch.Tensor,
    parent_offsets: torch.Tensor,
    sampled: torch.Tensor,
) -> Batch:
    """Some tokens of a batch of one row: places in its prompt and in its completion, and of the latter the tree and what is trained."""
    completion, device = batch["completion_ids"].shape[1], batch["completion_ids"].device
    of_prompt, of_completion, sampled = of_prompt.to(device), of_completion.to(device), sampled[None].to(device)
    piece = {}
    for key, value in batch.items():
        if not has_rows(key, value, 1) or value.ndim < 2:
            piece[key] = value
        elif key.startswith("prompt_"):
            piece[key] = value[:, of_prompt]
        elif value.shape[1] != completion:  # a value for the whole row, such as a ratio of sequences
            piece[key] = value
        elif value.is_floating_point():
            # What is masked is computed all the same: the ratio to an old log-prob that is not scored here might be infinite
            piece[key] = value[:, of_completion].masked_fill(~sampled, 0.0)
        else:
            piece[key] = value[:, of_completion]
    piece["parent_offsets"] = parent_offsets[None].to(device)
    piece["tool_mask"] = piece["tool_mask"] * sampled
    return piece
