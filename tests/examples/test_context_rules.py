"""The comparison of context rules runs, and its script of demonstrations uses each rule as it is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.example_modules import EXAMPLES, importing_from


@pytest.fixture
def example():
    with importing_from(EXAMPLES):
        import context_rules

        yield context_rules


def test_scripts_use_the_rules(example):
    items, answers = ["capital of France", "symbol of iron"], ["Paris", "Fe"]
    last = "<answer> Paris; Fe</answer>"
    assert example.script("mem1", items, answers)[-1] == f"<think> symbol of iron: Fe | Paris; Fe</think>{last}"
    assert example.script("full", items, answers)[-1] == f"<think> symbol of iron: Fe</think>{last}"
    assert example.script("compact", items, answers)[2:] == [
        "<think> Paris; Fe</think>",
        f"<think> none</think>{last}",
    ]
    assert example.script("on_demand", items, answers)[2].endswith("<rewrite> Paris; Fe</rewrite>")
    assert [text.split("<")[3].split(">")[0] for text in example.script("fold", items, answers)[:3]] == [
        "branch", "search", "close_branch",
    ]  # fmt: skip


@pytest.mark.slow
def test_it_runs_in_short(example, tmp_path):
    results = example.main(["--short", "--rules", "mem1", "compact", "fold", "--output_dir", str(tmp_path)])
    assert list(results) == ["mem1", "compact", "fold"]
    saved = json.loads((tmp_path / "context_rules.json").read_text())
    assert saved["compact"]["peak_tokens"] == results["compact"]["peak_tokens"] > 0
    assert all(one["steps"] == 1 for one in saved.values())
    assert Path(tmp_path / "context_rules.md").read_text().count("\n") == 5
    assert (tmp_path / "context_rules.png").stat().st_size > 10_000
