"""The keys of a batch that have one entry for each row, and functions that cut, pick and join rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

ROW_KEYS = frozenset(
    {
        # TRL's
        "prompt_ids",
        "prompt_mask",
        "completion_ids",
        "completion_mask",
        "tool_mask",
        "advantages",
        "old_per_token_logps",
        "ref_per_token_logps",
        "sampling_per_token_logps",
        "importance_sampling_ratio",
        # which episode of the generation batch it is
        "episode_ids",
        # the tree
        "turn_ids",
        "parent_offsets",
        # weights of tokens in the policy's loss
        "loss_weights",
        # the teacher
        "teacher_per_token_logps",
        # the critic
        "old_values",
        "returns",
        "value_weights",
        # while advantages are estimated
        "token_rewards",
        "credited",
        "final_values",
    }
)
"""Keys whose value is a tensor with one entry for each row."""

BATCH_KEYS = frozenset(
    {
        # TRL's
        "num_items_in_batch",
        # episodes that were left out
        "row_scale",
        "micro_batch_scale",
        "idle",
        # micro-batches that are trained in parts
        "parts",
        "shares",
        "untrained",
        # a critic that has learned from the batch already
        "critic_has_learned",
    }
)
"""Keys whose value belongs to the whole batch, so that each part of the batch has it, too."""


def has_rows(key: str, value: Any, rows: int) -> bool:
    """
    Whether a value of a batch has one entry for each row.

    Args:
        key (`str`):
            Its key.
        value (`Any`):
            The value.
        rows (`int`):
            Number of rows of the batch.

    Raises:
        `ValueError`: If the key is unknown, or its value is not a tensor with one entry for each row.
    """
    if key in BATCH_KEYS:
        return False
    if key not in ROW_KEYS:
        raise ValueError(
            f"The batch has the key {key!r}, of which it is not known whether it has one entry for each row: a key that "
            "`extend_batch` adds belongs into ROW_KEYS or BATCH_KEYS of mem1_trl/trainers/trl_seam/batch_rows.py; if it is "
            "TRL's, install a release that README.md lists as tested."
        )
    if not isinstance(value, torch.Tensor) or value.ndim == 0 or len(value) != rows:
        given = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"type {type(value).__name__}"
        raise ValueError(
            f"The key {key!r} of the batch must be a tensor with one entry for each of the {rows} rows, got {given}."
        )
    return True


def take_rows(batch: dict[str, Any], rows: slice | torch.Tensor) -> dict[str, Any]:
    """The batch of some rows; what belongs to the whole batch stays as it is."""
    count = len(batch["completion_ids"])
    return {key: value[rows] if has_rows(key, value, count) else value for key, value in batch.items()}


def with_advantages(batch: dict[str, Any]) -> torch.Tensor:
    """Whether a row has an advantage, or one of its tokens has, shape `(B,)`: the policy's loss of others has no gradient."""
    return batch["advantages"].reshape(len(batch["completion_ids"]), -1).ne(0).any(1)


def row_chunks(batch: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """A batch cut into pieces of at most `size` rows; what belongs to the whole batch goes into each."""
    return [take_rows(batch, slice(start, start + size)) for start in range(0, len(batch["completion_ids"]), size)]


def join_rows(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of several batches in one; what belongs to the whole batch is that of the first."""
    counts = [len(batch["completion_ids"]) for batch in batches]
    joined: dict[str, Any] = {}
    for key, first in batches[0].items():
        with_rows = [has_rows(key, batch[key], count) for batch, count in zip(batches, counts)]
        joined[key] = torch.cat([batch[key] for batch in batches]) if all(with_rows) else first
    return joined
