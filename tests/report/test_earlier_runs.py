"""A run that began again in its folder: what the earlier one left there is not taken for its own."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mem1_trl.report import report
from mem1_trl.report.earlier_runs import left_out
from mem1_trl.report.run_directory import RunDirectory, read_run

SENTENCE = "What an earlier run left in this folder is not shown."


def write(path: Path, content: dict[str, Any], time: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    os.utime(path, (time, time))


def checkpoint(root: Path, rewards: list[float], time: float, evaluated: dict[int, float] | None = None) -> None:
    """A checkpoint after as many steps as there are rewards, with the successes that evaluations logged by their step."""
    history = []
    for step, reward in enumerate(rewards, start=1):
        history.append({"step": step, "reward": reward})
        if step in (evaluated or {}):
            history.append({"step": step, "eval_episode/success": evaluated[step]})
    state = {"global_step": len(rewards), "log_history": history}
    write(root / f"checkpoint-{len(rewards)}" / "trainer_state.json", state, time)


def evaluation(root: Path, step: int, success: float, time: float, data: str = "", **settings: Any) -> None:
    name = f"eval_{data}-{step}" if data else f"eval-{step}"
    metrics = {"success": {"mean": success, "low": success, "high": success}}
    whole = {"format": 1, "name": name, "agent": f"step {step}", "objectives": 1, "count": 4, "metrics": metrics}
    write(root / "evaluation" / f"{name}.json", {**whole, "settings": {"step": step, **settings}}, time)


def curve(run: RunDirectory) -> list[tuple[int, float]]:
    """Steps and successes of the only series."""
    (series,) = run.series
    return [(step, found["mean"]) for step, found in series.curve("success")]


def rewards(run: RunDirectory) -> list[float]:
    """What the only log shows."""
    (log,) = run.logs
    return log.series("reward")[1]


def one_run(root: Path, times: list[float]) -> None:
    """Four steps of a run with its evaluations, written at these times; the last was made after the last checkpoint."""
    evaluated = {step: step / 10 for step in (1, 2, 3)}
    checkpoint(root, [1.0, 1.1], times[0], evaluated)
    checkpoint(root, [1.0, 1.1, 1.2], times[1], evaluated)
    for step, time in zip((1, 2, 3, 4), times[2:]):
        evaluation(root, step, step / 10, time)


WHOLE = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]


@pytest.mark.parametrize(
    "times",
    [
        pytest.param([20, 30, 10, 20, 30, 40], id="as it was written"),
        pytest.param([900, 100, 700, 500, 300, 950], id="copied in another order"),
        pytest.param([3, 1, 4, 2, 1, 0], id="copied in a moment"),
    ],
)
def test_the_files_of_one_run_are_all_shown(tmp_path, times):
    one_run(tmp_path, times)
    run = read_run(tmp_path)
    assert curve(run) == WHOLE and rewards(run) == [1.0, 1.1, 1.2]
    assert run.with_earlier == [] and SENTENCE not in report(tmp_path).read_text()


def test_a_shorter_run_is_not_continued_by_the_one_before_it(tmp_path):
    one_run(tmp_path, [20, 30, 10, 20, 30, 40])
    checkpoint(tmp_path, [0.0, 0.0], 120, {1: 0.7, 2: 0.8})
    evaluation(tmp_path, 1, 0.7, 110)
    evaluation(tmp_path, 2, 0.8, 120)
    run = read_run(tmp_path)
    assert curve(run) == [(1, 0.7), (2, 0.8)] and rewards(run) == [0.0, 0.0]
    assert run.agents == ["step 1", "step 2", "training"] and run.with_earlier == ["."]
    text = html.unescape(report(tmp_path).read_text())
    assert text.count(SENTENCE) == 1 and "evaluation: 1: 0.7, 2: 0.8." in text and "step 4" not in text


def test_a_log_is_told_from_another_by_what_it_holds(tmp_path):
    """Two runs at the same moment, as far as the clock of a file system goes."""
    checkpoint(tmp_path, [1.0] * 4, 10.0)
    checkpoint(tmp_path, [0.0] * 2, 10.5)
    assert rewards(read_run(tmp_path)) == [0.0, 0.0]


def test_a_run_without_a_checkpoint_yet_has_no_log_of_the_one_before_it(tmp_path):
    one_run(tmp_path, [20, 30, 10, 20, 30, 40])
    for step in (1, 2):
        evaluation(tmp_path, step, 0.9, 100.0 + step)
    run = read_run(tmp_path)
    assert curve(run) == [(1, 0.9), (2, 0.9)] and run.logs == [] and run.with_earlier == ["."]


def test_a_resumed_run_keeps_what_was_before_its_checkpoint(tmp_path):
    for step in (1, 2, 3, 4, 5):
        evaluation(tmp_path, step, step / 10, 10.0 * step)
    checkpoint(tmp_path, [1.0, 1.1], 20, {1: 0.1, 2: 0.2})
    checkpoint(tmp_path, [1.0, 1.1, 1.2, 1.3, 1.4], 50, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5})
    for number in (1, 2):  # before the next checkpoint, and after it
        evaluation(tmp_path, 2 + number, 0.9, 100.0 + 10 * number)
        run = read_run(tmp_path)
        assert curve(run) == [(1, 0.1), (2, 0.2), (3, 0.9), (4, 0.9)][: 2 + number]
        assert rewards(run) == [1.0, 1.1, 5.0, 5.0][: 2 if number == 1 else 4] and run.with_earlier == ["."]
        checkpoint(tmp_path, [1.0, 1.1, 5.0, 5.0], 121, {1: 0.1, 2: 0.2, 3: 0.9, 4: 0.9})


def test_the_later_of_two_runs_of_equal_length_is_shown(tmp_path):
    write(tmp_path / "trainer_state.json", {"global_step": 1, "log_history": [{"step": 1, "reward": 1.0}]}, 10)
    checkpoint(tmp_path, [0.0], 100)
    assert rewards(read_run(tmp_path)) == [0.0]


def test_evaluations_with_other_settings_are_of_another_run(tmp_path):
    """The earlier run evaluated more often, at first before the newer one did."""
    for step in (5, 10, 15):
        evaluation(tmp_path, step, 0.1, step, max_turns=3, seed=1, model="a")
    for step in (10, 20, 30):
        evaluation(tmp_path, step, 0.2, 100 + step, max_turns=4, seed=2, model="b", new=1)
    run = read_run(tmp_path)
    assert curve(run) == [(10, 0.2), (20, 0.2), (30, 0.2)] and run.with_earlier == ["."]
    for step in (10, 20):  # the seed, the name of the model and a setting that is new tell nothing
        evaluation(tmp_path, step, 0.3, 50 + step, max_turns=4, seed=1, model="a")
    assert curve(read_run(tmp_path)) == [(10, 0.3), (20, 0.3), (30, 0.2)]


def test_an_evaluation_before_the_first_step_is_no_new_run(tmp_path):
    one_run(tmp_path, [20, 30, 10, 20, 30, 40])
    evaluation(tmp_path, 0, 0.0, 1000)
    run = read_run(tmp_path)
    assert curve(run) == [(0, 0.0), *WHOLE] and rewards(run) == [1.0, 1.1, 1.2] and run.with_earlier == []


def test_evaluations_on_several_data_sets_begin_again_together(tmp_path):
    for step in (1, 2, 3):
        evaluation(tmp_path, step, 0.1, step, "easy")
        evaluation(tmp_path, step, 0.2, step + 0.5, "hard")
    for step in (1, 2):
        evaluation(tmp_path, step, 0.8, 100.0 * step, "easy")
        evaluation(tmp_path, step, 0.9, 100.0 * step + 20, "hard")
    found = {one.data: [(step, m["mean"]) for step, m in one.curve("success")] for one in read_run(tmp_path).series}
    assert found == {"easy": [(1, 0.8), (2, 0.8)], "hard": [(1, 0.9), (2, 0.9)]}


def test_the_folders_with_an_earlier_run_are_named(tmp_path):
    for name in ("a", "b", "c"):
        checkpoint(tmp_path / name, [1.0] * 4, 10)
        if name != "b":
            checkpoint(tmp_path / name, [0.0] * 2, 100)
    run = read_run(tmp_path)
    assert run.with_earlier == ["a", "c"]
    assert [log.series("reward")[1] for log in run.logs] == [[0.0] * 2, [1.0] * 4, [0.0] * 2]
    assert left_out(run.with_earlier) == "What an earlier run left in a, c is not shown." and left_out([]) == ""


def test_an_evaluation_on_data_with_a_slash_in_its_name_is_known_by_the_log(tmp_path):
    """Files have a dash there: the log did not know them, and the times of the files decided."""
    history = []
    for step in (2, 4):
        evaluation(tmp_path, step, step / 10, 100.0 * (6 - step), "hotpot-dev")  # written in another order
        history.append({"step": step, "eval_hotpot/dev_episode/success": step / 10, "eval_hotpot/dev_reward": 0.0})
    write(tmp_path / "checkpoint-4" / "trainer_state.json", {"global_step": 4, "log_history": history}, 1.0)
    run = read_run(tmp_path)
    assert curve(run) == [(2, 0.2), (4, 0.4)] and run.with_earlier == [] and len(run.logs) == 1
