"""Tests of the text that an agent reads of a result."""

from __future__ import annotations

import threading

import pytest

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.actions import run_calls
from mem1_trl.environment_runtime.pool import EnvironmentPool

BLOCKS = [{"type": "text", "text": "a page"}, {"type": "text", "text": " of text"}]


class Plain:
    """Has no text of its own."""


@pytest.mark.parametrize(
    "value",
    [Plain(), (n for n in ()), map(str, ()), threading.Lock(), lambda: None, pytest.param(iter([1]), id="iterator")],
)
def test_a_value_without_a_text_is_an_error_and_not_its_place_in_memory(value):
    (result,) = run_calls([(lambda: value, {})])
    assert result.failed and result.error.startswith(
        "TypeError: an action must return text, or a value that `str` makes one of"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (BLOCKS, "a page of text"),
        ([], "[]"),
        ([{"type": "cat", "text": "x"}], "[{'type': 'cat', 'text': 'x'}]"),
        (memoryview(b"abc"), "abc"),
        ({"frame": "<main at 0x7f00>"}, "{'frame': '<main at 0x7f00>'}"),
        pytest.param(f"<object at {id(BLOCKS):#x}>", f"<object at {id(BLOCKS):#x}>", id="a text that looks like one"),
    ],
)
def test_any_other_value_is_shown(value, text):
    (result,) = run_calls([(lambda: value, {})])
    assert result.text == text and not result.failed


def test_blocks_that_are_no_text_are_refused():
    (result,) = run_calls([(lambda: [*BLOCKS, {"type": "image", "image": "x"}], {})])
    assert result.text.endswith("got a block of type 'image': images and other media are not supported.")
    assert result.failed and result.error.startswith("TypeError: ")


@pytest.mark.parametrize("image", [False, True])
def test_an_observation_of_reset_may_come_in_text_blocks(image):
    class Page:
        def reset(self, **row):
            return [*BLOCKS, {"type": "image", "image": "x"}] if image else BLOCKS

    pool = EnvironmentPool(Page, Mem1Protocol())
    (started,) = pool.start([{}])
    pool.close()
    if image:
        assert "images and other media are not supported" in str(started.error)
    else:
        assert started.observation == "a page of text" and started.error is None
