"""The record of what a state is worth. It does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StateValue:
    """
    How many nats the state that a turn wrote carries, in the context of the turn after it.

    Each number is the log-prob of some tokens in the context as it was, less that in the same context without the state (or with
    another one in its place). Above 0, the state makes them likelier.

    Attributes:
        turn (`int`):
            Turn that wrote the state, from 1.
        next_turn (`float`):
            Of all that the next turn sampled.
        next_action (`float` or `None`):
            Of what the next turn sampled after the state that it wrote itself: its action. `None` for a turn that sampled nothing
            after its state: a summary, a state that was cut, an action that belongs to the state.
        answer (`float` or `None`):
            Of the right answers of all objectives, if the next turn gave them at once; `None` without references.
        objectives (`tuple[float, ...]`):
            The same, for each objective; they add up to `answer`, but for the separators between them.
    """

    turn: int
    next_turn: float
    next_action: float | None
    answer: float | None = None
    objectives: tuple[float, ...] = ()
