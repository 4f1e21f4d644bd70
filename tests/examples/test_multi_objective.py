"""The experiment: its world, what its warm-up teaches, the models it ships, and its whole path on a small scale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
ASSETS = EXAMPLES / "assets" / "multi-objective"
sys.path.insert(0, str(EXAMPLES / "multi_objective"))

from warm_up import HASTE, Lessons, build_model, check  # noqa: E402
from world import PROTOCOL, TEST_NAMES, TRAIN_NAMES, World, build_tokenizer  # noqa: E402

from mem1_trl import Mem1Agent  # noqa: E402
from mem1_trl.environments import RetrievalQAEnvironment  # noqa: E402
from mem1_trl.evaluation import evaluate_agent  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def world():
    return World(0)


def test_search_finds_the_passage_and_two_that_mention_its_subject(world):
    environment = RetrievalQAEnvironment.factory(world.corpus, top_k=3)()
    for question, answer in zip(world.test_questions["question"][:50], world.test_questions["answer"][:50]):
        name, attribute = question.split()
        own, *others = environment.search(question).strip().split("\n")
        assert own.startswith(f"Doc 1(Title: {name})") and f"{name} {attribute} {answer}" in own
        assert len(others) == 2 and all(f" {name}" in other for other in others)


def test_held_out_names_are_asked_about_in_the_test_only(world):
    assert not set(TEST_NAMES) & set(TRAIN_NAMES)
    assert {q.split()[0] for q in world.train_questions["question"]} == set(TRAIN_NAMES)
    assert {q.split()[0] for q in world.test_questions["question"]} == set(TEST_NAMES)
    assert len(set(world.test_questions["answer"])) == len(TEST_NAMES)  # so a list of answers repeats none


def test_another_seed_has_other_facts(world):
    again, other = World(0), World(1)
    assert again.corpus["text"] == world.corpus["text"]
    assert set(other.test_questions["answer"][:20]) != set(world.test_questions["answer"][:20])
    tasks = other.test_tasks(16, 30)
    assert len(tasks) == 30 and {len(row["answers"]) for row in tasks} == {16}


def test_one_turn_of_the_demonstrator_follows_from_its_context(tokenizer):
    lessons = Lessons(tokenizer, 0)
    for _ in range(50):
        ids, trained = lessons.turn(0, 5, 3)
        words = tokenizer.decode(ids).split()
        start = trained.index(True)
        assert all(trained[start:]) and not any(trained[:start])
        parsed = PROTOCOL.parse(" ".join(words[start:]), ["search"])
        name, attribute, value, _, *found = parsed.state.split()
        at = [i for i in range(start) if words[i : i + 3] == [name, attribute, value]]
        assert at, "the finding stands in a passage"
        before = words[words.index("|") + 1 :][:2]
        assert found[:3] == [*before, value], "the list is that of the last state and the new finding"
        if parsed.action == "search":
            assert words[words.index(name) + 2 :][:2] == parsed.action_input.split(), "the next question of the task"
        else:
            assert parsed.action_input.split(" ; ") == found[:3], "giving up is answering with what was found"


def test_the_demonstrator_gives_up_as_often_on_any_number_of_objectives(tokenizer):
    lessons = Lessons(tokenizer, 0)
    for n, step in ((2, 1), (16, 1), (16, 12)):
        task = lessons.task(n)
        share = sum(lessons.write(task, step)[1][0] == "<answer>" for _ in range(1000)) / 1000
        assert abs(share - HASTE) < 0.06
        assert lessons.write(task, 0)[1][0] == "<search>" and lessons.write(task, n)[1][0] == "<answer>"


@pytest.mark.parametrize("kind", ["turn", "history"])
def test_held_out_names_are_in_no_question_and_no_passage_of_the_warm_up(tokenizer, kind):
    lessons, held_out = Lessons(tokenizer, 0), set(TEST_NAMES)
    seen = set()
    for _ in range(100):
        words = tokenizer.decode(getattr(lessons, kind)(8)[0]).split()
        seen |= held_out & set(words)
        assert not held_out & set(words[: words.index("<think>")])
        while "<information>" in words:
            start, end = words.index("<information>"), words.index("</information>")
            assert not held_out & set(words[start:end])
            words = words[end + 1 :]
    assert bool(seen) == (kind == "turn")  # single turns have them in the lists that are copied


def test_a_model_that_was_taught_nothing_fails_the_check(tokenizer):
    assert max(check(build_model(tokenizer, 0), tokenizer, "mem1", count=2).values()) == 0.0


def test_assets_are_small_and_of_one_size():
    report = json.loads((ASSETS / "warmup.json").read_text())
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 5_000_000
    assert set(report["models"]) == {"mem1", "full"}


@pytest.mark.parametrize("context", ["mem1", "full"])
def test_warm_models_have_the_skills_and_not_the_patience(world, context):
    factory = RetrievalQAEnvironment.factory(world.corpus, top_k=3)
    agent = Mem1Agent.from_pretrained(
        str(ASSETS / context),
        model_init_kwargs={"dtype": torch.float32},
        context=context,
        max_completion_length=40,
        max_observation_length=120,
    )
    one = evaluate_agent(agent, world.test_tasks(1, 24), factory).metrics
    two = evaluate_agent(agent, world.test_tasks(2, 24), factory).metrics
    assert one["exact_match"] > 0.9
    assert two["exact_match"] < 0.2 and two["turns"] < 2.3  # it gives up after the first finding


@pytest.mark.slow
@pytest.mark.nightly
def test_the_whole_experiment_runs_and_goes_on_where_it_stopped(tmp_path):
    command = [sys.executable, str(EXAMPLES / "multi_objective" / "run.py"), "--smoke", "--output_dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=900, env=environment, capture_output=True)
    text = (tmp_path / "RESULTS.md").read_text()
    for label in ("MEM1 PPO", "MEM1 GRPO", "full history PPO", "MEM1 before RL"):
        assert f"| {label} |" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"em.png", "peak.png", "reward.png"}
    table = json.loads((tmp_path / "results.json").read_text())["table"]
    assert table["MEM1 PPO"]["2"]["peak_tokens"]["mean"] > 50
    record = tmp_path / "mem1-ppo-seed0" / "training.json"
    assert [log["step"] for log in json.loads(record.read_text())["history"] if "reward" in log] == [1, 2]

    (tmp_path / "mem1-ppo-seed0" / "evaluation" / "2.json").unlink()
    written = record.stat().st_mtime_ns
    subprocess.run(command, check=True, timeout=900, env=environment, capture_output=True)
    assert record.stat().st_mtime_ns == written, "a finished run is not trained again"
    assert (tmp_path / "mem1-ppo-seed0" / "evaluation" / "2.json").is_file(), "what is missing is played"

    other = subprocess.run([*command, "--learning_rate", "1"], env=environment, capture_output=True, text=True)
    assert other.returncode and "another learning_rate" in other.stderr
