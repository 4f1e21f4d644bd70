"""Time of every expression and every parser: does it grow with the length of a text, or with its square?"""

from __future__ import annotations

import random
from collections.abc import Callable

from support.growth import RATIO, SIZES, growth
from support.patterns import PATTERNS, applied, most_hostile
from support.readers import PIECES, READERS

from .outcome import Outcome, holds

MIXTURES = 5
"""Texts of pieces at random for each parser, besides those that are listed."""


def measure_patterns(sizes: tuple[int, ...] = SIZES) -> Outcome:
    """Each expression of the package on the text, made of its pieces, that it takes longest for."""
    outcome = Outcome()
    for name, pattern in PATTERNS.items():
        with outcome.case(name):
            what, shape = most_hostile(pattern, 4096)
            ratio = growth(applied(pattern), shape, sizes)
            holds(ratio < RATIO, f"{ratio:.1f} times as long on {what}")
    return outcome


def measure_parsers(seed: int, sizes: tuple[int, ...] = SIZES) -> Outcome:
    """Each reader on the texts that are listed for it, and on pieces of them at random."""
    outcome = Outcome()
    for what, reader in READERS.items():
        shapes = reader.shapes | {
            f"mixture {n} of seed {seed}": mixture(f"{what} {n} {seed}") for n in range(MIXTURES)
        }
        for name, shape in shapes.items():
            with outcome.case(f"{what} on {name}"):
                allowed = [size for size in reader.sizes if size <= sizes[-1]]
                ratio = growth(reader.call, shape, allowed)
                holds(ratio < RATIO, f"{ratio:.1f} times as long")
    return outcome


def mixture(seed: str) -> Callable[[int], str]:
    """A text of a random short piece, many times, between two others; the same for a seed."""
    luck = random.Random(seed)
    begin, piece, end = ("".join(luck.choice(list(PIECES.values()))(16)[:24] for _ in range(n)) for n in (1, 2, 1))
    return lambda size: begin + piece * (size // max(len(piece), 1)) + end
