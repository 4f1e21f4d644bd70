"""
Texts between a tag and its closing tag, `<search>tea</search>`, found in time that grows with the length of the text.

The expression `<tag>(.*?)</tag>` finds the same, but looks through the rest of the text for each opening of a tag that is never
closed: a model that repeats `<think>` ten thousand times takes minutes to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Tagged:
    """
    One tag with its text.

    Attributes:
        name (`str`):
            Name of the tag.
        begin, end (`int`):
            Its characters in the whole text, the tags included.
        inner (`str`):
            The text between opening and closing tag.
    """

    name: str
    begin: int
    end: int
    inner: str

    @property
    def last_opening(self) -> int:
        """Character at which the tag is opened for the last time: `begin`, unless it is opened again inside of itself."""
        opening = f"<{self.name}>"
        return self.begin + f"{opening}{self.inner}".rindex(opening)


def find_tagged(text: str, names: Iterable[str], begin: int = 0) -> Tagged | None:
    """
    The first tag that is closed, from its first opening to the first closing after it; `None` if there is none.

    In `"<a><b>1</b></c>"` with the names `a`, `b` and `c` it is `<b>1</b>`.

    Args:
        text (`str`):
            Any text.
        names (`Iterable[str]`):
            Names of tags.
        begin (`int`, *optional*, defaults to 0):
            Character from which to look.
    """
    first: tuple[int, int, str] | None = None
    for name in names:
        opening, closing = f"<{name}>", f"</{name}>"
        # If nothing closes the first opening, nothing closes a later one
        opened = text.find(opening, begin)
        closed = -1 if opened < 0 else text.find(closing, opened + len(opening))
        if closed >= 0 and (first is None or opened < first[0]):
            first = opened, closed, name
    if first is None:
        return None
    opened, closed, name = first
    return Tagged(name, opened, closed + len(name) + 3, text[opened + len(name) + 2 : closed])


def all_tagged(text: str, name: str, begin: int = 0) -> Iterator[Tagged]:
    """Every tag of a name, one after the other, none inside another."""
    found = find_tagged(text, [name], begin)
    while found is not None:
        yield found
        found = find_tagged(text, [name], found.end)


def find_whole(text: str, name: str, inner: str, begin: int = 0) -> Tagged | None:
    """
    The first tag of a name that holds this text and nothing else but space around it.

    As when a turn is read, a tag that is opened again begins at its last opening: `<a>1<a>2</a>` holds 2.
    """
    opening = f"<{name}>"
    for found in all_tagged(text, name, begin):
        before, again, last = found.inner.rpartition(opening)
        if found.inner.strip() == inner.strip():
            return found
        if again and last.strip() == inner.strip():
            return Tagged(name, found.begin + len(before) + len(opening), found.end, last)
    return None


def drop_tagged(text: str, name: str) -> str:
    """The text without the tags of a name, what is in them, and the space after them."""
    kept, end = [], 0
    for found in all_tagged(text, name):
        kept.append(text[end : found.begin])
        match = _SPACE.match(text, found.end)
        end = match.end() if match else found.end
    return "".join(kept) + text[end:]
