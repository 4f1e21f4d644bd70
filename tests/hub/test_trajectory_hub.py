"""Tests of data sets of trajectories on the Hub: push, load by id in another process, show, and the card."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard
from support.helpers import random_trajectory
from support.hub_server import hub

from mem1_trl import Trajectory, load_trajectories, push_trajectories
from mem1_trl.demonstrations import demonstration_dataset
from mem1_trl.hub.trajectories import read_records


def python(server, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ, "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "COLUMNS": "100",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def episodes(count: int, seed: int = 0) -> list[Trajectory]:
    draw = random.Random(seed)
    found = [random_trajectory(draw, num_turns=1 + index % 3) for index in range(count)]
    for index, trajectory in enumerate(found):
        trajectory.reward = index / 4
        trajectory.metrics = {"turns": float(len(trajectory.turns)), "f1": float("nan") if index == 0 else 0.5}
    return found


def write(path: Path, trajectories: list[Trajectory]) -> Path:
    """A file as `collect_trajectories` writes it."""
    records = [
        {"row": index, "sample": 0, "prompt": f"Käse {index}?", "trajectory": trajectory.to_dict()}
        for index, trajectory in enumerate(trajectories)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_what_is_pushed_is_loaded_by_id(tmp_path):
    """Both splits, from a file and from objects: token ids, log-probs and texts come back as they were."""
    train, test = episodes(5), episodes(3, seed=1)
    path = write(tmp_path / "teacher.jsonl", train)
    push = (
        "import sys, json; from mem1_trl import Trajectory, push_trajectories\n"
        "print(push_trajectories('me/lookups', sys.argv[1], model='me/teacher'))\n"
        "records = [json.loads(line)['trajectory'] for line in open(sys.argv[2])]\n"
        "push_trajectories('me/lookups', [Trajectory.from_dict(r) for r in records], split='test')\n"
    )
    load = (
        "import json; from mem1_trl import load_trajectories\n"
        "for split in ('train', 'test'):\n"
        "    print(json.dumps([t.to_dict() for t in load_trajectories('me/lookups', split)]))\n"
        "for name, split in (('me/nothing', 'train'), ('me/lookups', 'dev'), ('runs/x.jsonl', 'train')):\n"
        "    try: load_trajectories(name, split)\n"
        "    except FileNotFoundError as error: print(error)\n"
    )
    with hub() as server:
        pushed = python(server, tmp_path, "-c", push, str(path), str(write(tmp_path / "other.jsonl", test)))
        assert pushed.returncode == 0, pushed.stderr[-3000:]
        assert pushed.stdout.strip() == f"{server.url}/datasets/me/lookups"
        files = server.files["datasets/me/lookups"]
        assert set(files) == {"data/train.jsonl", "data/test.jsonl", "README.md"}

        loaded = python(server, tmp_path, "-c", load)
        assert loaded.returncode == 0, loaded.stderr[-3000:]
        *sets, nothing, no_split, no_file = loaded.stdout.splitlines()
        for trajectories, record in zip((train, test), sets, strict=True):
            back = [Trajectory.from_dict(item) for item in json.loads(record)]
            assert [t.turns for t in back] == [t.turns for t in trajectories]
            assert [t.reward for t in back] == [t.reward for t in trajectories]
            assert [t.stop_reason for t in back] == [t.stop_reason for t in trajectories]
            assert back[0].metrics == {"turns": 1.0}, "what is no number is left out"
            assert back[1].metrics == {"turns": 2.0, "f1": 0.5}
        assert "neither a file nor a data set 'me/nothing'" in nothing
        assert "no split 'dev'" in no_split and "There is no file 'runs/x.jsonl'" in no_file

        shown = python(server, tmp_path, "-m", "mem1_trl", "trajectories", "me/lookups", "--limit", "1")
        assert shown.returncode == 0, shown.stderr[-3000:]
        assert "Käse 0?" in shown.stdout and "1 of 5 episodes" in shown.stdout

        # The card of the last push knows both splits, and any reader of JSON lines takes the files
        card = DatasetCard(files["README.md"].decode())
        assert {"trl", "mem1", "trajectories"} <= set(card.data.tags)
        assert card.data.size_categories == ["n<1K"]
        (config,) = card.data.configs
        assert config["data_files"] == [{"split": s, "path": f"data/{s}.jsonl"} for s in ("test", "train")]
        assert "| episodes | 3 |" in card.text and "| mean reward | 0.250 |" in card.text
        assert 'load_trajectories("me/lookups", split="test")' in card.text
        for name in ("train", "test"):
            (tmp_path / f"{name}.jsonl").write_bytes(files[f"data/{name}.jsonl"])
        table = load_dataset(
            "json", data_files={name: str(tmp_path / f"{name}.jsonl") for name in ("train",)}, cache_dir=str(tmp_path)
        )["train"]
        assert table[1]["prompt"] == "Käse 1?" and table[1]["reward"] == 0.25
        assert table[1]["turns"][0]["completion_ids"] == list(train[1].turns[0].completion_ids)


PUSH_AND_LOAD = """
import sys
from datasets import load_dataset
from mem1_trl import StopReason, Trajectory, Turn, push_trajectories
ids = tuple(range(1000))
good = Trajectory([Turn(ids, ids, (-0.5,) * 1000, text="x")], reward=1.0, answer="x", metrics={"f1": 1})
failed = Trajectory([Turn((1,), (2,), text="x")], stop_reason=StopReason.ERROR, error="failed", metrics={"f1": 0.5, "later": 2.0})
push_trajectories("me/data", [*[good] * 1200, failed], model=sys.argv[1])
push_trajectories("me/data", [Trajectory([Turn((1,), (2,), text="y")], stop_reason=None, metrics={"other": 1.0})], split="test")
found = load_dataset("me/data")
print(found["train"].num_rows, found["test"].num_rows)
print(found["train"][1200]["error"], found["train"][0]["metrics"]["later"], found["test"][0]["metrics"]["other"])
"""


def test_columns_that_only_later_episodes_have_are_loaded_by_datasets(tmp_path):
    """`datasets` reads a file in blocks of 10 MB, and took the types of the first one for those of all; the second split has a metric of its own."""
    with hub() as server:
        done = python(server, tmp_path, "-c", PUSH_AND_LOAD, str(tmp_path))
        assert done.returncode == 0, done.stderr[-3000:]
        files = server.files["datasets/me/data"]
    assert len(files["data/train.jsonl"]) > 11_000_000
    assert done.stdout.splitlines()[-2:] == ["1201 1", "failed None 1.0"]
    card = files["README.md"].decode()
    assert DatasetCard(card).data.size_categories == ["1K<n<10K"], "of both splits"
    assert (
        "Split `train`:\n\n| | |\n|---|---|\n| episodes | 1,201 |" in card
        and "| ended by | answer 1200, error 1 |" in card
    )
    assert "Split `test`:\n\n| | |\n|---|---|\n| episodes | 1 |" in card and "| ended by | not ended 1 |" in card
    assert str(tmp_path) not in card and "huggingface.co//" not in card


def test_all_is_no_name_of_a_split():
    with pytest.raises(ValueError, match="split='all' is not a name for a split"):
        push_trajectories("me/data", episodes(1), split="all")


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = write(tmp_path / "teacher.jsonl", episodes(2))
    with path.open("a") as file:
        file.write('{"row": 5, "sam')
    assert len(load_trajectories(path)) == 2


def test_a_file_is_loaded_from_where_it_is(tmp_path):
    trajectories = episodes(4)
    path = write(tmp_path / "teacher.jsonl", trajectories)
    loaded = load_trajectories(path)
    assert [t.turns for t in loaded] == [t.turns for t in trajectories]
    assert demonstration_dataset(loaded).num_rows == sum(len(t.turns) for t in trajectories)
    flat = tmp_path / "flat.jsonl"
    flat.write_text("\n".join(json.dumps(t.to_dict()) for t in trajectories) + "\n\n")
    assert [t.turns for t in load_trajectories(str(flat))] == [t.turns for t in trajectories]
    assert "prompt" not in next(iter(read_records(flat))) and next(iter(read_records(path)))["prompt"] == "Käse 0?"


def test_the_prompt_of_an_evaluated_episode_is_that_of_its_row(tmp_path):
    """It was the text that the template had made of it, with the instructions."""
    (trajectory,) = episodes(1)
    for prompt in ("Käse?", [{"role": "user", "content": "Käse?"}]):
        path = tmp_path / "evaluated.jsonl"
        record = {
            "trajectory": trajectory.to_dict(),
            "task": {"prompt": prompt},
            "prompt_text": "user:Käse?\n\nWork in turns.",
        }
        path.write_text(json.dumps(record) + "\n")
        assert next(iter(read_records(path)))["prompt"] == prompt


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(tmp_path):
    with pytest.raises(ValueError, match="no trajectory to push"):
        push_trajectories("me/x", [])
    with pytest.raises(ValueError, match=r"split='a/b' is not a name for a split"):
        push_trajectories("me/x", episodes(1), split="a/b")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(episodes(1)[0].to_dict()) + '\n{"question": 1}\n')
    with pytest.raises(ValueError, match=r"Line 2 of .*bad\.jsonl cannot be read. It holds no trajectory"):
        push_trajectories("me/x", bad)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        push_trajectories("me/x", tmp_path / "none.jsonl")


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="no file 'me/none', and the Hub cannot be reached"):
        load_trajectories("me/none")
