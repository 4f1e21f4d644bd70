"""Texts until their first stop text, told in pieces."""

from __future__ import annotations

import random

import pytest

from mem1_trl.wire.stop_texts import UntilStop, text_before


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", (), "one two"),
        ("one two", ("three",), "one two"),
        ("one two", ("two", "e t"), "on"),
        ("abcd", ("c", "bcd"), "a"),  # the first place, not the first that is complete
        ("STOP", ("STOP",), ""),
    ],
)
def test_the_text_before_the_first(text, stops, expected):
    assert text_before(text, stops) == expected


def test_what_may_become_a_stop_text_is_held_until_that_is_known():
    sent, after = [], []
    until = UntilStop(sent.append, ("END", "\n\n"))
    for piece in ("on", "e E", "N", "ERGY", "\n", "two EN", "D three", "four"):
        until.add(piece)
        after.append("".join(sent))
    assert sent == ["on", "e ", "ENERGY", "\ntwo "]
    assert after == ["on", "one ", "one ", "one ENERGY", "one ENERGY", *["one ENERGY\ntwo "] * 3]
    assert until.stopped and until.finish() == "one ENERGY\ntwo "


def test_what_is_held_at_the_end_belongs_to_the_text():
    sent = []
    until = UntilStop(sent.append, ("END",))
    until.add("the EN")
    assert sent == ["the "]
    assert (until.finish(), until.stopped, sent) == ("the EN", False, ["the ", "EN"])
    until = UntilStop(sent.append, ("abcd", "c"))
    until.add("xabc")  # "c" has come, and "abcd" may have begun before it
    assert (until.told, until.stopped) == ("x", False)
    assert (until.finish(), until.stopped) == ("xab", True)


def test_pieces_do_not_matter():
    chance = random.Random(0)
    letters = lambda least, most: "".join(chance.choices("ab", k=chance.randint(least, most)))  # noqa: E731
    seen = 0
    for _ in range(2000):
        text, stops = letters(0, 12), tuple(letters(1, 5) for _ in range(chance.randint(0, 4)))
        sent: list[str] = []
        until, place = UntilStop(sent.append, stops), 0
        while place < len(text):
            size = chance.randint(1, 4)
            until.add(text[place : place + size])
            place += size
        assert until.finish() == "".join(sent) == text_before(text, stops)
        assert until.stopped == (text_before(text, stops) != text)
        seen += until.stopped
    assert 500 < seen < 1900
