"""The text of a turn, told piece by piece while it is generated, whichever backend generates it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol.encoding import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerBase

_LONGEST_WINDOW = 64  # tokens that are decoded again for each new one
_OVERLAP = 8


class TurnListener:
    """
    Turns the tokens of one turn, as they are sampled, into pieces of text.

    What is told is never taken back: a character that is not complete is held until it is. The pieces of a turn, one after the other,
    are its `text`.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the tokens.
        tell (`Callable[[str], object]`):
            Called with each piece, in the thread that generates. If it raises, the turn is not generated further.

    Attributes:
        told (`str`):
            What was told so far.
        error (`BaseException` or `None`):
            What `tell` raised; nothing is told any more.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tell: Callable[[str], object]):
        self.told = ""
        self.error: BaseException | None = None
        self._tokenizer = tokenizer
        self._tell = tell
        self._ids: list[int] = []
        self._begin = 0  # first token of those that are decoded
        self._known = ""  # their text as far as it was told

    def read_ids(self, ids: Sequence[int]) -> bool:
        """Take all token ids of the turn so far. Returns whether to go on."""
        if self.error is not None:
            return False
        if list(ids[: len(self._ids)]) != self._ids:
            if len(ids) >= len(self._ids):
                self.error = RuntimeError("The turn was generated again, with other tokens than those that were told.")
                return False
            return True  # generated again, and not yet as far
        self._ids = list(ids)
        text = decode(self._tokenizer, self._ids[self._begin :])
        if text.endswith("\ufffd") or not text.startswith(self._known):
            return True
        new, self._known = text[len(self._known) :], text
        if len(self._ids) - self._begin > _LONGEST_WINDOW:
            self._begin = len(self._ids) - _OVERLAP
            self._known = decode(self._tokenizer, self._ids[self._begin :])
        return self.add_text(new)

    def add_text(self, text: str) -> bool:
        """Tell a piece. Returns whether to go on."""
        if self.error is None and text:
            self.told += text
            try:
                self._tell(text)
            except BaseException as error:
                self.error = error
        return self.error is None

    def extend_to(self, text: str) -> bool:
        """Tell what a text has more than what was told. Returns whether to go on."""
        return self.add_text(text[len(self.told) :] if text.startswith(self.told) else "")
