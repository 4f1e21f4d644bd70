"""`answers` of a data set that is formatted: refused only where a row shows them as something that no answer is compared with."""

from __future__ import annotations

import pytest
from datasets import Dataset

from mem1_trl.trainers.checks import check_answers

ROWS = {"prompt": ["a", "b", "c"], "answers": [None, [["5"], ["six", "6"]], [["7"], ["8"]]], "number": [1, 2, 3]}


def rows(**columns):
    return Dataset.from_dict({**ROWS, **columns})


@pytest.mark.parametrize(
    "dataset",
    [
        rows().with_format("torch"),
        rows(answers=[["5"], ["6"], None]).with_format("torch"),
        rows().with_format("python"),
        rows().with_format("numpy", columns=["number"], output_all_columns=True),
        rows().with_format("numpy", columns=["number"]),
        rows(answers=[None] * 3).with_format("numpy"),
        rows().with_transform(lambda batch: batch),
    ],
)
def test_answers_that_stay_lists_are_taken_in_any_format(caplog, dataset):
    """The format was judged by its name, although texts stay lists in that of torch."""
    check_answers("set", dataset, needed=True)
    check_answers("set", dataset, needed=False)
    assert caplog.text == ""


@pytest.mark.parametrize("format", ["numpy", "pandas", "arrow"])
def test_answers_that_become_arrays_are_said(caplog, format):
    words = rf"^The set gives its `answers` as arrays, since it is formatted as '{format}': pass `dataset.with_format\(None\)`"
    with pytest.raises(ValueError, match=words):
        check_answers("set", rows().with_format(format), needed=True)
    check_answers("set", rows().with_format(format), needed=False)
    assert "no metric compares answers with them" in caplog.text and len(caplog.records) == 1
