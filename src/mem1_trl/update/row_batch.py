"""Rows as padded tensors, with the positions and the visibility that their tree implies."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .rows import Row


@dataclass(frozen=True, slots=True)
class RowBatch:
    """
    Rows as tensors of shape `(B, T)`, prompts padded on the left and completions on the right, as TRL does.

    Attributes:
        input_ids (`torch.Tensor`): Token ids, int64.
        attention_mask (`torch.Tensor`): 1 on tokens, 0 on padding.
        tool_mask (`torch.Tensor`): bool, true on tokens that the model sampled; TRL's, without padding.
        turn_ids (`torch.Tensor`): Turn of each token; 0 in the prompt.
        parent_offsets (`torch.Tensor`): Distance to the predecessor; 1 in the prompt.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    tool_mask: torch.Tensor
    turn_ids: torch.Tensor
    parent_offsets: torch.Tensor

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Row],
        pad_token_id: int = 0,
        device: torch.device | str = "cpu",
        prompt_length: int | None = None,
        completion_length: int | None = None,
    ) -> RowBatch:
        """
        Pad rows into one batch.

        Args:
            rows (`Sequence[Row]`):
                The rows.
            pad_token_id (`int`, *optional*, defaults to `0`):
                Token id of padding.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
                Device of the tensors.
            prompt_length, completion_length (`int`, *optional*):
                Lengths to pad prompts and completions to. `None` uses the longest of the rows.

        Returns:
            [`RowBatch`]
        """
        left = max(len(row.prompt_ids) for row in rows) if prompt_length is None else prompt_length
        right = max(len(row.completion_ids) for row in rows) if completion_length is None else completion_length
        shape = (len(rows), left + right)
        batch = cls(
            input_ids=torch.full(shape, pad_token_id, dtype=torch.long),
            attention_mask=torch.zeros(shape, dtype=torch.long),
            tool_mask=torch.zeros(shape, dtype=torch.bool),
            turn_ids=torch.zeros(shape, dtype=torch.long),
            parent_offsets=torch.ones(shape, dtype=torch.long),
        )
        for index, row in enumerate(rows):
            begin, end = left - len(row.prompt_ids), left + len(row.completion_ids)
            batch.input_ids[index, begin:end] = torch.tensor([*row.prompt_ids, *row.completion_ids])
            batch.attention_mask[index, begin:end] = 1
            batch.tool_mask[index, left:end] = torch.tensor(row.tool_mask, dtype=torch.bool)
            batch.turn_ids[index, left:end] = torch.tensor(row.turn_ids)
            batch.parent_offsets[index, left:end] = torch.tensor(row.parent_offsets)
        return batch.to(device)

    @classmethod
    def from_trl(cls, batch: Mapping[str, torch.Tensor]) -> RowBatch:
        """
        Join prompts and completions of a batch of TRL.

        Args:
            batch (`Mapping[str, torch.Tensor]`):
                `prompt_ids` and `prompt_mask` of shape `(B, P)`; `completion_ids`, `completion_mask`, `tool_mask`, `turn_ids`
                and `parent_offsets` of shape `(B, C)`. Tokens that `completion_mask` leaves out do not count as sampled.

        Returns:
            [`RowBatch`]: Tensors of shape `(B, P + C)`.
        """
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        prompt = batch["prompt_ids"].shape[1]

        def widen(x: torch.Tensor, value: int) -> torch.Tensor:
            return torch.nn.functional.pad(x, (prompt, 0), value=value)

        return cls(
            input_ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            attention_mask=attention_mask,
            tool_mask=widen(batch["tool_mask"], 0).bool() & attention_mask.bool(),
            turn_ids=widen(batch["turn_ids"], 0),
            parent_offsets=widen(batch["parent_offsets"], 1),
        )

    def to(self, device: torch.device | str) -> RowBatch:
        """The batch on a device."""
        return RowBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def __getitem__(self, rows: slice) -> RowBatch:
        return RowBatch(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def runs(self, row: int) -> list[tuple[int, int, int]]:
        """
        Stretches of a row in which every token follows the one before it.

        Returns:
            `list[tuple[int, int, int]]`: `(begin, end, predecessor of begin)`; the predecessor is -1 at a root.
        """
        real = self.attention_mask[row].nonzero().flatten()
        if len(real) == 0:
            return []
        first, last = int(real[0]), int(real[-1]) + 1
        forks = (self.parent_offsets[row, first + 1 : last] != 1).nonzero().flatten() + first + 1
        begins = [first, *forks.tolist()]
        ends = [*begins[1:], last]
        offsets = self.parent_offsets[row, torch.tensor(begins, device=self.parent_offsets.device)].tolist()
        parents = [begin - offset if begin - offset >= first else -1 for begin, offset in zip(begins, offsets)]
        parents[0] = -1
        return list(zip(begins, ends, parents))

    def paths(self, row: int) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """
        The runs of a row, each with the path that leads to it.

        Returns:
            `list[tuple[int, int, list[tuple[int, int]]]]`: `(begin, end, stretches)`; the stretches `(begin, end)` are places
            of the row, from the root on, that together are all a run sees besides itself.
        """
        runs = self.runs(row)
        begins = [begin for begin, _, _ in runs]
        above: dict[int, list[tuple[int, int]]] = {}
        for begin, _, parent in runs:
            above[begin] = []
            if parent >= 0:
                over = begins[bisect_right(begins, parent) - 1]
                above[begin] = [*above[over], (over, parent + 1)]
        return [(begin, end, above[begin]) for begin, end, _ in runs]

    def is_chain(self) -> bool:
        """Whether no row forks, so that ordinary causal attention is already exact."""
        return bool((self.parent_offsets == 1).all())


def tree_positions(batch: RowBatch) -> torch.Tensor:
    """
    Position of each token when it was generated: its depth in the tree.

    Returns:
        `torch.Tensor`: Shape `(B, T)`, int64; 0 on padding.
    """
    positions = torch.zeros_like(batch.input_ids)
    for row in range(len(batch)):
        for begin, end, parent in batch.runs(row):
            depth = int(positions[row, parent]) + 1 if parent >= 0 else 0
            positions[row, begin:end] = torch.arange(depth, depth + end - begin, device=positions.device)
    return positions


def tree_context_mask(batch: RowBatch) -> torch.Tensor:
    """
    Who sees whom: token `q` sees token `k` if `k` is on the path from the root to `q`, itself included.

    Padding sees only itself, so that no row of the mask is empty (a softmax over nothing is NaN).

    Returns:
        `torch.Tensor`: Shape `(B, T, T)`, bool, `[b, q, k]`.
    """
    size = batch.input_ids.shape[1]
    device = batch.input_ids.device
    mask = torch.zeros(len(batch), size, size, dtype=torch.bool, device=device)
    for row in range(len(batch)):
        for begin, end, parent in batch.runs(row):
            if parent >= 0:
                mask[row, begin:end] = mask[row, parent]
            block = torch.ones(end - begin, end - begin, dtype=torch.bool, device=device).tril()
            mask[row, begin:end, begin:end] = block
    return mask | torch.eye(size, dtype=torch.bool, device=device)


def paper_context_mask(batch: RowBatch) -> torch.Tensor:
    """
    The paper's two-dimensional mask over a stitched row: a token sees the prompt, its own turn and the one before.

    Returns:
        `torch.Tensor`: Shape `(B, T, T)`, bool, `[b, q, k]`.
    """
    size = batch.input_ids.shape[1]
    device = batch.input_ids.device
    real = batch.attention_mask.bool()
    # The prompt is everything before the first sampled token
    prompt = real & (batch.tool_mask.int().cumsum(1) == 0)
    query_turn, key_turn = batch.turn_ids[:, :, None], batch.turn_ids[:, None, :]
    near = (key_turn == query_turn) | (key_turn == query_turn - 1)
    causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    visible = causal & real[:, :, None] & real[:, None, :] & (prompt[:, None, :] | near)
    return visible | torch.eye(size, dtype=torch.bool, device=device)
