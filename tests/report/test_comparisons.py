"""Agents of a run against one of them: what the page says is what `compare` finds."""

from __future__ import annotations

import re

import pytest

from mem1_trl import StopReason, Trajectory, Turn
from mem1_trl.cli.main import main
from mem1_trl.evaluation import EvaluatedTask, Evaluation, compare
from mem1_trl.report import report


def save(place, agent, scores, seed, tasks=None):
    tasks = tasks or [f"seed {seed}, task {i}" for i in range(len(scores))]
    found = Evaluation.from_tasks(
        [
            EvaluatedTask(
                i,
                {"prompt": prompt, "answers": [["a"], ["b"]]},
                prompt,
                Trajectory((Turn((1,), (2,)),), stop_reason=StopReason.ANSWER),
                {"exact_match_per_objective": float(score)},
            )
            for i, (prompt, score) in enumerate(zip(tasks, scores))
        ],
        agent=agent,
    )
    found.save(place / f"{agent}-{seed}" / "evaluation", "2")
    return found


@pytest.fixture
def run(tmp_path):
    before = [save(tmp_path, "before <RL>", [0, 1, 0, 0], seed) for seed in range(2)]
    after = [save(tmp_path, "after", [1, 1, 1, seed], seed) for seed in range(2)]
    save(tmp_path, "elsewhere", [1, 1], 0, ["another", "task"])
    return tmp_path, before, after


def test_the_page_shows_what_compare_finds(run):
    place, before, after = run
    page = report(place, baseline="before <RL>").read_text()
    table = re.search(r'<table id="comparison-table">.*?</table>', page, re.DOTALL)[0]
    found = compare(after, before)
    assert found.by_seed == (0.5, 0.75) and found.is_clear
    row = re.search(r"<tr><th scope=\"row\">after, 2 objectives</th>.*?</tr>", table)[0]
    assert f"<td>{found.a:.3f}</td><td>{found.b:.3f}</td>" in row
    assert f'<td class="clear">{found.difference:+.3f}<small>{found.low:+.3f} – {found.high:+.3f}</small></td>' in row
    assert "<td>5 / 0 of 8<small>+0.500, +0.750</small></td>" in row
    assert 'elsewhere, 2 objectives</th><td colspan="5">not evaluated on the same tasks' in table
    assert "before &lt;RL&gt;" in table and "before <RL>" not in page


def test_without_a_baseline_nothing_is_compared(run):
    assert "comparison-table" not in report(run[0]).read_text()


def test_a_baseline_that_is_not_there_is_said_before_anything_is_written(run, capsys):
    with pytest.raises(ValueError, match="did you mean 'after'"):
        report(run[0], baseline="aftr")
    assert main(["report", str(run[0]), "--baseline", "zzz"]) != 0
    assert "baseline='zzz' must be an agent of the run: there are" in capsys.readouterr().err
    assert not (run[0] / "report").exists()
