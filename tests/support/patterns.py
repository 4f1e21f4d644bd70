"""All regular expressions of the package, and the text that each takes longest for."""

from __future__ import annotations

import importlib
import pkgutil
import re

from support.growth import seconds, shapes_for

import mem1_trl


def compiled_patterns() -> dict[str, re.Pattern]:
    """All expressions that a module of the package has compiled under a name."""
    found = {}
    for module in pkgutil.walk_packages(mem1_trl.__path__, "mem1_trl."):
        if module.name.endswith("__main__"):
            continue
        try:
            values = vars(importlib.import_module(module.name))
        except ImportError:  # an extra that is not installed
            continue
        for name, value in values.items():
            if isinstance(value, re.Pattern) and value not in found.values():
                found[f"{module.name.removeprefix('mem1_trl.')}.{name}"] = value
    return found


PATTERNS = compiled_patterns()


def applied(pattern: re.Pattern):
    """All that a pattern is used for, on one text."""

    def call(text: str) -> None:
        encoded = text.encode("latin-1", "replace") if isinstance(pattern.pattern, bytes) else text
        pattern.match(encoded)
        pattern.fullmatch(encoded)
        for _ in pattern.finditer(encoded):
            pass

    return call


def most_hostile(pattern: re.Pattern, size: int):
    """Of the texts that are made of the pieces of a pattern, the one that takes longest."""
    call = applied(pattern)
    times = [(seconds(call, shape(size)), what, shape) for what, shape in shapes_for(pattern)]
    return max(times, key=lambda one: one[0])[1:]
