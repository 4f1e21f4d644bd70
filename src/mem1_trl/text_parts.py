"""A long text in parts, cut where it does least harm."""

from __future__ import annotations

from collections.abc import Callable


def split_text(text: str, longest: int, reach: Callable[[str], int] = len) -> list[str]:
    """
    Parts of a text, cut between lines or words if such a place is near the end of a part. Space around a cut is left out, and so is a part
    of nothing else; a text without any words has none.

    Args:
        text (`str`):
            Any text.
        longest (`int`):
            Maximum number of characters of a part.
        reach (`Callable[[str], int]`, *optional*):
            How many of at most `longest` characters fit into a part, at least one.
    """
    parts, start = [], 0
    while start < len(text):
        head = text[start : start + longest]
        end = reach(head)
        if start + end < len(text):
            near = max(head.rfind("\n", end - end // 5, end), head.rfind(" ", end - end // 10, end))
            end = near + 1 if near > 0 else end
        part = head[:end].strip()
        parts += [part] if part else []
        start += end
        while start < len(text) and text[start].isspace():
            start += 1
    return parts
