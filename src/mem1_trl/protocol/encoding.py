"""Text to token ids and back, for text that the package wrote itself."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

_TAG = re.compile(r"</\w+>")

_MOST_BYTES = 4
"""Of one character in UTF-8, each of which may be a token."""


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """Text of token ids."""
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)
    return text


def without_end_token(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """
    A turn's text without the token that ended it. A model may end its turns with another special token than the tokenizer's, as Gemma
    does with `<end_of_turn>`. A tag such as `</think>`, which is a special token of some tokenizers, is none.
    """
    for token in (tokenizer.eos_token, *tokenizer.all_special_tokens):
        if token and text.endswith(token) and (token == tokenizer.eos_token or not _TAG.fullmatch(token)):
            return text.removesuffix(token)
    return text


def tokens_of_span(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], span: tuple[int, int]) -> tuple[int, int]:
    """
    The tokens that hold some characters of their decoded text.

    Sampled tokens need not be those that the text would be encoded to, so they are found by decoding beginnings of `ids`, about
    `2 log2(len(ids))` of them. A token that holds characters of the span and others, as `><` between two tags may be, belongs to it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        ids (`Sequence[int]`):
            Token ids.
        span (`tuple[int, int]`):
            First character, and the one after the last.

    Returns:
        `tuple[int, int]`: Index of the first token, and that after the last.
    """

    def characters(count: int) -> int:
        # What ends inside a character decodes to marks, which would make a longer text out of fewer tokens
        return len(decode(tokenizer, ids[:count]).rstrip("\ufffd"))

    counts = range(len(ids) + 1)
    first = max(bisect_right(counts, span[0], key=characters) - 1, 0)
    return first, max(first, min(bisect_left(counts, span[1], key=characters), len(ids)))


def first_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], most: int) -> list[int]:
    """
    The first token ids of a text, at most so many, that end with a whole character: a letter of Chinese is three bytes, and some tokenizers
    have a token for a byte.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        ids (`Sequence[int]`):
            Token ids of a text.
        most (`int`):
            How many there may be.
    """
    kept = list(ids[:most])
    # The mark of a broken character may also be one of the text; then it stays where more tokens follow
    while kept and (text := decode(tokenizer, kept)).endswith("\ufffd"):
        if decode(tokenizer, ids[: len(kept) + _MOST_BYTES]).startswith(text):
            break
        kept.pop()
    return kept


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text that we wrote: tags are tags, special tokens special."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
