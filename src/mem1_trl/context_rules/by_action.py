"""Rules by which the agent itself decides what stays, with actions that it has for that."""

from __future__ import annotations

from .rule import ContextRule, NextTurn, Past


class OnDemand(ContextRule):
    """
    Turns are appended, and the agent decides when to rewrite: by the action `rewrite`, whose turn is then the oldest that stays.

    With `rewrite` in turn 3 the contexts are `prompt`, `prompt t1`, `prompt t1 t2`, `prompt t3`, `prompt t3 t4` and so on. If it never
    rewrites, the episode ends where a context would exceed `max_context_length`, as with the full history.
    """

    actions = ("rewrite",)
    summaries = ("rewrite",)

    def next(self, past: Past) -> NextTurn:
        rewritten = past.done("rewrite")
        return NextTurn(range(rewritten[-1] if rewritten else 0, len(past)))

    def rewrite(self, summary: str) -> str:
        """
        Forget everything after the task but this summary of what you have found out and of what is left to do.

        Args:
            summary: What you want to remember.
        """
        return "Everything before this summary is forgotten."


class Fold(ContextRule):
    """
    The agent opens a branch for a part of the task by the action `branch`. With `close_branch` it returns to where it was, and only what
    it returns stays (context folding, arXiv 2510.11967).

    With a branch that turn 2 opens and turn 5 closes, turn 5 reads `prompt t1 t2 t3 t4`, and turn 6 reads `prompt t1 t2 t5`. There is one
    branch at a time. A branch that is open at the end of an episode stays open: nothing is folded.
    """

    actions = ("branch", "close_branch")
    summaries = ("close_branch",)

    def next(self, past: Past) -> NextTurn:
        opened, closed = past.done("branch"), past.done("close_branch")
        inside: set[int] = set()
        for begin, end in zip(opened, closed):  # a branch cannot be opened in another, see `refusal`
            inside |= set(range(begin + 1, end))
        return NextTurn([index for index in range(len(past)) if index not in inside])

    def refusal(self, action: str, past: Past) -> str | None:
        is_open = len(past.done("branch")) > len(past.done("close_branch"))
        if action == "branch" and is_open:
            return "a branch is open already: close it with close_branch first."
        if action == "close_branch" and not is_open:
            return "no branch is open: open one with branch first."
        return None

    def branch(self, task: str) -> str:
        """
        Begin to work on a part of the task apart; of all you do there, only what you return stays.

        Args:
            task: What is to be found out or done there.
        """
        return "The branch is open. Return from it with close_branch."

    def close_branch(self, result: str) -> str:
        """
        End the branch: all that was done in it is forgotten but this result.

        Args:
            result: What you have found out or done there.
        """
        return "The branch is closed."
