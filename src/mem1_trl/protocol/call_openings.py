"""Where the tool calls of a turn begin and end, as the response template of its model says."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ONE_ORDER = r"to=functions\.(?P<name>\S+?)<\|channel\|>commentary\s+json<\|message\|>"
"""The opening of a call in Harmony, the format of gpt-oss, as TRL reads it and the chat template writes it."""

_ANY_ORDER = (
    r"(?:<\|channel\|>commentary\s++)?to=functions\.(?P<name>\S+?)(?:\s*+<\|channel\|>commentary)?"
    r"(?:\s*+<\|constrain\|>)?(?:\s*+json)?\s*+<\|message\|>"
)
"""The same, also with the channel first, as the model writes it for the most part."""


def read_calls_in_any_order(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the response template that TRL has for gpt-oss read calls in both orders of Harmony; others stay as they are."""
    template: Any = getattr(tokenizer, "response_template", None) or {}
    if _calls(template).get("open_pattern") == _ONE_ORDER:
        template = copy.deepcopy(template)  # TRL gives the same one to every tokenizer
        _calls(template)["open_pattern"] = _ANY_ORDER
        tokenizer.response_template = template


def ends_call(tokenizer: PreTrainedTokenizerBase, end: str) -> bool:
    """Whether the token that ended a turn ends nothing but calls, as `<|call|>` of gpt-oss."""
    pattern = _calls(getattr(tokenizer, "response_template", None) or {}).get("close_pattern") or ""
    return bool(end) and pattern.startswith(re.escape(end))


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
    field = _calls(getattr(tokenizer, "response_template", None) or {})
    openings = field.get("open") or []
    openings = [openings] if isinstance(openings, str) else openings
    places = [text.find(opening, begin) for opening in openings]
    pattern = field.get("open_pattern")
    found = re.compile(pattern).search(text, begin) if pattern else None
    places += [found.start()] if found else []
    return min((place for place in places if place >= 0), default=None)


def _calls(template: Any) -> dict[str, Any]:
    """What a response template says about tool calls."""
    return template.get("fields", {}).get("tool_calls", {})
