"""The answer inside a turn, told while the turn is generated."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..protocol.turn_text import thought_tags

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..protocol.protocol import Mem1Protocol

_OPENING = re.compile(r"<([\w.-]+)>")


class AnswerStream:
    """
    Takes the text of one turn in pieces and tells those of its answer.

    With tags an answer is known by its opening: `"<think>a</think><answer>Os"` tells `"Os"`. In brackets and native tool calls it is
    known at the end of the turn only, and told as one piece by [`~AnswerStream.finish`].

    Args:
        protocol ([`Mem1Protocol`]):
            How the agent writes.
        tell (`Callable[[str], object]`):
            Called with each piece.
        opened (`str`, *optional*):
            Tag that the context has opened, in which the turn begins.

    Attributes:
        told (`str`):
            What was told so far.
    """

    def __init__(self, protocol: Mem1Protocol, tell: Callable[[str], object], opened: str | None = None):
        self.told = ""
        self._tell = tell
        self._protocol = protocol
        self._thought = opened
        self._text = ""
        self._begin: int | None = None

    def add(self, piece: str) -> None:
        """Take the next piece of the turn."""
        self._text += piece
        if self._protocol.action_syntax != "tags":
            return
        if self._begin is None:
            self._begin = self._find_answer()
        if self._begin is not None:
            self._tell_more(self._shown(self._text[self._begin :]))

    def finish(self, answer: str) -> str:
        """Tell what is left of the answer. Returns all that was told: the answer, unless another one was begun before it."""
        if answer.startswith(self.told):
            self._tell_more(answer)
        else:
            self._tell_more(f"{self.told}\n{answer}")
        return self.told

    def _find_answer(self) -> int | None:
        """Where the text inside the answer tag begins, as far as is known."""
        begin, thought = 0, self._thought
        if thought is None:
            first = _OPENING.match(self._text.lstrip())
            thought = first[1] if first and first[1] in thought_tags(self._protocol) else None
        if thought is not None:
            begin = self._text.find(f"</{thought}>")
            if begin < 0:
                return None
        opening = f"<{self._protocol.answer_tag}>"
        place = self._text.find(opening, begin)
        before = self._text[begin : max(place, begin)]
        # An action that is still open has the text of its own, `<search>what <answer> means</search>`
        inside = any(f"</{tag[1]}>" not in before[tag.end() :] for tag in _OPENING.finditer(before))
        return None if place < 0 or inside else place + len(opening)

    def _shown(self, inner: str) -> str:
        """The part of an unfinished answer that stays as it is, whatever follows."""
        closing = f"</{self._protocol.answer_tag}>"
        inner = inner.partition(closing)[0]
        place = inner.rfind("<")
        if place >= 0 and closing.startswith(inner[place:]):
            inner = inner[:place]
        return inner.strip()

    def _tell_more(self, text: str) -> None:
        new, self.told = text[len(self.told) :], text
        if new:
            self._tell(new)
