"""
The words of a text that BM25 compares, in any language.

Texts are brought to Unicode's form NFKC and to one case first: "é" may be one character or two, "Ｆｅ" as wide as a Chinese character, "ﬁ"
one letter, and whoever searches cannot know. (Answers are compared in NFC, which takes no letter for another: "x²" is not "x2" there.)

Chinese, Japanese, Thai, Lao, Khmer and Burmese write no spaces between words, and Korean attaches particles. Such a run becomes its
pairs of neighbouring characters, as in Lucene's CJK analyzer: 元素記号 becomes 元素, 素記 and 記号. A Chinese character is also a word of
its own, so that 鉄 is found in 鉄の記号. A query of several characters asks for their pairs alone, since the single ones are everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

WORD = re.compile(r"\w+")
"""Single characters are words, too: else the element symbol "C" and the number 7 are lost."""

_HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNSPACED = (
    f"{_HAN}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uac00-\ud7af"
)
"""The characters, as a class of an expression has them, of scripts without spaces between words, and of Korean."""


def _marks() -> str:
    """Characters that belong to the letter before, as accents and the vowel signs of Indian scripts do. `\\w` leaves them out."""
    marks = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    ends = [code for code, following in zip(marks, [*marks[1:], 0]) if following != code + 1]
    starts = [marks[0], *(following for code, following in pairwise(marks) if following != code + 1)]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends))


MARKS = _marks()
"""Those characters, as a class of an expression has them."""

_CHARACTER = re.compile(rf"[{UNSPACED}][{MARKS}]*")
_RUN = re.compile(rf"((?:[{UNSPACED}][{MARKS}]*)+)|(?:[^\W{UNSPACED}][{MARKS}]*)+")
_IS_HAN = re.compile(rf"[{_HAN}]")


def fold(text: str) -> str:
    """The text in Unicode's form NFKC and in one case."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def words_of_passage(text: str) -> list[str]:
    """
    The words that a passage is found by, in their order; a repeated word is repeated.

    Example:

    ```python
    >>> words_of_passage("Fe は鉄")
    ['fe', 'は鉄', '鉄']
    ```
    """
    return _words(text, single=True)


def words_of_query(text: str) -> list[str]:
    """The words that a query asks for."""
    return _words(text, single=False)


def _words(text: str, single: bool) -> list[str]:
    text = fold(text)
    if text.isascii():
        return WORD.findall(text)
    words = []
    for run in _RUN.finditer(text):
        if run[1] is None:
            words.append(run[0])
            continue
        characters = _CHARACTER.findall(run[0])
        if len(characters) == 1:
            words += characters
            continue
        words += [first + second for first, second in pairwise(characters)]
        if single:
            words += [character for character in characters if _IS_HAN.match(character)]
    return words
