"""Every expression that meets text of strangers takes time in proportion to it. A new one is found by itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from support.growth import RATIO, growth
from support.patterns import PATTERNS, applied, most_hostile

import mem1_trl

SOURCE = Path(mem1_trl.__file__).parent


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
    # Quadratic is 16, linear 4; half of the way in one of three measurements, since a machine that does other work measures less
    found = (growth(applied(pattern), shape, (2048, 8192)) for _ in range(3 if expected else 1))
    assert any(ratio >= (6.5 if expected else RATIO) for ratio in found) is expected


BUILT = {
    "protocol/untrusted.py:_any_of", "protocol/tag_syntax.py:_opening", "protocol/tool_calls.py:_markup",
    "protocol/call_openings.py:find_call", "evaluation/retention.py:_hint", "rewards/containing.py:_holds",
}  # fmt: skip
"""Functions that build an expression of words: `tests/support/readers.py` lists hostile texts that are read with them."""


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
