"""The context of the next turn from token ids alone, by the rules that decide by lengths."""

from __future__ import annotations

from collections.abc import Sequence

from mem1_trl.context_rules.named import RULES, make_rule
from mem1_trl.context_rules.rule import Past
from mem1_trl.rollout.contexts import joined

CONTEXT_RULES = tuple(RULES)


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
            One of `CONTEXT_RULES`.
        prompt_ids (`Sequence[int]`):
            Token ids of the task prompt.
        history (`Sequence[Sequence[int]]`):
            Token ids of the completion and the observation of each past turn, oldest first.
        max_history_length (`int`, *optional*):
            Maximum number of tokens of history in the context.
        recalled (`Sequence[int]`, *optional*):
            Token ids of the notes of an external memory; only `"external"` uses them.

    Returns:
        `list[int]`: Token ids of the next context.
    """
    one = make_rule(rule)
    limit = None if max_history_length is None else len(prompt_ids) + max_history_length
    past = Past(prompt_ids, [len(tokens) for tokens in history], max_length=limit)
    return joined(prompt_ids, history, one.next(past).kept, recalled if one.recalls else ())
