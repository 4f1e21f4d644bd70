"""The turn that stays in the context when a person has put another text in place of its state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .encoding import encode_text
from .untrusted import encode_untrusted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..trajectory import Turn
    from .syntax import ActionSyntax

_MARK = "\0m1state\0"
"""Stands for the new state while scratch is dropped around it."""


def edited_text(syntax: ActionSyntax, turn: Turn, mark: str | None = None) -> str:
    """
    The text of a turn with `turn.edited_state` in place of the state that it wrote.

    `<think>a</think><search>tea</search>` with the state `b` becomes `<think>b</think><search>tea</search>`. In a turn that wrote no state
    it stands at the beginning. Tags inside the new state are escaped, since it may come from anywhere.

    Args:
        syntax ([`ActionSyntax`]):
            Finds the state.
        turn ([`Turn`]):
            The turn.
        mark (`str`, *optional*):
            Is put there instead of the new state.
    """
    text, tag = turn.text, syntax.protocol.state_tag
    state = mark if mark is not None else syntax.escape_tags(turn.edited_state or "", [turn.action or tag])
    opening, closing = f"<{tag}>", f"</{tag}>"
    span = syntax.state_span(turn)
    if span is not None:
        old = text[span[0] : span[1]]
        # A context may have opened the tag, and some templates write a thought without it
        opening = opening if old.startswith(opening) else ""
        closing = closing if old.endswith(closing) else ""
        return text[: span[0]] + opening + state + closing + text[span[1] :]
    opened = syntax.opened(turn.prompt_ids)
    if opened == tag:
        return state + closing + text
    place = 0
    if opened is not None:  # the state follows the thought; of one that never ends, its end is added
        closed = f"</{opened}>"
        text = text if closed in text else text + closed
        place = text.index(closed) + len(closed)
    return text[:place] + opening + state + closing + text[place:]


def edited_ids(syntax: ActionSyntax, turn: Turn) -> list[int]:
    """Token ids of [`edited_text`] as they stay in the context: without scratch, and without special tokens in the new state."""
    text = syntax.drop_scratch(edited_text(syntax, turn, _MARK), syntax.opened(turn.prompt_ids))
    before, _, after = text.partition(_MARK)
    state = syntax.escape_tags(turn.edited_state or "", [turn.action or syntax.protocol.state_tag])
    inner: Sequence[int] = encode_untrusted(syntax.tokenizer, state)
    return [*encode_text(syntax.tokenizer, before), *inner, *encode_text(syntax.tokenizer, after)]
