"""The context of the next turn: the last turn only (MEM1), the full history, a truncated history, or an external memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTEXT_RULES = ("mem1", "full", "truncate", "external")


def first_kept(rule: str, lengths: Sequence[int], max_history_length: int | None = None) -> int:
    """
    Index of the oldest past turn that stays in the context; it and all later ones do.

    Args:
        rule (`str`):
            One of `CONTEXT_RULES`, see [`next_context`].
        lengths (`Sequence[int]`):
            Number of tokens that each past turn adds to the history, oldest first.
        max_history_length (`int`, *optional*):
            Maximum number of tokens of history in the context; only `"truncate"` uses it.

    Returns:
        `int`: between 0 and `len(lengths) - 1`; 0 if there are no past turns.
    """
    last = max(len(lengths) - 1, 0)
    if rule in ("mem1", "external"):
        return last
    if rule == "full":
        return 0
    if rule != "truncate":
        raise ValueError(f"context must be one of {', '.join(map(repr, CONTEXT_RULES))}, got {rule!r}.")
    if max_history_length is None:
        raise ValueError("context='truncate' needs a length to truncate to: set `max_context_length`.")
    first, length = last, sum(lengths[last:])
    while first > 0 and length + lengths[first - 1] <= max_history_length:
        first -= 1
        length += lengths[first]
    return first


def next_context(
    rule: str,
    prompt_ids: Sequence[int],
    history: Sequence[Sequence[int]],
    max_history_length: int | None = None,
    recalled: Sequence[int] = (),
) -> list[int]:
    """
    The context of the next turn. It always begins with the whole task prompt.

    With `history = [h1, h2, h3]` (the completion and the observation of each past turn):

    - `"mem1"` becomes `prompt + h3` (MEM1, section 3.1: everything older than the last turn is discarded);
    - `"full"` becomes `prompt + h1 + h2 + h3`;
    - `"truncate"` becomes `prompt + h2 + h3` if these two fit into `max_history_length` and three do not. Whole turns
      are dropped, oldest first; the last one always stays.
    - `"external"` becomes `prompt + recalled + h3`, where `recalled` are the notes that
      [`mem1_trl.rollout.external_memory.ExternalMemory`] found for this turn among the observations before the last.

    Args:
        rule (`str`):
            One of `"mem1"`, `"full"`, `"truncate"`, `"external"`.
        prompt_ids (`Sequence[int]`):
            Token ids of the task prompt.
        history (`Sequence[Sequence[int]]`):
            Token ids of the completion and the observation of each past turn, oldest first.
        max_history_length (`int`, *optional*):
            Maximum number of tokens of history in the context; only `"truncate"` uses it.
        recalled (`Sequence[int]`, *optional*):
            Token ids of the notes of an external memory; only `"external"` uses them.

    Returns:
        `list[int]`: Token ids of the next context.
    """
    kept = history[first_kept(rule, [len(tokens) for tokens in history], max_history_length) :]
    context = list(prompt_ids)
    if rule == "external":
        context.extend(recalled)
    for tokens in kept:
        context.extend(tokens)
    return context
