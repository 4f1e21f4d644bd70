"""What an episode asks of a backend for its next turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from ..context_rules.rule import NextTurn
    from .episode import Episode


@dataclass(frozen=True, slots=True, eq=False)
class TurnRequest:
    """
    One turn that is to be generated.

    Attributes:
        episode ([`Episode`]):
            Whose turn it is.
        context (`list[int]`):
            Token ids that the model reads.
        stops (`list[str]`):
            Stop strings of the turn.
        turns_left (`int`):
            Turns after this one, those of summaries not counted.
        next (`NextTurn`):
            What the context rule has decided: the turns in the context, and whether the turn is a summary.
        draws (`numpy.ndarray` or `None`):
            Random numbers that choose its tokens, see [`uniform_draws`]. `None` if the backend draws its own.
    """

    episode: Episode
    context: list[int]
    stops: list[str]
    turns_left: int
    next: NextTurn
    draws: np.ndarray | None = None
