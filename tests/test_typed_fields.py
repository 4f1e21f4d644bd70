"""Types of values in words, and which values are of them."""

from __future__ import annotations

from typing import Literal

import pytest

from mem1_trl.typed_fields import described, fits, is_wrong_number


@pytest.mark.parametrize(
    ("value", "hint", "wrong"),
    [
        (3.0, int, True),
        (True, int, True),
        (1, bool, True),
        (1, float, False),
        (True, float, True),
        (3, str | None, True),
        (True, str | None, False),  # a word that a library gives as a boolean
        ("3", int, False),  # no number
        (None, int, False),
    ],
)
def test_a_number_of_another_type(value, hint, wrong):
    assert is_wrong_number(value, hint) is wrong


def test_a_literal_is_one_of_its_values():
    hint = str | Literal[False] | None
    assert fits(False, hint) and fits("a", hint) and not fits(True, hint) and not fits(0, hint)
    assert described(hint) == "text or False or null"
