"""Where the tool calls of a turn begin and end, as the response template of its model says."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

REASONING = ("reasoning_content", "thinking")
"""Fields of a message in which response templates put a model's thoughts."""

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


def find_call(tokenizer: PreTrainedTokenizerBase, text: str, begin: int = 0, tag: str | None = None) -> int | None:
    """
    The place of the opening of the first tool call of a turn; `None` if there is none.

    One inside a thought is none, if the thought is closed: a model thinks about a call without making it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            With a `response_template`.
        text (`str`):
            What the model wrote.
        begin (`int`, *optional*, defaults to `0`):
            Character from which on it is looked for.
        tag (`str`, *optional*):
            Tag of the state, which is the thought of a turn that has no other.
    """
    template: Any = getattr(tokenizer, "response_template", None) or {}
    anchor = _anchor(_calls(template), "open")
    if anchor is None:
        return None
    opening = re.compile(anchor, re.DOTALL)
    found = opening.search(text, begin)
    thoughts = [
        (re.compile(opened, re.DOTALL), re.compile(closed, re.DOTALL)) for opened, closed in _thoughts(template, tag)
    ]
    for opened, closed in _closed_thoughts(text, thoughts):
        if found is None or found.start() < opened:
            break
        if found.start() < closed:
            found = opening.search(text, closed)
    return None if found is None else found.start()


def _thoughts(template: Any, tag: str | None) -> Iterator[tuple[str, str]]:
    """Patterns of what opens and what closes a thought, in each way that one may be written."""
    fields = [template.get("fields", {}).get(name, {}) for name in REASONING]
    if tag is not None:
        fields.append({"open": f"<{tag}>", "close": f"</{tag}>"})
    for field in fields:
        opened, closed = _anchor(field, "open"), _anchor(field, "close")
        if opened is not None and closed is not None:
            yield opened, closed


def _closed_thoughts(
    text: str, thoughts: Sequence[tuple[re.Pattern[str], re.Pattern[str]]]
) -> Iterator[tuple[int, int]]:
    """First character of each thought, and the one after its end, up to one that is not closed; in the first way in which the text has any."""
    for opening, closing in thoughts:
        opened = opening.search(text)
        if opened is None:
            continue
        while opened is not None:
            closed = closing.search(text, opened.end())
            if closed is None or not closed[0]:  # a pattern may match the end of the text, too
                return
            yield opened.start(), closed.end()
            opened = opening.search(text, closed.end())
        return


def _anchor(field: Mapping[str, Any], name: str) -> str | None:
    """A pattern of what opens or closes a field of a response template, which says it by texts or by a pattern; `None` if nothing does."""
    texts = field.get(name) or []
    sources = [re.escape(text) for text in ([texts] if isinstance(texts, str) else texts)]
    pattern = field.get(f"{name}_pattern")
    return "|".join([*sources, pattern] if pattern else sources) or None


def _calls(template: Any) -> dict[str, Any]:
    """What a response template says about tool calls."""
    return template.get("fields", {}).get("tool_calls", {})
