"""Command lines of the examples: bad numbers are refused at once, and short forms leave alone what was asked for and what is bundled."""

from __future__ import annotations

import argparse
import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
from support.example_modules import EXAMPLES, importing_from

BUNDLED = EXAMPLES / "assets"


@pytest.fixture
def options():
    with importing_from(EXAMPLES):
        yield importlib.import_module("example_options")


@pytest.mark.parametrize(
    ("script", "words", "sentence"),
    [
        ("quickstart.py", "--steps 0", "argument --steps: must be at least 1, got 0"),  # three epochs were trained
        (
            "quickstart.py",
            "--learning_rate 0",
            "argument --learning_rate: must be a number above 0, got 0",
        ),  # the default was taken
        ("quickstart.py", "--batch_size 0", "argument --batch_size: must be at least 1, got 0"),
        ("quickstart.py", "--eval_tasks -3", "argument --eval_tasks: must be at least 1, got -3"),
        ("quickstart.py", "--max_completion_length 0", "argument --max_completion_length: must be at least 1, got 0"),
        ("sft.py", "--learning_rate nan", "argument --learning_rate: must be a number above 0, got nan"),
        ("sft.py", "--tasks 0", "argument --tasks: must be at least 1, got 0"),
        ("context_rules.py", "--tasks 0", "argument --tasks: must be at least 1, got 0"),
        ("memory_world/run_all.py", "--steps 0", "argument --steps: must be at least 1, got 0"),
        ("memory_world/warm_up.py", "--steps 0", "argument --steps: must be at least 1, got 0"),
        ("smollm2/run_all.py", "--tasks 0", "argument --tasks: must be at least 1, got 0"),
        ("smollm2/train.py", "--objectives 0", "argument --objectives: must be at least 1, got 0"),
        ("smollm2/start.py", "--learning_rate 0", "argument --learning_rate: must be a number above 0, got 0"),
        ("multi_objective/run.py", "--group_size 0", "argument --group_size: must be at least 1, got 0"),
        ("multi_objective/warm_up.py", "--steps 0", "argument --steps: must be at least 1, got 0"),
        ("warm_start.py", "--tasks 1.5", "argument --tasks: invalid count value: '1.5'"),
        ("applications/tutor.py", "--train -1", "argument --train: must be at least 1, got -1"),
    ],
)
def test_a_number_that_cannot_be_is_refused_before_anything_is_loaded(script, words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, *words.split()])
    with importing_from((EXAMPLES / script).parent, EXAMPLES), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_short_form_changes_defaults_only(options):
    def read(*words):
        parser = argparse.ArgumentParser()
        parser.add_argument("--steps", type=options.count, default=40)
        parser.add_argument("--output_dir", type=Path, default=Path("runs/whole"))
        parser.add_argument("--smoke", action="store_true")
        found = options.parse(parser, words, smoke={"steps": 2, "output_dir": Path("runs/smoke")})
        return found.steps, str(found.output_dir)

    assert read() == (40, "runs/whole")
    assert read("--smoke") == (2, "runs/smoke")
    assert read("--smoke", "--steps", "5", "--output_dir=elsewhere") == (5, "elsewhere")
    assert read("--steps", "40", "--smoke") == (40, "runs/smoke")


def test_the_short_form_of_multi_objective_writes_where_it_is_told(monkeypatch):
    with importing_from(EXAMPLES / "multi_objective", EXAMPLES):
        run = importlib.import_module("run")
        for words, place in ((["--output_dir=runs/mine"], "runs/mine"), ([], "runs/multi-objective-smoke")):
            monkeypatch.setattr(sys, "argv", ["run.py", "--smoke", *words])
            found = run.parse_arguments()
            assert (str(found.output_dir), found.steps, found.jobs) == (place, 2, 1)


def test_a_short_warm_start_leaves_the_bundled_model_and_other_files_alone(tmp_path, monkeypatch):
    """It wrote a model of ten steps over the bundled one, and emptied whatever folder it was given."""
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in BUNDLED.rglob("*") if path.is_file()}
    with importing_from(EXAMPLES):
        script = importlib.import_module("warm_start")
        monkeypatch.setattr(script, "teach", lambda model, lessons, steps: {"steps": steps})
        monkeypatch.setattr(script, "measure", lambda directory, count: [])
        monkeypatch.setattr(script.torch, "set_num_threads", lambda threads: None)
        monkeypatch.setattr(sys, "argv", ["warm_start.py", "--smoke"])
        script.main()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("all of it")
        monkeypatch.setattr(sys, "argv", ["warm_start.py", "--smoke", "--steps", "3", "--output", "mine"])
        script.main()
    assert json.loads((tmp_path / "runs/warm-start-smoke/warm_start.json").read_text())["steps"] == 10
    assert json.loads((tmp_path / "mine/warm_start.json").read_text())["final_loss_in_nats"] == {"steps": 3}
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    assert (tmp_path / "mine" / "model.safetensors").is_file()
    assert {path: path.stat().st_mtime_ns for path in BUNDLED.rglob("*") if path.is_file()} == before
