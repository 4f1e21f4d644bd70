"""The tiny model that ships with the quickstart is what it is said to be."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from support.example_modules import EXAMPLES, importing_from

from mem1_trl import Mem1Agent, compose_objectives
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation import evaluate_agent
from mem1_trl.facts import KEYWORDS, load_facts

ASSET = Path(__file__).parents[2] / "examples" / "assets" / "tiny-mem1"


def test_asset_is_small():
    assert sum(path.stat().st_size for path in ASSET.iterdir()) < 5_000_000


def test_any_text_survives_the_tokenizer():
    tokenizer = Mem1Agent.from_pretrained(str(ASSET)).tokenizer
    for text in ("Zoë ate 12 naïve 🥐s.\n\t<b>", "<think> a</think><search> b</search>", "東京"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    for tag in ("think", "search", "information", "answer"):
        assert len(tokenizer(f"<{tag}>", add_special_tokens=False)["input_ids"]) == 1
        assert f"<{tag}>" not in tokenizer.all_special_tokens


def test_warm_model_acts_in_the_format_and_finds_facts_about_entities_it_never_saw():
    facts = load_facts()
    known = facts.questions("test").filter(lambda row: row["relation"] in KEYWORDS)
    tasks = compose_objectives(known, n=1, question="keywords", seed=0).select(range(32))
    agent = Mem1Agent.from_pretrained(
        str(ASSET), model_init_kwargs={"dtype": torch.float32}, max_completion_length=96, max_observation_length=200
    )
    metrics = evaluate_agent(agent, tasks, RetrievalQAEnvironment.factory(facts.corpus, top_k=1)).metrics
    assert metrics["valid_action_rate"] > 0.9
    report = json.loads((ASSET / "warm_start.json").read_text())
    (row,) = [r for r in report["held_out_entities"] if r["objectives"] == 1 and r["temperature"] == 0.0]
    assert abs(metrics["exact_match"] - row["exact_match"]) < 0.25, "the recorded figure is of another model"


def test_the_table_has_one_line_for_each_row_in_a_terminal_of_80_columns(monkeypatch):
    """With the figures of the recorded run, whose attention pairs have five digits."""
    recorded = json.loads((ASSET.parents[2] / "docs" / "quickstart" / "results.json").read_text())
    with importing_from(EXAMPLES):
        quickstart = importlib.import_module("quickstart")
        console = Console(width=80, file=io.StringIO())
        monkeypatch.setattr(quickstart, "console", console)
        before, after = (
            {n: SimpleNamespace(metrics=metrics) for n, metrics in recorded[when].items()}
            for when in ("before", "after")
        )
        quickstart.show_table(before, after, recorded["eval_tasks"])
    title, *heads, one, two, four, eight = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert title.strip() == "Held-out entities, 100 tasks each, greedy decoding: before RL → after RL"
    assert " ".join(heads[-1].split()) == "objectives objective objective actions peak tokens dependency"
    assert eight.split()[0] == "8" and eight.endswith("14,350 → 52,363")
    assert [row.count("→") for row in (one, two, four, eight)] == [5] * 4
