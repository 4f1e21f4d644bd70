"""Every expression that meets text of strangers takes time in proportion to it. A new one is found by itself."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from support.growth import RATIO, growth, seconds, shapes_for

import mem1_trl

SOURCE = Path(mem1_trl.__file__).parent


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


@pytest.mark.parametrize("name", PATTERNS)
def test_the_time_of_a_pattern_grows_with_the_text(name):
    what, shape = most_hostile(PATTERNS[name], 4096)
    assert growth(applied(PATTERNS[name]), shape) < RATIO, f"{PATTERNS[name].pattern!r} on {what}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<\s*/?\s*a", True),
        (r"<t>(.*?)</t>", True),
        (r"\s+$", True),
        (r"<\s*+/?+\s*+a", False),
        (r"<[^<>]{1,40}>", False),
    ],
)
def test_a_pattern_of_quadratic_time_is_found(text, expected):
    pattern = re.compile(text, re.DOTALL)
    _, shape = most_hostile(pattern, 512)
    # Quadratic is 16, linear 4; half of the way, since a machine that does other work measures less
    assert (growth(applied(pattern), shape, (2048, 8192)) >= (6.5 if expected else RATIO)) is expected


BUILT = {
    "protocol/untrusted.py:_controls", "protocol/tag_syntax.py:_opening", "protocol/tool_calls.py:_markup",
    "protocol/tool_calls.py:_begins_call", "evaluation/retention.py:_hint", "evaluation/retention.py:_holds",
    "protocol/untrusted.py:clean_reply",
}  # fmt: skip
"""Functions that build an expression of words: `tests/house/test_parser_growth.py` reads hostile texts with them."""


def test_no_expression_is_hidden_in_a_function():
    """Where it has a name, the test above finds it; what is built of words must be listed, and tested by hand."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                names = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                used = {n.attr for n in names if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "re"}
                if used - {"escape"}:
                    found.add(f"{path.relative_to(SOURCE).as_posix()}:{function.name}")
    assert found == BUILT
