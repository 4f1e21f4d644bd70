"""What a method of an environment returned, as the text that an agent reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MEDIA = ("image", "image_url", "video", "audio")
"""Types of the blocks, beside text, that a message of chat templates may hold."""


def shown_text(value: Any) -> str:
    """
    A result as text: of `None` an empty one, of bytes their UTF-8, of text blocks what they hold, of anything else `str(value)`.

    Raises:
        `TypeError`: If all that could be shown is its address in memory, as with a generator or an object without `__str__`; or if it
            holds an image or another medium.
    """
    if value is None:
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", errors="replace")
    if is_blocks(value):
        try:
            return text_of_blocks(value)
        except ValueError as error:  # which would say that the agent is at fault
            raise TypeError(str(error)) from None
    text = str(value)
    if not isinstance(value, str) and " at 0x" in text and f"{id(value):x}" in text.lower():
        raise TypeError(f"an action must return text, or a value that `str` makes one of, got {text:.80}")
    return text


def is_blocks(value: Any) -> bool:
    """Whether a value is a list of typed blocks, the form in which TRL takes results and observations that hold more than text."""
    return isinstance(value, list) and bool(value) and all(map(_is_block, value))


def _is_block(value: Any) -> bool:
    kind = value.get("type") if isinstance(value, Mapping) else None
    return kind in _MEDIA or (kind == "text" and isinstance(value.get("text"), str))


def text_of_blocks(content: Any) -> Any:
    """
    The content of a message as one text, if it is a list of typed text blocks; unchanged if it is no list.

    Raises:
        `ValueError`: If a block is not text.
    """
    if not isinstance(content, list):
        return content
    for block in content:
        if not isinstance(block, Mapping):
            raise ValueError(
                f"The content of a message must be a text or a list of typed blocks, such as {{'type': 'text', 'text': 'Who?'}}, got "
                f"{block!r:.80} in the list."
            )
        if not isinstance(block.get("text"), str):
            raise ValueError(
                f"A message may hold text only, got a block of type {block.get('type')!r}: images and other media are not supported."
            )
    return "".join(block["text"] for block in content)
