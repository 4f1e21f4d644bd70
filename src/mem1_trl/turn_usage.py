"""Token counts of the context of every turn of an episode, and of the text that had been dropped by then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .trajectory import Trajectory, Turn


@dataclass(frozen=True, slots=True)
class TurnUsage:
    """
    The tokens of one turn.

    `prompt + state + action + observation + other` is the length of the context, `new_state + new_action` that of the
    completion.

    Attributes:
        prompt (`int`):
            Tokens of the task prompt.
        state (`int`):
            Tokens of internal states of earlier turns that are still in context.
        action (`int`):
            Tokens that earlier turns wrote outside their state and that are still in context: actions, reasoning.
        observation (`int`):
            Tokens of earlier observations that are still in context.
        other (`int`):
            Tokens of the context that belong to none of these, for instance notes from an external memory.
        new_state (`int`):
            Tokens of internal state that this turn wrote.
        new_action (`int`):
            Tokens that this turn wrote outside its state.
        kept (`tuple[int, ...]`):
            Earlier turns (0 is the first) whose text is in context.
        dropped (`tuple[int, ...]`):
            Earlier turns whose text is not in context.
        dropped_tokens (`int`):
            Tokens of the earlier turns, written or observed, that are not in context.
    """

    prompt: int
    state: int
    action: int
    observation: int
    other: int
    new_state: int
    new_action: int
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    dropped_tokens: int

    @property
    def context(self) -> int:
        """Tokens of the whole context."""
        return self.prompt + self.state + self.action + self.observation + self.other


@dataclass(frozen=True, slots=True)
class _Left:
    """The part of a turn that the next context contains: its completion (without scratch) and its observation."""

    ids: tuple[int, ...]
    state: int
    action: int
    observation: int


def turn_usage(trajectory: Trajectory) -> list[TurnUsage]:
    """
    Token counts of the parts of every turn's context.

    They are derived from token ids, not from the rule that built the context: an earlier turn counts as kept if its tokens occur
    in the context after the task prompt. So MEM1's rule, a full history and a truncated one are all counted the same way.

    With a prompt of 10 tokens and turns that leave 5 tokens each, MEM1's third turn has `prompt=10`, 5 tokens of turn 2,
    `kept=(1,)`, `dropped=(0,)` and `dropped_tokens=5`; with the full history it has `kept=(0, 1)` and nothing dropped.

    Args:
        trajectory ([`Trajectory`]):
            The episode.

    Returns:
        `list[TurnUsage]`: one per turn.
    """
    prompt = trajectory.prompt_ids
    left: list[_Left] = []
    usages = []
    for number, turn in enumerate(trajectory.turns):
        body = turn.prompt_ids[len(prompt) :] if turn.prompt_ids[: len(prompt)] == prompt else turn.prompt_ids
        head = len(turn.prompt_ids) - len(body)
        kept: tuple[int, ...] = ()
        if number > 0:
            kept, last = _read_body(body, left, trajectory.turns[number - 1])
            left.append(last)
        written = [left[i] for i in kept]
        produced = sum(len(t.completion_ids) + t.observation_tokens for t in trajectory.turns[:number])
        counts = {part: sum(getattr(piece, part) for piece in written) for part in ("state", "action", "observation")}
        usages.append(
            TurnUsage(
                prompt=head,
                **counts,
                other=len(body) - sum(counts.values()),
                new_state=min(turn.state_tokens, len(turn.completion_ids)),
                new_action=max(0, len(turn.completion_ids) - turn.state_tokens),
                kept=kept,
                dropped=tuple(i for i in range(number) if i not in kept),
                dropped_tokens=max(0, produced - sum(counts.values())),
            )
        )
    return usages


def _read_body(body: tuple[int, ...], left: Sequence[_Left], last: Turn) -> tuple[tuple[int, ...], _Left]:
    """The turns that are kept in `body` (the context after the prompt), and the part of the last turn that is in it."""
    whole = len(last.completion_ids) + last.observation_tokens
    size = sum(len(piece.ids) for piece in left)
    for first in range(len(left) + 1):
        fits = size + last.observation_tokens <= len(body)
        size -= len(left[first].ids) if first < len(left) else 0
        if not fits:  # the usual case of a long episode, whose turns are not joined for it
            continue
        older = tuple(token for piece in left[first:] for token in piece.ids)
        if body[: len(older)] != older:
            continue
        rest = body[len(older) :]
        carried = len(rest) - last.observation_tokens  # fewer than were written if scratch is dropped
        if len(rest) <= whole and (carried < len(last.completion_ids) or rest[:carried] == last.completion_ids):
            return tuple(range(first, len(left) + 1)), _left_behind(rest, carried, last)
    written = last.completion_ids
    # Turns between others are left out, or something follows the last turn, such as the request for a summary
    found, place = [], 0
    for number, piece in enumerate(left):
        if piece.ids and body[place : place + len(piece.ids)] == piece.ids:
            found.append(number)
            place += len(piece.ids)
    if body[place : place + len(written)] == written and len(body) - place >= whole:
        return (*found, len(left)), _left_behind(body[place : place + whole], len(written), last)
    # What comes first is not of the agent's turns: look for the last turn itself
    for begin in range(len(body) - whole + 1):
        if body[begin : begin + len(written)] == written:
            return (len(left),), _left_behind(body[begin : begin + whole], len(written), last)
    return (len(left),), _left_behind((), 0, last)


def _left_behind(ids: tuple[int, ...], carried: int, turn: Turn) -> _Left:
    state = min(turn.state_tokens, carried)
    return _Left(ids, state=state, action=carried - state, observation=len(ids) - carried)
