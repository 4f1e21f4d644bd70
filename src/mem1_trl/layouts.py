"""Trajectories become rows of tokens, and rows become what a model is called with. Exact, unless asked for the paper's."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .trajectory import Trajectory

LAYOUTS = ("packed", "per_turn", "paper")


def check_layout(layout: str) -> None:
    """Raise `ValueError` if there is no such layout."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not a layout: use one of {', '.join(map(repr, LAYOUTS))}.")


@dataclass(frozen=True, slots=True)
class Row:
    """
    One trajectory as one row, `prompt_ids | completion_ids`, in TRL's sense of the two.

    Attributes:
        prompt_ids (`list[int]`):
            Token ids of the first context.
        completion_ids (`list[int]`):
            Everything behind it: completions, and the contexts of later turns where they are not shared.
        tool_mask (`list[int]`):
            1 on tokens that the model sampled, 0 on others. As long as `completion_ids`.
        turn_ids (`list[int]`):
            Turn that brought each token of `completion_ids`, from 0.
        parent_offsets (`list[int]`):
            How many places before each token of `completion_ids` its predecessor stands: 1 inside a branch, more where a
            branch forks off. The predecessors make the row a tree: a token sees its path from the root.
        logprobs (`list[float]` or `None`):
            The sampler's log-probs on sampled tokens, 0 on others.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    tool_mask: list[int]
    turn_ids: list[int]
    parent_offsets: list[int]
    logprobs: list[float] | None


def build_row(trajectory: Trajectory, layout: str) -> Row:
    """The row of a trajectory: a prefix tree (`"packed"`, `"per_turn"`) or the paper's stitched sequence (`"paper"`)."""
    check_layout(layout)
    if not trajectory.turns:
        raise ValueError(f"A trajectory has no turns ({trajectory.error}): leave episodes that never started out.")
    return stitch_trajectory(trajectory) if layout == "paper" else pack_trajectory(trajectory)


def pack_trajectory(trajectory: Trajectory) -> Row:
    """
    Fold the turns of a trajectory into a prefix tree, laid out in one row.

    With prompt `P = p1 p2`, completions `c`, and what is kept of turn 1 in the context of turn 2, `k`:

        turn 1 reads p1 p2         and samples c1
        turn 2 reads p1 p2 k       and samples c2
        row          p1 p2 c1 k c2        predecessor of k: p2, so that k and c2 see p1 p2 but not c1

    A turn whose context extends an earlier turn (a full history) goes on where that turn ends. Only context is shared,
    never a sampled token of the turn itself: each is in the row exactly once. A completion must stand right behind its
    predecessor in the row; where its whole context is shared with an earlier turn, the last token of it is repeated:

        turn 1 reads p1 p2         and samples c1
        turn 2 reads p1 p2         and samples c2
        row          p1 p2 c1 p2 c2       predecessor of the second p2: p1

    No exact update can forward fewer tokens, but for those repeated ones.

    Args:
        trajectory ([`Trajectory`]):
            Any trajectory, whatever rule built its contexts.

    Returns:
        [`Row`]
    """
    first = trajectory.turns[0]
    tokens = [*first.prompt_ids, *first.completion_ids]
    start = len(first.prompt_ids)
    parents = list(range(-1, len(tokens) - 1))
    turn_ids = [0] * len(tokens)
    sampled = [0] * start + [1] * len(first.completion_ids)
    logprobs: list[float] | None = None
    if all(turn.logprobs is not None for turn in trajectory.turns):
        logprobs = [0.0] * start + list(first.logprobs or ())
    sequences = [np.asarray(tokens)]  # token ids of each turn, context and completion
    paths = [np.arange(len(tokens))]  # and where each of them stands in the row

    for number, turn in enumerate(trajectory.turns[1:], start=1):
        sequence = np.asarray([*turn.prompt_ids, *turn.completion_ids])
        context = len(turn.prompt_ids)
        shared, path = 0, paths[0]
        for other, other_path in zip(sequences, paths):
            limit = min(context, len(other))
            differs = np.flatnonzero(sequence[:limit] != other[:limit])
            length = int(differs[0]) if len(differs) else limit
            if length >= shared:  # the latest of equals: a history goes on at its end
                shared, path = length, other_path
        if shared == context and path[shared - 1] != len(tokens) - 1:
            shared -= 1
        begin = len(tokens)
        tokens.extend(sequence[shared:].tolist())
        parents.append(int(path[shared - 1]) if shared else -1)
        parents.extend(range(begin, len(tokens) - 1))
        turn_ids.extend([number] * (len(tokens) - begin))
        sampled.extend([0] * (context - shared) + [1] * len(turn.completion_ids))
        if logprobs is not None:
            logprobs.extend([0.0] * (context - shared) + list(turn.logprobs or ()))
        sequences.append(sequence)
        paths.append(np.concatenate([path[:shared], np.arange(begin, len(tokens))]))

    return Row(
        prompt_ids=tokens[:start],
        completion_ids=tokens[start:],
        tool_mask=sampled[start:],
        turn_ids=turn_ids[start:],
        parent_offsets=[index - parent for index, parent in enumerate(parents)][start:],
        logprobs=None if logprobs is None else logprobs[start:],
    )


def stitch_trajectory(trajectory: Trajectory) -> Row:
    """
    The paper's masked trajectory (MEM1, section 3.2): each token once, turn after turn. Inexact; for comparison only.

    With prompt `P`, completions `c` and observations `o` the row is `P c1 o1 c2 o2 c3`. A token sees the prompt, its own
    turn and the one before, at sequential positions. What stands between two completions is taken from the context of the
    second: all of it behind the prompt that is not already the end of the first completion.

    Args:
        trajectory ([`Trajectory`]):
            A trajectory with `"mem1"` contexts.

    Returns:
        [`Row`]
    """
    start = len(trajectory.prompt_ids)
    tokens: list[int] = []
    sampled: list[int] = []
    turn_ids: list[int] = []
    logprobs: list[float] = []
    for number, turn in enumerate(trajectory.turns):
        tokens.extend(turn.completion_ids)
        sampled.extend([1] * len(turn.completion_ids))
        logprobs.extend(turn.logprobs or ())
        if number + 1 < len(trajectory.turns):
            behind = trajectory.turns[number + 1].prompt_ids[start:]
            overlap = min(len(behind), len(turn.completion_ids))
            while overlap and behind[:overlap] != turn.completion_ids[-overlap:]:
                overlap -= 1
            observation = behind[overlap:]
            tokens.extend(observation)
            sampled.extend([0] * len(observation))
            logprobs.extend([0.0] * len(observation))
        turn_ids.extend([number] * (len(tokens) - len(turn_ids)))
    complete = all(turn.logprobs is not None for turn in trajectory.turns)
    return Row(
        prompt_ids=list(trajectory.prompt_ids),
        completion_ids=tokens,
        tool_mask=sampled,
        turn_ids=turn_ids,
        parent_offsets=[1] * len(tokens),
        logprobs=logprobs if complete else None,
    )


@dataclass(frozen=True, slots=True)
class RowBatch:
    """
    Rows as tensors of shape `(B, T)`, the prompts padded on the left and what follows them on the right, as TRL does.

    Attributes:
        input_ids (`torch.Tensor`): Token ids, int64.
        attention_mask (`torch.Tensor`): 1 on tokens, 0 on padding.
        sampled (`torch.Tensor`): bool, true on tokens that the model sampled.
        turn_ids (`torch.Tensor`): Turn of each token; 0 in the prompt.
        parent_offsets (`torch.Tensor`): Distance to the predecessor; 1 in the prompt.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    sampled: torch.Tensor
    turn_ids: torch.Tensor
    parent_offsets: torch.Tensor

    @classmethod
    def from_rows(cls, rows: Sequence[Row], pad_token_id: int = 0, device: torch.device | str = "cpu") -> RowBatch:
        """Pad rows into one batch."""
        left = max(len(row.prompt_ids) for row in rows)
        right = max(len(row.completion_ids) for row in rows)
        shape = (len(rows), left + right)
        batch = cls(
            input_ids=torch.full(shape, pad_token_id, dtype=torch.long),
            attention_mask=torch.zeros(shape, dtype=torch.long),
            sampled=torch.zeros(shape, dtype=torch.bool),
            turn_ids=torch.zeros(shape, dtype=torch.long),
            parent_offsets=torch.ones(shape, dtype=torch.long),
        )
        for index, row in enumerate(rows):
            begin, end = left - len(row.prompt_ids), left + len(row.completion_ids)
            batch.input_ids[index, begin:end] = torch.tensor([*row.prompt_ids, *row.completion_ids])
            batch.attention_mask[index, begin:end] = 1
            batch.sampled[index, left:end] = torch.tensor(row.tool_mask, dtype=torch.bool)
            batch.turn_ids[index, left:end] = torch.tensor(row.turn_ids)
            batch.parent_offsets[index, left:end] = torch.tensor(row.parent_offsets)
        return batch.to(device)

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
    # The prompt is what no turn brought: everything before the first sampled token
    prompt = real & (batch.sampled.int().cumsum(1) == 0)
    query_turn, key_turn = batch.turn_ids[:, :, None], batch.turn_ids[:, None, :]
    near = (key_turn == query_turn) | (key_turn == query_turn - 1)
    causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    visible = causal & real[:, :, None] & real[:, None, :] & (prompt[:, None, :] | near)
    return visible | torch.eye(size, dtype=torch.bool, device=device)


@dataclass(frozen=True, slots=True)
class UnfoldedTurns:
    """
    The tree of a batch unfolded: one ordinary causal row per turn, padded on the right.

    Attributes:
        input_ids (`torch.Tensor`): Shape `(N, L)`, `N` turns over the whole batch.
        attention_mask (`torch.Tensor`): Shape `(N, L)`, 1 on tokens.
        sampled (`torch.Tensor`): Shape `(N, L)`, bool, true on the tokens that this turn sampled.
        sources (`torch.Tensor`): Shape `(N, L)`, where each token stands in the flattened `(B * T)` batch.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    sampled: torch.Tensor
    sources: torch.Tensor


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
        runs = batch.paths(row)
        sampled = batch.sampled[row].cpu()
        turn_ids = batch.turn_ids[row].cpu()
        for turn in turn_ids[sampled].unique().tolist():
            own = (sampled & (turn_ids == turn)).nonzero().flatten()
            last = int(own[-1])
            begin, stretches = next((run[0], run[2]) for run in runs if run[0] <= last < run[1])
            path = torch.cat([torch.arange(*stretch) for stretch in [*stretches, (begin, last + 1)]])
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
    sampled = pad(turns, batch_first=True, padding_value=False).to(device)
    return UnfoldedTurns(input_ids, attention_mask, sampled, sources)
