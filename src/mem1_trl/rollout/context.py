"""Which past is in the next context: MEM1's last turn only, the full history, a truncated one, or an external memory."""

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
            Number of tokens that each past turn leaves behind, oldest first.
        max_history_length (`int`, *optional*):
            Most tokens of history in the context; only `"truncate"` uses it.

    Returns:
        `int`: between 0 and `len(lengths)`, the latter if there is no past.
    """
    last = max(len(lengths) - 1, 0)
    if rule in ("mem1", "external"):
        return last
    if rule == "full":
        return 0
    if rule != "truncate":
        raise ValueError(f"context={rule!r} is not a rule: use one of {', '.join(map(repr, CONTEXT_RULES))}.")
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
    Build the context of the next turn. The task prompt always stands first and whole.

    With `history = [h1, h2, h3]` (what each past turn leaves behind: its completion and its observation):

    - `"mem1"` becomes `prompt + h3` (MEM1, section 3.1: everything older than the last turn is discarded);
    - `"full"` becomes `prompt + h1 + h2 + h3`;
    - `"truncate"` becomes `prompt + h2 + h3` if these two fit into `max_history_length` and three do not. Whole turns
      are dropped, oldest first; the last one always stays.
    - `"external"` becomes `prompt + recalled + h3`, with what [`mem1_trl.rollout.external_memory.ExternalMemory`] found for this
      turn among the observations before the last.

    Args:
        rule (`str`):
            One of `"mem1"`, `"full"`, `"truncate"`, `"external"`.
        prompt_ids (`Sequence[int]`):
            Token ids of the task prompt.
        history (`Sequence[Sequence[int]]`):
            Token ids that each past turn leaves behind, oldest first.
        max_history_length (`int`, *optional*):
            Most tokens of history in the context; only `"truncate"` uses it.
        recalled (`Sequence[int]`, *optional*):
            Token ids that an external memory puts back; only `"external"` uses them.

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
