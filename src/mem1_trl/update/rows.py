"""Trajectories become rows of tokens: a prefix tree, or the paper's stitched sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .layouts import check_layout

if TYPE_CHECKING:
    from ..trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Row:
    """
    One trajectory as one row, `prompt_ids | completion_ids`, in TRL's sense of the two.

    Attributes:
        prompt_ids (`list[int]`):
            Token ids of the first context.
        completion_ids (`list[int]`):
            Everything after it: completions, and the contexts of later turns where they are not shared.
        tool_mask (`list[int]`):
            1 on tokens that the model sampled, 0 on others. As long as `completion_ids`.
        turn_ids (`list[int]`):
            Turn that brought each token of `completion_ids`, from 0.
        parent_offsets (`list[int]`):
            How many places before each token of `completion_ids` its predecessor is: 1 inside a branch, more where a
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
        raise ValueError(f"A trajectory has no turns ({trajectory.error}): leave out episodes that never started.")
    return stitch_trajectory(trajectory) if layout == "paper" else pack_trajectory(trajectory)


def pack_trajectory(trajectory: Trajectory) -> Row:
    """
    Fold the turns of a trajectory into a prefix tree, laid out in one row.

    With prompt `P = p1 p2`, completions `c`, and `k`, the part of turn 1 that is kept in the context of turn 2:

        turn 1 reads p1 p2         and samples c1
        turn 2 reads p1 p2 k       and samples c2
        row          p1 p2 c1 k c2        predecessor of k: p2, so that k and c2 see p1 p2 but not c1

    A turn whose context extends an earlier turn (a full history) goes on where that turn ends. Only context is shared,
    never a sampled token of the turn itself: each is in the row exactly once. A completion must come right after its
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
    tool_mask = [0] * start + [1] * len(first.completion_ids)
    logprobs: list[float] | None = None
    if all(turn.logprobs is not None for turn in trajectory.turns):
        logprobs = [0.0] * start + list(first.logprobs or ())
    sequences = [np.asarray(tokens)]  # token ids of each turn, context and completion
    paths = [np.arange(len(tokens))]  # and the places of its tokens in the row

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
        tool_mask.extend([0] * (context - shared) + [1] * len(turn.completion_ids))
        if logprobs is not None:
            logprobs.extend([0.0] * (context - shared) + list(turn.logprobs or ()))
        sequences.append(sequence)
        paths.append(np.concatenate([path[:shared], np.arange(begin, len(tokens))]))

    return Row(
        prompt_ids=tokens[:start],
        completion_ids=tokens[start:],
        tool_mask=tool_mask[start:],
        turn_ids=turn_ids[start:],
        parent_offsets=[index - parent for index, parent in enumerate(parents)][start:],
        logprobs=None if logprobs is None else logprobs[start:],
    )


def stitch_trajectory(trajectory: Trajectory) -> Row:
    """
    The paper's masked trajectory (MEM1, section 3.2): each token once, turn after turn. Inexact; for comparison only.

    With prompt `P`, completions `c` and observations `o` the row is `P c1 o1 c2 o2 c3`. A token sees the prompt, its own
    turn and the one before, at sequential positions. The tokens between two completions are taken from the context of the
    second: all of it after the prompt that is not already the end of the first completion.

    Args:
        trajectory ([`Trajectory`]):
            A trajectory with `"mem1"` contexts.

    Returns:
        [`Row`]
    """
    start = len(trajectory.prompt_ids)
    tokens: list[int] = []
    tool_mask: list[int] = []
    turn_ids: list[int] = []
    logprobs: list[float] = []
    for number, turn in enumerate(trajectory.turns):
        tokens.extend(turn.completion_ids)
        tool_mask.extend([1] * len(turn.completion_ids))
        logprobs.extend(turn.logprobs or ())
        if number + 1 < len(trajectory.turns):
            after = trajectory.turns[number + 1].prompt_ids[start:]
            overlap = min(len(after), len(turn.completion_ids))
            while overlap and after[:overlap] != turn.completion_ids[-overlap:]:
                overlap -= 1
            observation = after[overlap:]
            tokens.extend(observation)
            tool_mask.extend([0] * len(observation))
            logprobs.extend([0.0] * len(observation))
        turn_ids.extend([number] * (len(tokens) - len(turn_ids)))
    complete = all(turn.logprobs is not None for turn in trajectory.turns)
    return Row(
        prompt_ids=list(trajectory.prompt_ids),
        completion_ids=tokens,
        tool_mask=tool_mask,
        turn_ids=turn_ids,
        parent_offsets=[1] * len(tokens),
        logprobs=logprobs if complete else None,
    )
