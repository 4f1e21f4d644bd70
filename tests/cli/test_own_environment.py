"""An environment and tasks of one's own on the command line: trained in, tested in, and talked with."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from support.doc_blocks import ROOT

from mem1_trl.cli import main
from mem1_trl.cli.train import how_to_evaluate, read

TINY = str(ROOT / "examples" / "assets" / "tiny-mem1")
EVAL = ["eval", "--model_name_or_path", TINY, "--max_completion_length", "32"]
CHAT = ["chat", "--model_name_or_path", TINY, "--max_completion_length", "64"]
TRAIN = ["train", "--model_name_or_path", TINY, "--max_steps", "1"]
MODULE = '''
class Echo:
    """Finds what it was given."""

    def reset(self, prompt, worth=0.0, **row):
        self.worth = worth
        if worth is None:
            raise RuntimeError("no worth")

    def search(self, query: str) -> str:
        """
        Search.

        Args:
            query: What.
        """
        return "the capital is Rome"

    def get_reward(self) -> float:
        return self.worth


    async def close(self):
        open("closed", "a").write("1")


class Shop:
    """Has no search."""

    def reset(self, prompt, **row):
        pass

    def buy(self, item: str) -> str:
        """
        Buy.

        Args:
            item: What.
        """
        return "bought"


class Free(Echo):
    """Gives no reward."""

    get_reward = None


class Needy(Echo):
    def reset(self, prompt, item, *, place, **row):
        pass


class Made(Echo):
    def __init__(self, path):
        pass
'''


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with a module of environments and a file of tasks, as the current one; returns the name of the module."""
    name = f"world_of_{re.sub('[^0-9a-z]', '_', tmp_path.name.lower())}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "tasks.jsonl").write_text("".join(f'{{"prompt": "{i}?", "worth": {i % 2}.0}}\n' for i in range(6)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def said(capsys, *args: str) -> str:
    """The first line about an error, without the name of the command."""
    assert main(list(args)) == 2
    return capsys.readouterr().err.splitlines()[0].split(": ", 1)[1]


def test_an_agent_is_tested_in_it(world, capsys):
    given = ["--environment", f"{world}.Echo", "--dataset_name", "tasks.jsonl"]
    assert main([*EVAL, *given, "--max_turns", "2", "--output_dir", "out"]) == 0
    printed = capsys.readouterr().out
    summary = json.loads(Path("out/evaluation/tiny-mem1.json").read_text())
    assert (summary["agent"], summary["count"], summary["metrics"]["reward"]["mean"]) == ("tiny-mem1", 6, 0.5)
    reward = summary["metrics"]["reward"]
    assert f"0.50 [{reward['low']:.2f}, {reward['high']:.2f}]" in printed and "EM" not in printed
    assert (summary["settings"]["max_turns"], summary["settings"]["dataset_name"]) == (2, "tasks.jsonl")
    # What is finished is not played again, and other tasks are not taken for the same
    lines = Path("out/evaluation/tiny-mem1.jsonl").read_bytes()  # with the seconds of each episode
    assert main([*EVAL, *given, "--max_turns", "2", "--output_dir", "out"]) == 0
    assert capsys.readouterr().out == printed and Path("out/evaluation/tiny-mem1.jsonl").read_bytes() == lines
    for changed, named in (
        (["--tasks", "3"], "tasks"),
        (["--seed", "1"], "seed"),
        (["--max_turns", "1"], "max_turns"),
    ):
        assert said(capsys, *EVAL, *given, "--max_turns", "2", "--output_dir", "out", *changed) == (
            f"out/evaluation/tiny-mem1.json was evaluated with other settings ({named}): delete it to evaluate again, or choose "
            "another --label or --output_dir."
        )
    assert main(["report", "out"]) == 0
    assert "reward" in Path("out/report/report.html").read_text()


def test_of_many_tasks_some_are_drawn_and_failures_are_said(world, capsys):
    rows = (f'{{"prompt": "{i}?", "worth": null, "answers": [["Rome"]]}}\n' for i in range(9))
    Path("tasks.jsonl").write_text("".join(rows))
    given = ["--environment", f"{world}:Echo", "--dataset_name", "tasks.jsonl", "--tasks", "2"]
    drawn = []
    for seed in ("0", "0", "1"):
        assert main([*EVAL, *given, "--label", f"L{len(drawn)}", "--seed", seed]) == 0
        lines = Path(f"runs/eval/evaluation/l{len(drawn)}.jsonl").read_text().splitlines()
        drawn.append([json.loads(line)["task"]["prompt"] for line in lines])
    assert drawn[0] == drawn[1] != drawn[2] and all(len(one) == 2 for one in drawn)
    captured = capsys.readouterr()
    assert "EM" in captured.out and "100.0% of the episodes failed and count 0" in captured.out
    assert any(line.startswith("2 of 2 episodes failed") for line in re.split("[\r\n]", captured.err))


def test_without_a_reward_the_table_says_so(world, capsys):
    given = ["--environment", f"{world}.Free", "--dataset_name", "tasks.jsonl", "--tasks", "1"]
    assert main([*EVAL, *given]) == 0
    assert "the environment gives no reward" in capsys.readouterr().out


def test_an_agent_talks_in_it(world, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("capital of Italy\n/turns"))
    assert main([*CHAT, "--environment", f"{world}.Echo"]) == 0
    assert "the capital is Rome" in capsys.readouterr().out
    assert Path("closed").read_text() == "11"  # the one that was looked at, and that of the conversation


@pytest.mark.parametrize("command", [EVAL, TRAIN, CHAT, ["serve", *CHAT[1:]]], ids=lambda command: command[0])
def test_an_environment_that_cannot_be_played_is_refused_before_the_model_is_loaded(world, capsys, command):
    tasks = ["--dataset_name", "tasks.jsonl"] if command[0] in ("eval", "train") else []
    assert said(capsys, *command, *tasks, "--environment", f"{world}.Shop") == (
        f"the protocol saved with {TINY} has the action 'search', but Shop has buy: give an environment that has it, or "
        "--protocol default, whose actions are those of the environment"
    )
    assert said(capsys, *command, *tasks, "--environment", f"{world}.Shop", "--protocol", "reference").startswith(
        "the protocol reference (--protocol) has the action 'search', but Shop has buy"
    )
    assert said(capsys, *command, *tasks, "--environment", f"{world}.Made").startswith(
        "the environment cannot be made: TypeError: "
    )


def test_a_message_brings_no_row(world, capsys):
    assert said(capsys, *CHAT, "--environment", f"{world}.Needy") == (
        "reset of Needy needs 'item', 'place', but a message brings the prompt only: give it a default"
    )


def test_tasks_that_are_no_rows_are_one_sentence(world, capsys):
    given = ["--environment", f"{world}.Echo", "--dataset_name"]
    for content, sentence in (
        ("", "tasks.json is not JSON"),
        ("[]", "tasks.json has no rows: pass a file of rows that each hold a task."),
        ('[{"question": "a?"}]', "tasks.json has the columns question, but tasks need a column 'prompt'"),
        (
            '{"a": 1}',
            "tasks.json must hold a list of rows, got an object: write them as a list, or one on each line of a .jsonl file.",
        ),
    ):
        Path("tasks.json").write_text(content)
        assert said(capsys, *EVAL, *given, "tasks.json").startswith(sentence)


@pytest.mark.parametrize("command", [CHAT, [*CHAT, "--protocol", "webshop"]], ids=["saved", "named"])
def test_a_chat_with_nothing_to_do_is_refused_at_once(capsys, command):
    sentence = said(capsys, *command)
    assert "has the action 'search', but the agent is given nothing that it may do: add --corpus facts" in sentence


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ([*EVAL, "--objectives", "3"], "objectives"),
        ([*EVAL, "--top_k", "2"], "top_k"),
        ([*EVAL, "--keywords"], "keywords"),
        ([*EVAL, "--corpus", "facts"], "corpus"),
        ([*TRAIN, "--passages", "1"], "passages"),
        ([*TRAIN, "--eval_questions", "a.jsonl"], "eval_questions"),
        ([*CHAT, "--top_k", "2"], "top_k"),
    ],
)
def test_what_an_environment_replaces_is_refused(capsys, args, name):
    tasks = [] if args[0] == "chat" else ["--dataset_name", "tasks.jsonl"]
    assert said(capsys, *args, *tasks, "--environment", "a.B") == (
        f"{name} is about questions and their corpus, and environment='a.B' replaces these: leave one out"
    )


def test_training_is_not_tested_on_its_own_tasks(world, capsys):
    given = ["--environment", f"{world}.Echo", "--dataset_name", "tasks.jsonl", "--eval_strategy", "steps"]
    sentence = "eval_strategy='steps' needs tasks that are not trained on: give their file with --eval_dataset_name"
    assert said(capsys, *TRAIN, *given) == sentence
    assert said(capsys, *TRAIN, *given, "--eval_dataset_name", "nowhere.jsonl") == (
        "There is no file nowhere.jsonl: check the path."
    )
    assert said(capsys, *TRAIN, "--eval_dataset_name", "a.jsonl").startswith("eval_dataset_name needs environment")


def test_a_run_that_cannot_go_on_ends_in_one_sentence(world, capsys):
    Path("broken.jsonl").write_text('{"prompt": "q", "worth": null}\n' * 2)
    given = ["--environment", f"{world}.Echo", "--dataset_name", "broken.jsonl", "--per_device_train_batch_size", "2",
             "--max_completion_length", "16", "--max_turns", "1", "--output_dir", "a run"]  # fmt: skip
    assert main([*TRAIN, *given]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("mem1 train: The environment started none of the 2 episodes of the first batch: correct it")
    assert "no worth" in last


@pytest.mark.slow
def test_the_command_that_training_names_runs(world, capsys):
    (code,) = {main([*TRAIN, "--environment", f"{world}.Echo", "--dataset_name", "tasks.jsonl", "--eval_dataset_name", "tasks.jsonl",
                     "--eval_strategy", "steps", "--eval_steps", "1", "--per_device_train_batch_size", "2", "--use_peft", "true",
                     "--max_completion_length", "16", "--max_turns", "1", "--output_dir", "a run"])}  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0 and "evaluation after step 1: reward 0.500" in printed
    command = re.search("`mem1 (eval [^`]*)`", printed)[1]
    assert command == (f"eval --model_name_or_path 'a run' --environment {world}.Echo --dataset_name tasks.jsonl")
    assert main(shlex.split(command)) == 0
    assert (
        json.loads(Path("runs/eval/evaluation/a-run.json").read_text())["agent"] == "a run"
    )  # not that of the model below


STEPS = ["--eval_strategy", "steps", "--eval_steps", "1"]


@pytest.mark.parametrize(
    ("args", "command"),
    [
        ([], "`mem1 eval --model_name_or_path o` tests it on more objectives"),
        (["--keywords", "true", "--objectives", "3", "--passages", "1"],
         "`mem1 eval --model_name_or_path o --keywords true` tests it on more objectives"),
        (["--questions", "q.jsonl", "--question_column", "the question", "--corpus", "c", "--corpus_text", "t"],
         "`mem1 eval --model_name_or_path o --corpus c --corpus_text t --question_column 'the question' --questions q.jsonl` tests it on "
         "more objectives, on what it was trained on"),
        (["--questions", "q.jsonl", "--eval_questions", "e.jsonl", *STEPS],
         "`mem1 eval --model_name_or_path o --questions e.jsonl` tests it on more objectives"),
        (["--questions", "me/asked", "--eval_split", "dev", *STEPS],
         "`mem1 eval --model_name_or_path o --questions me/asked --split dev` tests it on more objectives"),
        (["--environment", "a.B", "--dataset_name", "t.jsonl"],
         "`mem1 eval --model_name_or_path o --environment a.B --dataset_name t.jsonl` tests it, on what it was trained on"),
        (["--environment", "a.B", "--dataset_name", "t.jsonl", "--eval_dataset_name", "e.jsonl", *STEPS],
         "`mem1 eval --model_name_or_path o --environment a.B --dataset_name e.jsonl` tests it"),
    ],
)  # fmt: skip
def test_training_names_the_command_that_tests_it(args, command):
    options, _, _ = read([*TRAIN[1:], *args])
    assert how_to_evaluate(options, "o") == command
