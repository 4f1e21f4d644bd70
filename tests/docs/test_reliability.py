"""Tests of scripts/measure_reliability.py: its short form, and that it finds what fails."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.doc_blocks import ROOT

PAGE = ROOT / "docs" / "reliability.md"
SCRIPT = ROOT / "scripts" / "measure_reliability.py"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))


@pytest.mark.slow  # random inputs, growth of everything, threads
def test_the_short_form_holds_and_leaves_the_page_alone():
    page = PAGE.read_bytes()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if " tried, " in line]
    assert len(lines) > 30 and all(" 0 failed" in line for line in lines)
    assert PAGE.read_bytes() == page


def test_a_parser_that_misreads_is_found(scripts, monkeypatch):
    from reliability import turns

    from mem1_trl.protocol import protocol

    assert turns.measure("`Mem1Protocol()`", 50, 0).failed == 0
    real = protocol.parse_tags

    def careless(record, text, *rest):
        return real(record, text.replace("\n", " "), *rest)

    monkeypatch.setattr(protocol, "parse_tags", careless)
    assert turns.measure("`Mem1Protocol()`", 50, 0).failed > 0


def test_a_reader_that_raises_anything_else_is_found(scripts, monkeypatch):
    from reliability import arguments

    assert arguments.measure("int", 50, 0).failed == 0
    monkeypatch.setattr(arguments, "coerce", lambda value, kind: kind(value))
    assert arguments.measure("int", 50, 0).failed > 0


def test_cases_of_a_report_are_counted(scripts):
    from reliability.suites import read_report

    outcome = read_report(
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'><failure message='no'/></testcase>"
        "<testcase name='c'><skipped/></testcase><testcase name='d'><error message='bad'/></testcase></testsuite></testsuites>"
    )
    assert (outcome.tried, outcome.held, outcome.failed, outcome.skipped) == (3, 1, 2, 1)
    assert outcome.failures == ["b: no", "d: bad"]


def test_the_page_says_what_was_counted(scripts):
    from reliability.outcome import Outcome
    from reliability.page import Row, render

    row = Row("growth", "every parser", "pytest a", Outcome(tried=1200, failed=1, skipped=2, failures=["x: slow"]))
    page = render([row], 3, "Python 3", "abc", 4.4)
    assert "| every parser | 1,200 | 1,199 | 1 | 2 | `pytest a` |" in page
    assert "- every parser: x: slow" in page and "seed 3" in page and "`abc`" in page


def test_a_selection_of_no_tests_is_a_failure_and_each_file_is_there(scripts):
    """A file that was moved counted as 0 cases, all of which held."""
    from reliability.suites import SUITES, measure

    for arguments in SUITES.values():
        paths = arguments.partition(" -k")[0].split()
        assert paths and all((ROOT / path).exists() for path in paths), arguments
    for nothing in ("tests/no_such_file.py", "tests/test_words.py -k no_such_test"):
        outcome = measure(nothing)
        assert (outcome.tried, outcome.failed) == (1, 1), outcome
