"""Text of strangers for a terminal, a log or an error: shown, and never obeyed."""

from __future__ import annotations

import unicodedata
from typing import Any

# Cc: escape sequences that move the cursor, rename the window or fill the clipboard. Cs: half a character, which no terminal can be
# sent. The rest turns the direction of writing around, or breaks a line where none is seen to end.
_ALLOWED = "\n\t"
_HIDDEN = "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"


def printable(text: Any) -> str:
    r"""
    The text with its control characters written out: an escape becomes `\x1b`, half a character `\ud800`.

    Args:
        text (`Any`):
            Any text; another object is printed first. Line breaks and tabs stay.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def one_line(text: Any, most: int | None = None) -> str:
    """
    The text as one line without control characters.

    Args:
        text (`Any`):
            Any text; another object is printed first.
        most (`int`, *optional*):
            Maximum number of characters. A longer text is cut.
    """
    text = str(text)
    text = " ".join((text if most is None else text[: 4 * most]).split())
    return printable(text if most is None else text[:most])


def _shown(character: str) -> str:
    if character in _ALLOWED or character.isprintable():
        return character
    if character in _HIDDEN or unicodedata.category(character) in ("Cc", "Cs"):
        return character.encode("unicode_escape").decode("ascii")
    return character
