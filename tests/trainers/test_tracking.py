"""Tests of what trackers get: the real packages, offline, read back from what they wrote."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from support.helpers import random_trajectory
from support.trainer_helpers import chat_tokenizer

from mem1_trl import Trajectory
from mem1_trl.trainers.tracking import evenly_spaced, log_trajectories, print_trajectories, turn_rows

SCRIPT = Path(__file__).parents[1] / "scripts" / "report_run.py"


def report(tmp_path: Path, actor_path: str, tracker: str) -> tuple[str, list[list[Trajectory]]]:
    """What a run printed, and its episodes at each step."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100", "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1", "TENSORBOARD_LOGGING_DIR": str(tmp_path / "board"),
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT), actor_path, tracker, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    steps: list[list[Trajectory]] = [[], []]
    for line in (tmp_path / "played.jsonl").read_text().splitlines():
        record = json.loads(line)
        steps[record["step"]].append(Trajectory.from_dict(record))
    assert [len(step) for step in steps] == [4, 4]
    return done.stdout, steps


def texts(trajectories: list[Trajectory]) -> list[str]:
    return [turn.text for trajectory in trajectories for turn in trajectory.turns]


def test_tensorboard_gets_numbers_and_turns(tmp_path, actor_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    printed, steps = report(tmp_path, actor_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "board"), size_guidance={"tensors": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/episode/turns")] == [1, 2]
    turns = [sum(len(t.turns) for t in step) / len(step) for step in steps]
    assert [event.value for event in events.Scalars("train/episode/turns")] == pytest.approx(turns)
    logged = events.Tensors("trajectories/text_summary")
    assert [event.step for event in logged] == [1, 2]
    for event, step in zip(logged, steps):
        text = tensor_util.make_ndarray(event.tensor_proto)[0].decode()
        assert all(f"    {turn.text}" in text for trajectory in (step[0], step[2]) for turn in trajectory.turns)
        assert f"**reward {step[0].reward:g}**" in text

    # On the console: two episodes a step, turn by turn, and not TRL's table of completions
    assert printed.count("episode 1 of 2") == printed.count("episode 2 of 2") == 2
    assert "turn 1 · reads" in printed and "Advantage" not in printed
    shown = [trajectory for step in steps for trajectory in (step[0], step[2])]
    assert printed.count("· ended by") == len(shown) == 4
    assert all(text.strip() in printed for text in texts(shown))


def test_wandb_gets_a_table_of_turns(tmp_path, actor_path):
    pytest.importorskip("wandb")
    _, steps = report(tmp_path, actor_path, "wandb")
    files = sorted(tmp_path.glob("wandb/offline-run-*/files/media/table/trajectories_*.table.json"))
    tables = [json.loads(path.read_text()) for path in files]
    assert len(tables) == 2
    for step in range(2):
        (table,) = [table for table in tables if table["data"][0][0] == step + 1]
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert [row["text"] for row in rows] == texts(steps[step])
        assert [row["reward"] for row in rows] == [t.reward for t in steps[step] for _ in t.turns]
        assert {row["prompt"] for row in rows} <= {"q0?", "abq1?", "ababq2?", "q3?"}
        for row, turn in zip(rows, [turn for t in steps[step] for turn in t.turns]):
            assert row["context_tokens"] == len(turn.prompt_ids) and row["observation"] == (turn.observation or "")


READ_TRACKIO = """
import json
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("mem1")
print(json.dumps({"logs": SQLiteStorage.get_logs("mem1", run), "traces": SQLiteStorage.get_traces("mem1", run)}, default=str))
"""


def test_trackio_gets_a_table_and_traces(tmp_path, actor_path):
    pytest.importorskip("trackio")
    _, steps = report(tmp_path, actor_path, "trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ_TRACKIO], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stored = json.loads(done.stdout.splitlines()[-1])
    tables = [entry["trajectories"]["_value"] for entry in stored["logs"] if "trajectories" in entry]
    assert [[row["text"] for row in table] for table in tables] == [texts(step) for step in steps]
    sample = [trajectory for step in steps for trajectory in (step[0], step[2])]
    traces = stored["traces"]
    assert len(traces) == len(sample)
    spoken = [[m["content"] for m in trace["messages"] if m["role"] == "assistant"] for trace in traces]
    assert sorted(spoken) == sorted([turn.text for turn in trajectory.turns] for trajectory in sample)
    assert sorted(trace["metadata"]["reward"] for trace in traces) == sorted(t.reward for t in sample)


# Without a tracker


def test_a_row_for_each_turn():
    tokenizer = chat_tokenizer()
    trajectories = [random_trajectory(random.Random(seed), num_turns=seed) for seed in (1, 3)]
    rows = turn_rows(trajectories, 7, tokenizer)
    assert [(row["episode"], row["turn"]) for row in rows] == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert {row["step"] for row in rows} == {7}
    assert rows[2]["context_tokens"] == len(trajectories[1].turns[1].prompt_ids)
    assert rows[1]["prompt"] == tokenizer.decode(list(trajectories[1].prompt_ids))


def test_a_sample_is_spread_and_draws_no_random_number():
    items = [random_trajectory(random.Random(seed), num_turns=1) for seed in range(6)]
    state = random.getstate()
    assert evenly_spaced(items, 3) == [items[0], items[2], items[4]]
    assert evenly_spaced(items, None) == evenly_spaced(items, 6) == evenly_spaced(items, 9) == items
    assert evenly_spaced(items, 0) == []
    assert random.getstate() == state


def test_nothing_is_logged_where_nothing_can_hold_it():
    log_trajectories(
        [random_trajectory(random.Random(0), num_turns=1)], 1, ["mlflow", "tensorboard"], chat_tokenizer()
    )


def test_episodes_are_printed_under_their_step():
    out = io.StringIO()
    trajectories = [random_trajectory(random.Random(seed), num_turns=2) for seed in range(2)]
    print_trajectories(trajectories, "eval step 3", chat_tokenizer(), Console(file=out, width=90))
    assert "eval step 3 · episode 1 of 2" in out.getvalue() and "turn 2 · reads" in out.getvalue()
