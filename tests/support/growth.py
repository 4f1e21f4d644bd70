"""Does the time of a call grow with the length of a text, or with its square? Processor time, so a busy machine changes nothing."""

from __future__ import annotations

import gc
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

try:
    from re import _constants, _parser
except ImportError:  # Python 3.10
    import sre_constants as _constants
    import sre_parse as _parser

SIZES = (4_096, 16_384, 65_536, 262_144, 1_048_576)
"""Characters; each four times the one before."""

RATIO = 8.0
"""Four times the text may take so many times as long. Its square would be 16 times."""

TOO_SHORT = 0.01
"""Seconds below which a time says nothing about growth."""

REPEATS = 4

Shape = Callable[[int], str]
"""Makes a text of about so many characters."""


def seconds(call: Callable[[Any], object], text: Any) -> float:
    """Processor time of a call, without that of the garbage collector: it walks all that earlier tests have left, as often as it likes."""
    collects = gc.isenabled()
    gc.disable()
    try:
        began = time.thread_time()
        call(text)
        return time.thread_time() - began
    finally:
        if collects:
            gc.enable()


def growth(call: Callable[[Any], object], shape: Callable[[int], Any], sizes: Iterable[int] = SIZES) -> float:
    """
    The largest factor by which a call takes longer when its text becomes four times as long, 0 if it never takes long.

    It stops at the first factor that is too large: the next length would take minutes.
    """
    worst, before = 0.0, None
    for size in sizes:
        text = shape(size)
        now = seconds(call, text)
        if now >= TOO_SHORT and before is not None:
            ratio = now / before
            if ratio >= RATIO:
                # Once may be chance: the best of as many for both, in turn, since a machine has slow and fast spells
                smaller = shape(size // 4)
                pairs = [(seconds(call, smaller), seconds(call, text)) for _ in range(REPEATS)]
                before = max(min(short for short, _ in pairs), TOO_SHORT / 16)
                ratio = min(now, *(long for _, long in pairs)) / before
            worst = max(worst, ratio)
            if ratio >= RATIO:
                return worst
        before = max(now, TOO_SHORT / 16)
    return worst


def repeated(piece: str, before: str = "", after: str = "") -> Shape:
    """Texts of one piece, many times, between two others that stand once."""
    return lambda size: before + piece * (size // len(piece)) + after


def fragments(pattern: re.Pattern[Any]) -> list[str]:
    """The literal pieces of an expression and an example of each of its classes: what a text must hold to keep it busy."""
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    found: dict[str, None] = {}

    def walk(parsed: Iterable[Any]) -> None:
        run = ""
        for operation, argument in parsed:
            if operation is _constants.LITERAL:
                run += chr(argument)
                continue
            if run:
                found[run] = found[run[0]] = None
                run = ""
            for example in examples(operation, argument):
                found[example] = None
            for inner in parts(argument):
                walk(inner)
        if run:
            found[run] = found[run[0]] = None

    def parts(argument: Any) -> Iterator[Any]:
        if isinstance(argument, _parser.SubPattern):
            yield argument
        elif isinstance(argument, (tuple, list)):
            for one in argument:
                yield from parts(one)

    def examples(operation: Any, argument: Any) -> Iterator[str]:
        if operation is _constants.ANY:
            yield "a"
        elif operation is _constants.IN:
            members = [a for o, a in argument if o in (_constants.LITERAL, _constants.RANGE)]
            yield from (chr(one if isinstance(one, int) else one[0]) for one in members[:3])
            kinds = {_constants.CATEGORY_WORD: "a", _constants.CATEGORY_DIGIT: "0", _constants.CATEGORY_SPACE: " "}
            yield from (kinds.get(a, "-") for o, a in argument if o is _constants.CATEGORY)

    walk(_parser.parse(text, pattern.flags & ~re.UNICODE if isinstance(pattern.pattern, bytes) else pattern.flags))
    return list(dict.fromkeys([*found, " ", "a", "0"]))[:14]


def shapes_for(pattern: re.Pattern[Any]) -> Iterator[tuple[str, Shape]]:
    """Texts that an expression may take long for: each of its pieces, many times, alone, in pairs, after and before another."""
    pieces = fragments(pattern)
    for piece in pieces:
        yield repr(piece), repeated(piece)
    for one, other in itertools.permutations(pieces, 2):
        yield f"{one!r}, then {other!r} many times", repeated(other, before=one)
        yield f"{one + other!r} many times", repeated(one + other)
        yield f"{one!r} many times, then {other!r}", repeated(one, after=other)
