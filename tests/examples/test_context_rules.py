"""The comparison of context rules runs, and its script of demonstrations uses each rule as it is meant."""

from __future__ import annotations

import json

import pytest
from support.example_modules import EXAMPLES, importing_from


@pytest.fixture
def example():
    with importing_from(EXAMPLES, EXAMPLES / "multi_objective"):
        import context_rules

        yield context_rules


@pytest.fixture
def page(example):
    import context_rules_page

    return context_rules_page


def test_scripts_use_the_rules(example):
    questions, values = ["bamiko home", "lorune food", "tisa song"], ["tarel", "ossun", "kedash"]
    first = "<think> / bamiko home </think>"
    second = "<think> bamiko home tarel | tarel / bamiko home lorune food </think>"
    third = "<think> lorune food ossun | tarel ossun / lorune food tisa song </think>"
    last = "<think> tisa song kedash | tarel ossun kedash / tisa song . </think> <answer> tarel ; ossun ; kedash </answer>"
    searches = [f"<search> {question} </search>" for question in questions]
    plain = [f"{first} {searches[0]}", f"{second} {searches[1]}", f"{third} {searches[2]}", last]
    assert all(example.script(rule, questions, values) == plain for rule in ("mem1", "full", "truncate", "external"))
    assert example.script("compact", questions, values) == [*plain[:2], third, *plain[2:]]
    rewritten = f"{third} <rewrite> tarel ossun </rewrite>"
    assert example.script("on_demand", questions, values) == [*plain[:2], rewritten, *plain[2:]]
    folded = example.script("fold", questions, values)
    assert len(folded) == 10 and folded[-1] == last
    assert folded[3:6] == [
        f"{second} <branch> lorune food </branch>",
        f"<think> / lorune food </think> {searches[1]}",
        "<think> lorune food ossun </think> <close_branch> ossun </close_branch>",
    ]


def test_a_rule_that_loses_says_why(page):
    def of(right, interval, **ends):
        shares = {f"stop_reason/{end}": share for end, share in ends.items()}
        return {"tested": {"4": {page.REWARD: right, "interval": interval, **shares}}}

    rules = {
        "mem1": of(0.9, [0.8, 1.0], answer=1.0),
        "truncate": of(0.75, [0.6, 0.85], answer=0.9, truncated=0.1),  # its interval reaches that of the best
        "full": of(0.2, [0.1, 0.3], answer=0.25, context_overflow=0.7, truncated=0.05),
    }
    rules["compact"] = of(0.5, [0.4, 0.6], answer=1.0)
    rules["compact"]["tested"]["4"]["summary_lost_answers"] = 1.25
    assert page.reasons(rules, "4", {"window": 600, "completion": 48}).splitlines() == [
        "- `full` (0.20, `mem1` 0.90): in 70% of its episodes the next context exceeds the window of 600 tokens; in 5% of its episodes "
        "a turn is cut at 48 tokens; 25% end with an answer, of which 80% is right.",
        "- `compact` (0.50, `mem1` 0.90): 100% end with an answer, of which 50% is right; summaries lose 1.2 answers that had been found.",
    ]
    only = {"mem1": rules["mem1"], "truncate": rules["truncate"]}
    assert page.reasons(only, "4", {}).startswith("No rule is clearly below the best")


@pytest.mark.slow
def test_it_runs_in_short_and_goes_on_where_it_stopped(example, tmp_path):
    first = example.main(["--short", "--rules", "compact", "--output_dir", str(tmp_path)])
    both = example.main(["--short", "--rules", "mem1", "compact", "--output_dir", str(tmp_path)])
    assert list(both) == ["mem1", "compact"] and both["compact"] == first["compact"]
    saved = json.loads((tmp_path / "results.json").read_text())["rules"]
    assert saved["mem1"]["tested"]["4"]["peak_tokens"] == both["mem1"]["tested"]["4"]["peak_tokens"] > 0
    assert all(one["steps"] == 1 and one["tokens"] > 0 for one in saved.values())
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.count("| `mem1` |") == 3 and "## 2 questions, as in training" in text
    assert (tmp_path / "context_rules.png").stat().st_size > 10_000
