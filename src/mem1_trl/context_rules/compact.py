"""Append until a budget is reached; then a summary takes the place of the past."""

from __future__ import annotations

from dataclasses import dataclass

from ..typed_fields import check_whole, fits
from .rule import ContextRule, NextTurn, Past


@dataclass(frozen=True)
class Compact(ContextRule):
    """
    Turns are appended until a budget is reached. Then the model writes a summary, which replaces them (as in SUPO, arXiv 2510.06727,
    and ReSum, arXiv 2509.13313).

    With a budget that three turns exceed, the contexts are `prompt`, `prompt t1`, `prompt t1 t2`, then `prompt t1 t2 t3 request` for the
    summary `s`, then `prompt s`, `prompt s t4` and so on.

    The budget is soft. It is looked at before each turn, so the context of a summary turn may exceed it by one turn and the request; so a
    single observation that is longer than the budget is summarized right after it was read. After a summary, the agent acts at least
    once, even if the summary alone exceeds the budget. `max_context_length` is the hard limit: it ends the episode, as with every rule.

    Args:
        fraction (`float`, *optional*):
            Part of `max_context_length` that a context may fill, the task prompt included. 0.5 if nothing else is given.
        budget (`int`, *optional*):
            The same in tokens.
        every (`int`, *optional*):
            Number of turns after which a summary is written, however short they were. With a budget too, what comes first counts.
    """

    fraction: float | None = None
    budget: int | None = None
    every: int | None = None

    asks = True

    def __post_init__(self) -> None:
        if self.fraction is not None and not (fits(self.fraction, float) and 0 < self.fraction <= 1):
            raise ValueError(f"fraction must be a number above 0 and at most 1, got {self.fraction!r}.")
        for name in ("budget", "every"):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, 1)
        if self.fraction is not None and self.budget is not None:
            raise ValueError("fraction and budget both say how long a context may be: leave one of them out.")

    def next(self, past: Past) -> NextTurn:
        written = past.done()
        kept = range(written[-1] if written else 0, len(past))
        new = len(kept) - bool(written)
        limit = self.limit(past.max_length)
        due = self.every is not None and new >= self.every
        due = due or (limit is not None and past.tokens(kept) > limit)
        return NextTurn(kept, summary=due and new > 0)

    def limit(self, max_context_length: int | None) -> int | None:
        """Tokens of a context beyond which a summary is written; `None` if only turns count."""
        self.check(max_context_length)
        if self.budget is not None:
            return self.budget
        if self.fraction is None and self.every is not None:
            return None
        assert max_context_length is not None
        return int((self.fraction or 0.5) * max_context_length)

    def check(self, max_context_length: int | None) -> None:
        by_fraction = self.budget is None and (self.fraction is not None or self.every is None)
        if by_fraction and max_context_length is None:
            raise ValueError(
                "context='compact' fills a fraction of `max_context_length`, which is None: set it, or give `budget` or `every` in "
                "`context_kwargs`."
            )

    def bound(self, prompt: int, completion: int, observation: int, max_context_length: int) -> int | None:
        limit = self.limit(max_context_length)
        appended = completion + observation
        if limit is None:
            assert self.every is not None
            return prompt + (self.every + 1) * appended
        # What is within the budget, or a summary that exceeds it, and one turn more
        return max(limit, prompt + appended) + appended
