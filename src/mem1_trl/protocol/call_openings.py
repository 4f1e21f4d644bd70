"""Where the tool calls of a turn begin, as the response template of its model says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find_call(tokenizer: PreTrainedTokenizerBase, text: str, begin: int = 0) -> int | None:
    """
    The place of the opening of the first tool call of a turn; `None` if there is none.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            With a `response_template`.
        text (`str`):
            What the model wrote.
        begin (`int`, *optional*, defaults to `0`):
            Character from which on it is looked for.
    """
    template: Any = getattr(tokenizer, "response_template", None) or {}
    field = template.get("fields", {}).get("tool_calls", {})
    openings = field.get("open") or []
    openings = [openings] if isinstance(openings, str) else openings
    places = [text.find(opening, begin) for opening in openings]
    pattern = field.get("open_pattern")
    found = re.compile(pattern).search(text, begin) if pattern else None
    places += [found.start()] if found else []
    return min((place for place in places if place >= 0), default=None)
