"""Whether a text contains an answer, compared as answers are."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..words import MARKS, UNSPACED
from .answers import normalize_answer, to_nfc

_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)|(?<=\d),(?=\d{3}(?!\d))")
_WORD = re.compile(rf"(?:[^\W_][{MARKS}]*)+")
_ARTICLES = frozenset(("a", "an", "the"))
_UNSPACED = re.compile(f"[{UNSPACED}]")


def contains_answer(text: str | None, answers: Iterable[str]) -> bool:
    """
    Whether `text` contains one of `answers` as whole words.

    Both are normalised as the paper normalises answers: lower case, no punctuation, no articles. Punctuation inside `text`
    may also separate words ("France=Paris"), but does not split a number ("3.5", "1,000").

    Args:
        text (`str` or `None`):
            A state, an observation or any other text. `None` contains no answer.
        answers (`Iterable[str]`):
            Accepted answers. An answer that normalises to an empty string ("A", "+") is searched for as it is written.

    Returns:
        `bool`

    Example:

    ```python
    >>> contains_answer("atomic number: 13.", ["3"]), contains_answer("it has 3 moons", ["3"])
    (False, True)
    >>> contains_answer("found so far: capital=The Hague;", ["Hague"])
    True
    ```
    """
    if not text:
        return False
    text = to_nfc(text)
    glued, parted = _padded(normalize_answer(text)), _padded(_parted(text))
    return any(_holds(text, glued, parted, to_nfc(answer)) for answer in answers)


def _holds(text: str, glued: str, parted: str, answer: str) -> bool:
    words = normalize_answer(answer)
    if not words:
        raw = re.escape(answer.strip())
        return bool(raw) and re.search(rf"(?<!\w){raw}(?!\w)", text) is not None
    if _UNSPACED.search(words):
        return _inside(words, glued) or _inside(_parted(answer), parted)
    apart = _parted(answer)
    return _padded(words) in glued or (bool(apart) and _padded(apart) in parted)


def _inside(answer: str, text: str) -> bool:
    """Whether an answer in a script without spaces stands anywhere in a text, but not as a part of a longer number."""
    begin = text.find(answer) if answer else -1
    while begin >= 0:
        end = begin + len(answer)
        goes_on = answer[0].isdigit() and text[max(begin - 1, 0) : begin].isdigit()
        if not goes_on and not (answer[-1].isdigit() and text[end : end + 1].isdigit()):
            return True
        begin = text.find(answer, begin + 1)
    return False


def _parted(text: str) -> str:
    """Lower-case words of `text`, split at spaces and punctuation; numbers are not split."""
    words = _WORD.findall(_DECIMAL_POINT.sub("", text.lower()))
    return " ".join(word for word in words if word not in _ARTICLES)


def _padded(words: str) -> str:
    return f" {words} "
