"""Text of strangers in a terminal: what they wrote is shown, and none of it is obeyed."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from mem1_trl.cli import main
from mem1_trl.display import print_trajectory
from mem1_trl.environment_runtime.errors import describe_error
from mem1_trl.printable import one_line, printable
from mem1_trl.trajectory import StopReason, Trajectory, Turn

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\r\b\x00\x7f\u202egnp\ud800"
SHOWN = r"\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\x00\x7f\u202egnp\ud800"


def test_control_characters_are_written_out():
    assert printable(EVIL) == SHOWN
    assert one_line(f"  a\n {EVIL} ") == f"a {SHOWN.replace(chr(92) + 'r', ' ')}"
    text = "häßlich 漢字 🙂 👨‍👩‍👧 हिन्दी \t\n x"
    assert printable(text) == text, "what people write stays"
    assert one_line("ab c" * 100, most=7) == "ab cab " and len(one_line("x" * 10_000_000, most=5)) == 5
    assert printable(3) == "3"


def trajectory() -> Trajectory:
    turn = Turn((1,), (2,), text=f"say {EVIL}", observation=f"see {EVIL}", action="search", action_input=EVIL)
    return Trajectory([turn], 1.0, StopReason.ANSWER, answer=f"answer {EVIL}")


def harmless(text: str) -> bool:
    return not set(text) & set("\x1b\x07\x9b\r\b\x00\x7f\u202e\ud800")


def test_an_episode_is_shown_and_not_obeyed():
    console = Console(record=True, width=200, force_terminal=False)
    print_trajectory(trajectory(), console=console, prompt=f"ask {EVIL}")
    text = console.export_text()
    assert harmless(text)
    for word in ("say", "see", "ask", "answer"):
        assert f"{word} {SHOWN}" in text


@pytest.mark.parametrize("index", [0, EVIL, "[/red]", "[bold"])
def test_the_command_shows_them(tmp_path, capsys, index):
    record = {"index": index, "trajectory": trajectory().to_dict(), "error": f"died {EVIL}", "prompt_text": EVIL}
    (tmp_path / "x.jsonl").write_text(json.dumps(record) + "\n")
    assert main(["trajectories", str(tmp_path / "x.jsonl")]) == 0
    text = capsys.readouterr().out
    assert harmless(text) and "title" in text and one_line(index) in text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"scores": [1], "turns": []}, "scores=.1., which must be an object"),
        ({"objectives_detail": [3], "turns": []}, "objectives_detail of something else than objects"),
        ({"trajectory": {"turns": 3}}, "no list of 'turns'"),
        ({"name": "x"}, "holds no trajectory"),
        (EVIL, "is not a JSON object"),
    ],
)
def test_the_command_names_the_line_that_is_not_an_episode(tmp_path, capsys, record, message):
    import re

    (tmp_path / "x.jsonl").write_text(json.dumps(record) + "\n")
    assert main(["trajectories", str(tmp_path / "x.jsonl")]) == 2
    said = capsys.readouterr().err.splitlines()[0]
    assert re.search(rf"line 1 of .*x\.jsonl.* {message}", said) and harmless(said)


def test_errors_of_strangers_are_one_harmless_line(tmp_path, capsys):
    assert describe_error(ValueError(f"a\n{EVIL}")).endswith(r"gnp\ud800") and harmless(
        describe_error(ValueError(EVIL))
    )
    assert main(["trajectories", f"no-{EVIL[:-1]}.jsonl".replace("\x00", "")]) == 2
    assert harmless(capsys.readouterr().err)
