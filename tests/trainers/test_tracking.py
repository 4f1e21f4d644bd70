"""Tests of what trackers get: the real packages, offline, read back from what they wrote."""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console
from support.helpers import random_trajectory
from support.trainer_helpers import chat_tokenizer

from mem1_trl import StopReason, Trajectory
from mem1_trl.trainers.tracking import evenly_spaced, log_trajectories, print_trajectories, turn_rows

SCRIPTS = Path(__file__).parents[1] / "scripts"
TRACKERS = [name for name in ("tensorboard", "wandb", "trackio") if find_spec(name) is not None]


@dataclass
class Reported:
    """
    A run that reported to all installed trackers.

    Attributes:
        directory: Where they wrote.
        environment: Variables that say so.
        printed: The run's standard output.
        steps: Its episodes at each step.
    """

    directory: Path
    environment: dict[str, str]
    printed: str
    steps: list[list[Trajectory]]


@pytest.fixture(scope="module")
def reported(tmp_path_factory, actor_path, fork_server) -> Reported:
    directory = tmp_path_factory.mktemp("reported")
    environment = {
        "COLUMNS": "100", "WANDB_MODE": "offline", "WANDB_DIR": str(directory), "WANDB_SILENT": "true",
        "TENSORBOARD_LOGGING_DIR": str(directory / "board"),
    }  # fmt: skip
    done = fork_server.run(
        SCRIPTS / "report_run.py", actor_path, ",".join(TRACKERS), directory, environment=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps: list[list[Trajectory]] = [[], []]
    for line in (directory / "played.jsonl").read_text().splitlines():
        record = json.loads(line)
        steps[record["step"]].append(Trajectory.from_dict(record))
    assert [len(step) for step in steps] == [4, 4]
    return Reported(directory, environment, done.stdout, steps)


def texts(trajectories: list[Trajectory]) -> list[str]:
    return [turn.text for trajectory in trajectories for turn in trajectory.turns]


@pytest.mark.slow
def test_tensorboard_gets_numbers_and_turns(reported):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    printed, steps = reported.printed, reported.steps
    events = EventAccumulator(str(reported.directory / "board"), size_guidance={"tensors": 0})
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


@pytest.mark.slow
def test_wandb_gets_a_table_of_turns(reported):
    pytest.importorskip("wandb")
    steps = reported.steps
    files = sorted(reported.directory.glob("wandb/offline-run-*/files/media/table/trajectories_*.table.json"))
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


@pytest.mark.slow
def test_trackio_gets_a_table_and_traces(reported, fork_server):
    pytest.importorskip("trackio")
    steps = reported.steps
    done = fork_server.run(SCRIPTS / "read_trackio.py", environment=reported.environment)
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


def test_a_batch_in_which_no_episode_began_is_no_end_of_a_run(monkeypatch):
    """Every environment was down at once: there is no turn to log, and a tracker is told of none."""
    told = []
    down = [Trajectory([], stop_reason=StopReason.ERROR, error="OSError: down")] * 2
    played = random_trajectory(random.Random(0), num_turns=1)
    for name in ("wandb", "trackio"):
        tracker = pytest.importorskip(name)
        monkeypatch.setattr(tracker, "log", told.append)
        monkeypatch.setattr(tracker, "run", object(), raising=False)
        log_trajectories(down, 1, [name], chat_tokenizer())
        assert told == []
    log_trajectories([*down, played], 1, ["wandb"], chat_tokenizer())
    (logged,) = told
    assert [row[6] for row in logged["trajectories"].data] == [played.turns[0].text]


def test_episodes_are_printed_under_their_step():
    out = io.StringIO()
    trajectories = [random_trajectory(random.Random(seed), num_turns=2) for seed in range(2)]
    print_trajectories(trajectories, "eval step 3", chat_tokenizer(), Console(file=out, width=90))
    assert "eval step 3 · episode 1 of 2" in out.getvalue() and "turn 2 · reads" in out.getvalue()
