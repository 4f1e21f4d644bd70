"""The five applications run as their README says, with the numbers that stand there."""

from __future__ import annotations

import json
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from support.forking import ForkServer

APPLICATIONS = Path(__file__).parents[2] / "examples" / "applications"
README = APPLICATIONS / "README.md"
NAMES = ("research_assistant", "support_chat", "web_automation", "tutor", "workflow")
MOST_LINES = 150


def play_all(server: ForkServer, directory: Path) -> dict[str, str]:
    """Run every application; returns what each printed."""
    printed = {}
    for name in NAMES:
        done = server.run(APPLICATIONS / f"{name}.py", "--output_dir", directory / name)
        assert done.returncode == 0, done.stderr[-2000:]
        printed[name] = done.stdout
    return printed


@pytest.fixture(scope="module")
def played(tmp_path_factory, fork_server):
    directory = tmp_path_factory.mktemp("applications")
    return directory, play_all(fork_server, directory)


def row(name: str, directory: Path) -> str:
    """The application's line of the table in the README, from the files of a run."""
    kept, appended = (
        json.loads((directory / "evaluation" / f"{context}.json").read_text())["metrics"]
        for context in ("mem1", "full")
    )
    cells = [f"`{name}.py`", f"{kept['turns']['mean']:.0f}", f"{kept['reward']['mean']:.2f}"]
    cells += [f"{m[key]['mean']:,.0f}" for key in ("peak_tokens", "dependency_length") for m in (kept, appended)]
    return f"| {' | '.join(cells)} |"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_application_plays_its_tasks_at_flat_context(name, played):
    directory, printed = played[0] / name, played[1][name]
    assert row(name, directory) in README.read_text()
    assert (directory / "report" / "report.html").is_file()
    read = {}
    for context in ("mem1", "full"):
        lines = (directory / "evaluation" / f"{context}.jsonl").read_text().splitlines()
        episodes = [json.loads(line)["trajectory"] for line in lines]
        assert all(episode["reward"] == 1.0 for episode in episodes)
        read[context] = [[len(turn["prompt_ids"]) for turn in episode["turns"]] for episode in episodes]
    for kept, appended in zip(read["mem1"], read["full"], strict=True):
        assert len(kept) == len(appended) >= 25
        assert all(later > earlier for earlier, later in pairwise(appended))
        # From the end of the first quarter to the end, what is appended grows by three times and more, the state by notes
        quarter = len(kept) // 4
        assert appended[-1] > 2.4 * appended[quarter]
        assert max(kept[quarter:]) < 1.6 * kept[quarter]
    assert f"{read['mem1'][0][-1]:,}" in printed and f"{read['full'][0][-1]:,}" in printed


@pytest.mark.parametrize("name", NAMES)
def test_an_application_is_short(name):
    assert len((APPLICATIONS / f"{name}.py").read_text().splitlines()) < MOST_LINES


def test_the_script_knows_nothing_but_the_last_turn(tmp_path, monkeypatch):
    """Without its state it cannot go on: what it does is read from the context."""
    monkeypatch.syspath_prepend(str(APPLICATIONS))
    import application
    import tutor

    client = application.ScriptedClient(tutor.script)
    task = next(iter(tutor.pupils(1)))["prompt"]
    state = '<think>{"explanations": {"addition": 3, "subtraction": 0}, "teaching": "addition"}</think>'
    seen = "<ask>47 + 38</ask>\n<information>Pupil: 47 + 38 is 75.</information>"

    def reply(past):
        (choice,) = client.create([{"role": "user", "content": f"{task}\n\n{past}"}]).choices
        return choice.message.content

    assert '"addition": 4' in reply(state + seen) and reply(state + seen).endswith("<explain>addition</explain>")
    assert '"addition": 1' in reply("<think>{}</think>" + seen)


def test_options_are_checked(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(APPLICATIONS))
    monkeypatch.setattr(sys, "argv", ["tutor.py", "--tasks", "9"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(APPLICATIONS / "tutor.py"), run_name="__main__")
    assert ended.value.code == 2 and "--tasks must be between 1 and 4" in capsys.readouterr().err


if __name__ == "__main__":  # write the table of the README from a run
    import tempfile

    text = README.read_text()
    table = text[text.index("| application |") :]
    place = Path(tempfile.mkdtemp())
    with ForkServer() as server:
        play_all(server, place)
    lines = [*table.splitlines()[:2], *(row(name, place / name) for name in NAMES)]
    README.write_text(text.replace(table, "\n".join(lines) + "\n"))
