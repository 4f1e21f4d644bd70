"""Tests of the one reader of foreign JSON, of the one writer, and of every file that is read with it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mem1_trl import Mem1Protocol
from mem1_trl.demonstrations import read_trajectories
from mem1_trl.evaluation import EvaluatedTask, Evaluation
from mem1_trl.hub.agent_settings import load_agent_settings
from mem1_trl.hub.trajectories import load_trajectories
from mem1_trl.json_lines import read_json_lines
from mem1_trl.json_text import DEEPEST, as_json, read_json, write_json, write_whole
from mem1_trl.trajectory import Trajectory, Turn

HOSTILE = {
    "deep": ("[" * 100_000, "nested more than 64 deep"),
    "deep and closed": ("[" * 500 + "]" * 500, "nested more than 64 deep"),
    "deep objects": ('{"a":' * 500 + "1" + "}" * 500, "nested more than 64 deep"),
    "digits": ("1" * 5000, "too many digits"),
    "not a number": ('{"a": NaN}', "NaN is not a number of JSON"),
    "infinite": ("[-Infinity]", "-Infinity is not a number of JSON"),
    "too large": ("[1e999]", "1e999 is not a number of JSON"),
    "cut off": ('{"a": ', "Expecting value, at character 7"),
    "empty": ("", "Expecting value, at character 1"),
    "not UTF-8": (b'{"a": "\xff"}', "not text in UTF-8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_not_json_is_a_value_error_of_one_sentence(name):
    text, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message) as raised:
        read_json(text)
    assert len(str(raised.value)) < 100


def test_what_is_json_is_read_as_it_is():
    deepest = "[" * (DEEPEST - 1) + "[1]" + "]" * (DEEPEST - 1)
    for text in ('{"a": [1, 2.5, "é", null, true]}', deepest, "[" + "[]," * 200 + "[]]", '"\\ud800"', "1e300"):
        assert read_json(text) == json.loads(text)
    assert read_json(b"\xef\xbb\xbf[1]") == [1]  # a byte order mark, as Windows writes it
    assert read_json('[NaN, 1e999, {"a": -Infinity}]', nan_is_null=True) == [None, None, {"a": None}]


def test_what_is_written_can_be_read_by_everyone(tmp_path):
    value = {
        "nan": [float("nan"), float("inf"), 1.5],
        "array": np.array([1.0, np.nan]),
        "surrogate": "\ud800 é \\",
        "set": {1},
        (1, 2): 3,
    }
    text = write_json(value)
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    assert "NaN" not in text and "é" in text
    expected = {"nan": [None, None, 1.5], "array": [1.0, None], "surrogate": "\ud800 é \\", "set": [1], "(1, 2)": 3}
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == expected
    assert as_json({"a": (1, 2), 3: "x"}) == {"a": [1, 2], "3": "x"}


# Files


def episode(**changes) -> dict:
    turn = Turn((1,), (2, 3), (-0.5, float("nan")), text="\ud800", action="answer")
    return {**Trajectory([turn], reward=1.0, metrics={"x": math.nan}).to_dict(), **changes}


def test_a_trajectory_survives_a_file_with_numbers_that_are_not_finite(tmp_path):
    (tmp_path / "a.jsonl").write_text(write_json(episode()) + "\n", encoding="utf-8")
    [loaded] = load_trajectories(tmp_path / "a.jsonl")
    assert loaded.turns[0].text == "\ud800" and loaded.turns[0].prompt_ids == (1,)
    assert loaded.turns[0].logprobs[0] == -0.5 and math.isnan(loaded.turns[0].logprobs[1])
    assert math.isnan(loaded.metrics["x"]) and loaded.reward == 1.0


BAD_EPISODES = [
    ("[1]", "It holds no trajectory"),
    (json.dumps({"turns": 3}), "no list of 'turns'"),
    (json.dumps({**episode(), "turns": [4]}), "Turn 1 is 4"),
    (
        json.dumps({**episode(), "turns": [{"prompt_ids": "ab", "completion_ids": [1]}]}),
        "prompt_ids='ab', which must be",
    ),
    (json.dumps({**episode(), "turns": [{"prompt_ids": [1.5], "completion_ids": [1]}]}), "each entry a whole number"),
    (json.dumps({**episode(), "turns": [{"completion_ids": [1]}]}), "Turn 1 has no 'prompt_ids'"),
    (json.dumps({**episode(), "turns": [{"prompt_ids": [1], "completion_ids": [1], "x": 1}]}), "Turn 1 has 'x'"),
    (json.dumps({**episode(), "turns": [{"prompt_ids": [], "completion_ids": [1]}]}), "at least one prompt token"),
    (json.dumps(episode(reward="much")), "reward='much', which must be a number or null"),
    (json.dumps(episode(stop_reason="bored")), "'bored' is not a valid StopReason"),
    (json.dumps(episode(metrics=[1])), "metrics=.1., which must be an object"),
    (json.dumps({key: value for key, value in episode().items() if key != "answer"}), "has no 'answer'"),
    ("[" * 3000, "nested more than 64 deep"),
]


@pytest.mark.parametrize(("line", "message"), BAD_EPISODES, ids=[message for _, message in BAD_EPISODES])
def test_a_line_that_is_not_an_episode_is_named_by_every_reader(tmp_path, line, message):
    good = write_json(episode())
    path = tmp_path / "x.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=rf"^Line 2 of .*x\.jsonl .*{message}"):
        load_trajectories(path)
    inner = json.loads(line) if not line.startswith("[") else None
    if inner is None:
        return
    whole = {"row": 0, "sample": 0, "prompt": "q", "trajectory": inner}
    path.write_text(json.dumps({**whole, "trajectory": json.loads(good)}) + "\n" + json.dumps(whole) + "\n")
    with pytest.raises(ValueError, match=rf"^Line 2 of .*x\.jsonl .*{message}"):
        read_trajectories(path)
    task = EvaluatedTask(0, {}, "q", Trajectory.from_dict(json.loads(good)), {"x": 1.0})
    Evaluation.from_tasks([task]).save(tmp_path, "x")
    with path.open("a") as file:
        file.write(json.dumps({**task.to_dict(), "trajectory": inner}) + "\n")
    with pytest.raises(ValueError, match=rf"^Line 2 of .*x\.jsonl .*{message}"):
        Evaluation.load(tmp_path, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": "first"}, "index='first', which must be a whole number"),
        ({"scores": [1]}, "scores=.1., which must be an object, each entry a number"),
        ({"objectives_detail": [{"gold": 3}]}, "A ObjectiveTrace has gold=3"),
        ({"mood": "good"}, "The task has 'mood', which this version of mem1-trl does not know"),
    ],
)
def test_an_evaluation_names_the_line_that_is_not_a_task(tmp_path, change, message):
    task = EvaluatedTask(0, {}, "q", Trajectory.from_dict(episode()), {"x": 1.0})
    Evaluation.from_tasks([task]).save(tmp_path, "x")
    (tmp_path / "x.jsonl").write_text(json.dumps({**as_json(task.to_dict()), **change}) + "\n")
    with pytest.raises(ValueError, match=rf"^Line 1 of .*x\.jsonl cannot be read\. .*{message}"):
        Evaluation.load(tmp_path, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agent": 3}, "The summary has agent=3, which must be text"),
        ({"metrics": {"x": {"mean": 1.0}}}, "A Statistic has no 'stderr'"),
        ({"retention": [1]}, "A RetentionPoint must be a JSON object, got 1"),
        ({"failures": None}, "The summary has failures=None, which must be an object"),
    ],
)
def test_an_evaluation_names_the_field_of_its_summary(tmp_path, change, message):
    task = EvaluatedTask(0, {}, "q", Trajectory.from_dict(episode()), {"x": 1.0})
    path = Evaluation.from_tasks([task]).save(tmp_path, "x")
    assert Evaluation.load(tmp_path, "x").statistics["x"].mean == 1.0
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=rf"x\.json cannot be read\. {message}"):
        Evaluation.load(tmp_path, "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"is not JSON \(Expecting property name"),
        ("[" * 3000, "nested more than 64 deep"),
        ("[]", "must hold a JSON object, got a list"),
        ('{"max_turns": "six"}', "max_turns='six', which must be a whole number: save the model again"),
        ('{"max_turns": true}', "max_turns=True, which must be a whole number"),
        ('{"temperature": NaN}', "temperature=None, which must be a number"),
        ('{"environment": ["a"]}', r"environment=\['a'\], which must be an object"),
        ('{"context": ["full"]}', r"context=\['full'\], which must be text"),
        ('{"max_turns": 0}', "max_turns must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_read_name_the_file_and_the_field(tmp_path, text, message):
    (tmp_path / "mem1_agent.json").write_text(text)
    with pytest.raises(ValueError, match=rf"mem1_agent\.json .*{message}"):
        load_agent_settings(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is not JSON"),
        ('{"state_tag": 5}', "state_tag=5, which must be text"),
        ('{"scratch_tags": "think"}', "scratch_tags='think', which must be a list, each entry text"),
        ('{"action_tags": {"a": 1}}', "action_tags={'a': 1}, which must be an object, each entry text or null"),
        ('{"state_tag": "a b"}', "'a b' cannot be a tag"),
    ],
)
def test_a_protocol_that_cannot_be_read_names_the_file_and_the_field(tmp_path, text, message):
    (tmp_path / "mem1_protocol.json").write_text(text)
    with pytest.raises(ValueError, match=rf"mem1_protocol\.json .*{message}"):
        Mem1Protocol.from_pretrained(tmp_path)


def test_a_packed_file_that_was_cut_off_is_one_sentence(tmp_path):
    import gzip

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"[1]\n" * 100_000)[:200])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz cannot be unpacked .*: was it cut off"):
        list(read_json_lines(tmp_path / "a.jsonl.gz"))


def test_two_that_write_one_file_do_not_write_into_each_others(tmp_path):
    path = tmp_path / "a.json"

    def parts(other):
        yield "first "
        write_whole(path, other)
        assert path.read_text() == "whole"
        yield "second"

    write_whole(path, parts("whole"))
    assert path.read_text() == "first second"


def test_a_file_that_is_replaced_keeps_its_permissions_and_its_links(tmp_path):
    path, link = tmp_path / "settings.json", tmp_path / "link.json"
    path.write_text("before")
    path.chmod(0o640)
    link.symlink_to(path)
    write_whole(link, "after")
    assert link.is_symlink() and path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link.json", "settings.json"]


def test_a_file_that_cannot_be_written_to_its_end_stays_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "before")

    def parts():
        yield "half"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_whole(path, parts())
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
