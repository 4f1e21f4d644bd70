"""Texts at which an answer ends, which do not belong to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def text_before(text: str, stops: Sequence[str]) -> str:
    """The text before the first place where one of `stops` begins; all of it if none occurs."""
    found = [place for place in map(text.find, stops) if place >= 0]
    return text[: min(found, default=len(text))]


class UntilStop:
    """
    Tells a text that comes in pieces up to its first stop text.

    What may still become a stop text is held until that is known: with the stop text `"END"`, the pieces `"on"`, `"e E"`, `"N"`, `"ERGY"`
    are told as `"on"`, `"e "`, `"ENERGY"`. However a text is cut into pieces, what is told is [`text_before`].

    Args:
        tell (`Callable[[str], object]`):
            Called with each piece.
        stops (`Sequence[str]`):
            Stop texts, none of them empty.

    Attributes:
        told (`str`):
            What was told so far.
        stopped (`bool`):
            Whether a stop text has come; nothing is told any more.
    """

    def __init__(self, tell: Callable[[str], object], stops: Sequence[str] = ()):
        self.told = ""
        self.stopped = False
        self._tell = tell
        self._stops = stops
        self._held = ""

    def add(self, piece: str) -> None:
        """Take the next piece."""
        if self.stopped:
            return
        self._held += piece
        end = len(text_before(self._held, self._stops))
        sure = min(end, self._may_begin())
        self.stopped = sure == end < len(self._held)
        self._tell_held(sure)

    def finish(self) -> str:
        """Tell what is left, as nothing follows. Returns all that was told."""
        end = len(text_before(self._held, self._stops))
        self.stopped |= end < len(self._held)
        self._tell_held(end)
        self._held = ""
        return self.told

    def _may_begin(self) -> int:
        """The first place at which the text may be the beginning of a stop text that is not complete."""
        longest = max(map(len, self._stops), default=1) - 1
        for place in range(max(len(self._held) - longest, 0), len(self._held)):
            if any(
                len(stop) > len(self._held) - place and stop.startswith(self._held[place:]) for stop in self._stops
            ):
                return place
        return len(self._held)

    def _tell_held(self, count: int) -> None:
        new, self._held = self._held[:count], self._held[count:]
        self.told += new
        if new:
            self._tell(new)
