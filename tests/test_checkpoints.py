"""Tests of checkpoints: a run that is killed anywhere and resumed is the run that was not killed, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mem1_trl.checkpoints import (
    checkpoint_to_resume,
    is_complete,
    last_complete_checkpoint,
    mark_complete,
    mark_incomplete,
)

SCRIPT = Path(__file__).parent / "scripts" / "killed_run.py"
RESUMED_FROM = {
    "in_the_first_rollout": None,
    "in_the_optimizer_file": "checkpoint-1",
    "before_the_mark": "checkpoint-2",
    "in_a_rollout": "checkpoint-2",
    "between_steps": "checkpoint-4",
}


def play(tmp_path: Path, actor_path: str, kind: str, *places: str) -> dict:
    output = tmp_path / "report.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), actor_path, kind, str(output), *places]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(output.read_text())
    assert report["whole"]["statuses"] == [0], done.stderr[-3000:]
    return report


def check(report: dict, places: list[str]) -> None:
    """Compare each killed and resumed run with the one that was not interrupted."""
    whole = report.pop("whole")
    assert whole["statuses"] == [0]
    *records, end = whole["records"][0]
    by_key = {("log", r["step"]) if "log" in r else ("rollout", r["rollout"]): r for r in records}
    rollouts = [record for record in records if "rollout" in record]
    assert len(by_key) == len(records) and len(rollouts) >= 3
    assert len({json.dumps(record["tokens"]) for record in rollouts}) == len(rollouts)
    # The second epoch has another order than the first, so that repeating the first would show
    prompts = [json.dumps(record["prompts"]) for record in rollouts]
    assert len(set(prompts[:3])) == 3
    assert set(report) == set(places)
    for place in places:
        statuses, (first, second) = report[place]["statuses"], report[place]["records"]
        assert statuses == [-9, 0], place
        *resumed, resumed_end = second
        assert resumed_end["resumed_from"] == RESUMED_FROM[place], place
        for record in [*first, *resumed]:
            key = ("log", record["step"]) if "log" in record else ("rollout", record["rollout"])
            assert record == by_key[key], (place, key)
        assert resumed and resumed_end["weights"] == end["weights"], place
        assert resumed_end["checkpoints"] == end["checkpoints"] == ["checkpoint-5"]


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("ppo", list(RESUMED_FROM)),
        ("grpo", ["in_the_optimizer_file", "in_a_rollout"]),
        ("adapter", ["before_the_mark", "between_steps"]),
        ("shared", ["in_a_rollout"]),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, actor_path, kind, places):
    """Every logged number, every sampled token, the order of the data over epochs, and all weights at the end, exactly."""
    check(play(tmp_path, actor_path, kind, *places), places)


def test_only_complete_checkpoints_are_found(tmp_path):
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    mark_complete(tmp_path / "checkpoint-best", 99)
    with pytest.raises(ValueError, match=r"no complete checkpoint in .*: call train\(\) without"):
        checkpoint_to_resume(True, str(tmp_path))
    mark_complete(tmp_path / "checkpoint-2", 2)
    mark_complete(tmp_path / "checkpoint-10", 10)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert checkpoint_to_resume(True, str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert checkpoint_to_resume(str(tmp_path / "checkpoint-2"), str(tmp_path)) == str(tmp_path / "checkpoint-2")
    assert checkpoint_to_resume(None, str(tmp_path)) is checkpoint_to_resume(False, str(tmp_path)) is None
    with pytest.raises(
        ValueError, match=r"checkpoint-12 was not written to its end.*resume from .*checkpoint-10 instead"
    ):
        checkpoint_to_resume(str(tmp_path / "checkpoint-12"), str(tmp_path))
    with pytest.raises(ValueError, match=r"There is no checkpoint .*checkpoint-7: the latest is .*checkpoint-10"):
        checkpoint_to_resume(str(tmp_path / "checkpoint-7"), str(tmp_path))
    mark_incomplete(tmp_path / "checkpoint-10")
    assert not is_complete(tmp_path / "checkpoint-10")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
