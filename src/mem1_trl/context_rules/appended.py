"""Rules that append turns and drop old ones: MEM1's, the full history, a truncated one, and an external memory."""

from __future__ import annotations

from .rule import ContextRule, NextTurn, Past


class Mem1(ContextRule):
    """The last turn and its observation (MEM1, arXiv 2506.15841, section 3.1): everything older is discarded."""

    last_turn_only = True

    def next(self, past: Past) -> NextTurn:
        return NextTurn(range(max(len(past) - 1, 0), len(past)))

    def bound(self, prompt: int, completion: int, observation: int, max_context_length: int) -> int | None:
        return prompt + completion + observation


class External(Mem1):
    """The last turn, and the best matches among earlier observations, see [`mem1_trl.rollout.external_memory.ExternalMemory`]."""

    recalls = True

    def bound(self, prompt: int, completion: int, observation: int, max_context_length: int) -> int | None:
        return None  # notes take what is left


class Full(ContextRule):
    """All turns."""

    def next(self, past: Past) -> NextTurn:
        return NextTurn(range(len(past)))


class Truncate(ContextRule):
    """As many whole turns as fit into the limit, without a gap; oldest first are dropped, and the last one always stays."""

    def next(self, past: Past) -> NextTurn:
        self.check(past.max_length)
        assert past.room is not None
        first = max(len(past) - 1, 0)
        length = sum(past.lengths[first:])
        while first > 0 and length + past.lengths[first - 1] <= past.room:
            first -= 1
            length += past.lengths[first]
        return NextTurn(range(first, len(past)))

    def check(self, max_context_length: int | None) -> None:
        if max_context_length is None:
            raise ValueError("context='truncate' needs a length to truncate to: set `max_context_length`.")
