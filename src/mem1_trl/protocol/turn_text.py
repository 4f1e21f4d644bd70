"""Texts of turns: thoughts at their beginning, the first closed action at their end, and what servers leave out of both."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .encoding import encode_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from .protocol import Mem1Protocol

THOUGHT_TAG = "think"
"""Tag in which models think that were taught to, whatever the protocol calls its state."""


def thought_tags(protocol: Mem1Protocol) -> set[str]:
    """Tags inside which nothing is an action: those of the state and of scratch, and the one that models think in."""
    return {THOUGHT_TAG, protocol.state_tag, *protocol.scratch_tags}


def written_tags(protocol: Mem1Protocol, action_tags: Iterable[str] = ()) -> set[str]:
    """Tags that an agent may write."""
    return {*thought_tags(protocol), protocol.answer_tag, *action_tags}


_OPENING = re.compile(r"<([\w.-]+)>")


def leading_thought(protocol: Mem1Protocol, text: str, besides: Collection[str] = ()) -> str | None:
    """The tag of a whole thought at the beginning of a text, if it is not one of `besides`."""
    begin = _OPENING.match(text.lstrip())
    if begin is None or begin[1] in besides or begin[1] not in thought_tags(protocol):
        return None
    return begin[1] if f"</{begin[1]}>" in text else None


def append_text(text: str, past: str) -> str:
    """A message with the past of the episode below it."""
    return text + ("" if not past or text.endswith("\n") else "\n\n") + past


def join_thought(protocol: Mem1Protocol, message: Mapping[str, Any], opened: str | None = None) -> str:
    """
    The text of a turn from the message of a server, which may have taken the thought out of it.

    `{"reasoning_content": "a", "content": "<search>b</search>"}` becomes `"<think>a</think><search>b</search>"`, and
    `"a</think><search>b</search>"` too: the template of the server had opened the tag. If the student's own context has opened it
    (`opened="think"`), its turn begins after the tag: `"a</think><search>b</search>"`.

    Args:
        protocol ([`Mem1Protocol`]):
            Gives the tags.
        message (`Mapping`):
            With `content`, and `reasoning_content` if the server keeps thoughts apart.
        opened (`str`, *optional*):
            Tag that the student's context has opened.
    """
    text, thought = message.get("content") or "", message.get("reasoning_content") or ""
    twice = f"</{THOUGHT_TAG}>" in text and thought.strip() in text  # as some servers send it
    if thought.strip() and not twice:
        text = f"<{THOUGHT_TAG}>{thought}</{THOUGHT_TAG}>{text}"
    for tag in sorted(thought_tags(protocol)):
        begin, end = f"<{tag}>", f"</{tag}>"
        if end in text and begin not in text[: text.index(end)]:
            text = begin + text
    begin = f"<{opened}>"
    if opened is not None and text.lstrip().startswith(begin):
        text = text.lstrip().removeprefix(begin)
    return text


def encode_closed(
    tokenizer: PreTrainedTokenizerBase, text: str, ended: bool, stops: Sequence[str], opened: str | None = None
) -> list[int]:
    """
    Token ids of a turn that a server returned as text: up to its first closed action, or with an end token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Encodes the text.
        text (`str`):
            What the server returned.
        ended (`bool`):
            Whether it ended by itself or at a stop string, instead of at its length limit.
        stops (`Sequence[str]`):
            Stop strings that were asked for.
        opened (`str`, *optional*):
            Tag that the context or the beginning of the text has opened; nothing before its end is an action.
    """
    # Also one that reached its limit: a server may not know all stop strings, and wrote on after an action
    text, closed = close_action(text, stops, opened, ended)
    ids = encode_text(tokenizer, text)
    if (ended and not closed) or not ids:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "A reply ended without an action and the tokenizer has no end token: set `tokenizer.eos_token`."
            )
        if ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
    return ids


def close_action(text: str, stops: Sequence[str], opened: str | None = None, ended: bool = True) -> tuple[str, bool]:
    """
    The text up to its first closing tag. A tag that a server stopped at and left out is put back.

    `"<think>a</think><search>b"` becomes `"<think>a</think><search>b</search>"`, and `"<search>b</search> and"` becomes
    `"<search>b</search>"`.

    Args:
        text (`str`):
            The reply of the endpoint.
        stops (`Sequence[str]`):
            Closing tags that were asked to stop at.
        opened (`str`, *optional*):
            Tag that was opened before or at the beginning of the text; nothing before its end counts.
        ended (`bool`, *optional*, defaults to `True`):
            Whether it ended by itself or at a stop string; one that was cut by its length limit lacks no tag.

    Returns:
        `tuple[str, bool]`: The text, and whether it holds a closing tag.
    """
    if opened is not None:
        thought, end, rest = text.partition(f"</{opened}>")
        rest, closed = close_action(rest, stops, ended=ended) if end else (rest, False)
        return thought + end + rest, closed
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if ends:
        return text[: min(ends)], True
    if not ended:
        return text, False
    openings = {text.rfind("<" + stop.removeprefix("</")): stop for stop in stops}
    place = max(openings, default=-1)
    if place > text.rfind("</"):  # the last tag of the text opens an action
        return text + openings[place], True
    return text, False
