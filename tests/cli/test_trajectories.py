"""`mem1 trajectories`: files that were cut off, outcomes of collected episodes, and text that is shown as it is."""

from __future__ import annotations

import json

import pytest

from mem1_trl import StopReason, Trajectory, Turn
from mem1_trl.cli import main

CODES = "blood group :a: or :o:, ratio 3:x:1"


def collected(row: int, answer: str = "a", **metrics: float) -> dict:
    """A line of `collect_trajectories`."""
    turn = Turn((1,), (2,), text=f"<answer>{answer}</answer>")
    trajectory = Trajectory([turn], 1.0, StopReason.ANSWER, answer=answer, metrics={"turns": 1.0, **metrics})
    return {"row": row, "sample": 0, "prompt": f"q{row}", "task": "00", "trajectory": trajectory.to_dict()}


def shown(capsys, path, *args: str) -> tuple[int, str, str]:
    """Exit status, and both outputs with their lines joined."""
    status = main(["trajectories", str(path), *args])
    return status, *(" ".join(text.split()) for text in capsys.readouterr())


def write(path, *lines: str):
    path.write_text("".join(lines))
    return path


def test_a_line_that_was_cut_off_is_left_out_and_said(tmp_path, capsys):
    lines = [json.dumps(collected(row)) + "\n" for row in range(3)]
    path = write(tmp_path / "a.jsonl", lines[0], lines[1], lines[2][:-40])
    status, printed, said = shown(capsys, path)
    assert status == 0 and "episode 1 " in printed and "episode 2" not in printed
    assert said == f"mem1 trajectories: line 3 of {path} was cut off and is left out"
    path = write(tmp_path / "b.jsonl", lines[0][:-40] + "\n", lines[1])
    assert "line 1 of" in shown(capsys, path)[2], "another line is a fault of the file"


def test_a_whole_last_line_needs_no_end(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", json.dumps(collected(0)) + "\n", json.dumps(collected(1)))
    status, printed, said = shown(capsys, path)
    assert (status, said) == (0, "") and "episode 0 " in printed and "episode 1 " in printed


@pytest.mark.parametrize(
    ("metrics", "outcome"),
    [
        ({"success": 1.0}, "right"),
        ({"success": 0.0}, "wrong"),
        ({"exact_match": 1.0, "exact_match_per_objective": 0.5}, "partly"),
        ({"exact_match": 2.0, "exact_match_per_objective": 1.0, "success": 1.0}, "right"),
        ({"exact_match": 0.0}, "wrong"),
        ({"exact_match": 1.0}, "unscored"),  # of how many objectives is not known
        ({}, "unscored"),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_the_outcome_of_a_collected_episode_is_that_of_its_metrics(tmp_path, capsys, metrics, outcome, flat):
    record = collected(0, **metrics)
    path = write(tmp_path / "a.jsonl", json.dumps(record["trajectory"] if flat else record) + "\n")
    status, printed, _ = shown(capsys, path, "--outcome", outcome)
    assert status == 0 and f"· {outcome} " in printed


def test_it_is_said_that_rewards_are_no_scores(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", *(json.dumps(collected(row)) + "\n" for row in range(2)))
    status, _, said = shown(capsys, path, "--outcome", "right")
    assert status == 2 and said.startswith(
        f"mem1 trajectories: no episode of '{path}' is what you asked for: 2 of its episodes have rewards and no scores"
    )
    path = write(tmp_path / "b.jsonl", json.dumps(collected(0, success=1.0)) + "\n")
    assert "scores" not in shown(capsys, path, "--outcome", "wrong")[2]


def test_an_error_in_the_episode_itself_is_shown(tmp_path, capsys):
    record = collected(0)
    record["trajectory"] |= {"error": "KeyError: no index", "stop_reason": "error"}
    path = write(tmp_path / "a.jsonl", json.dumps(record) + "\n")
    status, printed, _ = shown(capsys, path, "--outcome", "error")
    assert status == 0 and "failed: KeyError: no index" in printed


def test_codes_of_emojis_are_shown_as_they_are(tmp_path, capsys):
    record = {**collected(0, CODES), "error": f"KeyError {CODES} in [red]", "index": ":x:", "prompt_text": CODES}
    path = write(tmp_path / "a.jsonl", json.dumps(record) + "\n")
    _, printed, _ = shown(capsys, path)
    assert f"failed: KeyError {CODES} in [red]" in printed and f"answer: {CODES} · ended by answer" in printed
    assert "episode :x: · error" in printed and f"<answer>{CODES}</answer>" in printed
