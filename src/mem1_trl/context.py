"""Which past is in the next context: MEM1's last turn only, the full history, or a truncated one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTEXT_RULES = ("mem1", "full", "truncate")


def next_context(
    rule: str,
    prompt_ids: Sequence[int],
    history: Sequence[Sequence[int]],
    max_history_length: int | None = None,
) -> list[int]:
    """
    Build the context of the next turn. The task prompt always stands first and whole.

    With `history = [h1, h2, h3]` (what each past turn leaves behind: its completion and its observation):

    - `"mem1"` becomes `prompt + h3` (MEM1, section 3.1: everything older than the last turn is discarded);
    - `"full"` becomes `prompt + h1 + h2 + h3`;
    - `"truncate"` becomes `prompt + h2 + h3` if these two fit into `max_history_length` and three do not. Whole turns
      are dropped, oldest first; the last one always stays.

    Args:
        rule (`str`):
            One of `"mem1"`, `"full"`, `"truncate"`.
        prompt_ids (`Sequence[int]`):
            Token ids of the task prompt.
        history (`Sequence[Sequence[int]]`):
            Token ids that each past turn leaves behind, oldest first.
        max_history_length (`int`, *optional*):
            Most tokens of history in the context; only `"truncate"` uses it.

    Returns:
        `list[int]`: Token ids of the next context.
    """
    if rule == "mem1":
        kept = history[-1:]
    elif rule == "full":
        kept = history
    elif rule == "truncate":
        if max_history_length is None:
            raise ValueError("context='truncate' needs a length to truncate to: set `max_context_length`.")
        first, length = len(history), 0
        while first > 0 and (first == len(history) or length + len(history[first - 1]) <= max_history_length):
            first -= 1
            length += len(history[first])
        kept = history[first:]
    else:
        raise ValueError(f"context={rule!r} is not a rule: use one of {', '.join(map(repr, CONTEXT_RULES))}.")
    context = list(prompt_ids)
    for tokens in kept:
        context.extend(tokens)
    return context
