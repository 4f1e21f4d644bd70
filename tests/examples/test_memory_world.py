"""The world in which what to keep must be learned: its tasks, lessons and controls, and every stage in short form."""

from __future__ import annotations

import importlib
import json
import random
from types import SimpleNamespace

import pytest
from support.example_modules import EXAMPLES, importing_from

from mem1_trl import StopReason, Trajectory, Turn

FOLDER = EXAMPLES / "memory_world"
MODULES = ("world", "warm_up", "agents", "train", "imitate", "run_all", "write_results", "credit_curves")


@pytest.fixture(scope="module")
def modules():
    """The example's modules, whose plain names other examples use, too."""
    with importing_from(FOLDER, EXAMPLES):
        yield {name: importlib.import_module(name) for name in MODULES}


@pytest.fixture(scope="module")
def world(modules):
    return modules["world"]


@pytest.mark.parametrize("level", ["choose", "evict", "carry", "cue"])
def test_each_slot_has_one_right_row_and_others(world, level):
    rng = random.Random(0)
    for _ in range(50):
        task = world.draw_task(rng, level, 3, world.ASKED)
        rows = [row for passage in task.passages for row in passage]
        assert len({value for _, _, value in rows}) == len(rows), "a value tells its row"
        slots = [row[0] for row in task.wanted]
        assert len(set(slots)) == 3 and slots == sorted(slots) and set(slots) <= set(world.SLOTS)
        offered = [sum(row[0] == slot for row in rows) for slot in slots]
        assert offered == ([3, 3, 3] if level == "evict" else [4, 4, 4])
        assert task.kind in world.ASKED and (task.kind in task.observations[0] or level == "evict")
        assert (task.topic == "go") is (level in ("carry", "cue"))
        assert task.observations[-1][-1] == "end"


def test_the_right_row_stands_anywhere(world):
    """Otherwise the habit of the start would be worth more, or less, than chance."""
    rng = random.Random(1)
    drawn = [world.draw_task(rng, "choose", 3) for _ in range(400)]
    places = [[row[1] for row in passage].index(task.kind) for task in drawn for passage in task.passages]
    assert all(0.2 < places.count(at) / len(places) < 0.3 for at in range(4))


def test_an_exercise_in_reading_asks_for_rows_of_the_passage_only(modules, world):
    """Each answer is the row of the kind in the prompt, or of the one behind the question mark; the state is not in it."""
    lessons = modules["warm_up"].Lessons(world.build_tokenizer(), 0)
    words = {number: word for word, number in lessons.ids.items()}
    for _ in range(50):
        ids, trained = lessons.reading()
        text = [words[i] for i in ids]
        end = text.index("</information>")
        passage = [tuple(text[at : at + 3]) for at in range(4, end, 3)]
        assert "<think>" not in text and not any(trained[: end + 1]) and sum(trained) == 9
        for at in [i for i, word in enumerate(text) if word == "?"]:
            kind, start = (text[at + 1], at + 3) if text[at + 2] == "," else (text[1], at + 1)
            assert all(trained[start : start + 3]) and tuple(text[start : start + 3]) in passage
            assert text[start + 1] == kind


def test_an_exercise_in_reading_marks_asks_for_any_of_them(modules, world):
    """Each answer stands behind the mark that is asked for; both marks are asked for alike, and no state is in it."""
    lessons = modules["warm_up"].Lessons(world.build_tokenizer(), 0)
    words = {number: word for word, number in lessons.ids.items()}
    asked = []
    for _ in range(200):
        ids, trained = lessons.reading_marks()
        text = [words[i] for i in ids]
        end = text.index("</information>")
        marks = dict(zip(text[5:end:2], text[4:end:2]))
        assert list(marks.values()).count("!") == 1 and "<think>" not in text and sum(trained) == 3
        for at in range(end + 1, len(text), 3):
            question, mark, answer = text[at : at + 3]
            assert question == "?" and marks[answer] == mark and trained[at : at + 3] == [False, False, True]
            asked.append(mark)
    assert asked.count("!") / len(asked) == pytest.approx(0.5, abs=0.07)


def test_the_reward_by_hand(world):
    wanted = ["1 red gix", "2 red goran"]
    assert world.right_rows("1 red gix 2 red goran", wanted) == 2
    assert world.right_rows("1 red gix 2 blue goran", wanted) == 1
    assert world.right_rows("1 red gix 2 red goran 3 red x", wanted) == 0, "a list of everything earns nothing"
    assert world.right_rows("1 red gix", wanted) == world.right_rows(None, wanted) == 0
    episode = world.Passages()
    episode.reset("red", ["a", "b"], wanted)
    assert [episode.search("more") for _ in range(3)] == ["a", "b", "."]
    episode.answer("1 red gix 2 red x")
    assert episode.done and episode.get_reward() == 0.5


def test_held_out_kinds_are_never_asked_for_in_training(modules, world):
    assert not set(world.ASKED) & set(world.HELD_OUT)
    trained = modules["train"].curriculum(200, 0)
    assert not set(trained["kind"]) & set(world.HELD_OUT)
    levels = trained["level"]
    assert set(levels[:40]) == {"choose"} and set(levels[40:64]) == {"choose", "carry"}
    assert set(levels[64:114]) == {"choose", "carry", "cue"} and set(levels[114:]) == {"choose", "evict", "cue"}
    shown = {word for row in trained["observations"] for text in row for word in text.split()}
    assert not shown & set(world.HELD_OUT), "what is never right would be learned to be wrong"


def test_what_is_kept_is_counted_by_need_and_by_age(modules, tmp_path):
    log = modules["train"].MemoryLog(tmp_path / "memory.jsonl")
    turn = Turn((1,), (2,), state="red ; 1 red gix 2 blue pelan")
    shown = ["! red , blue", "1 red gix 1 blue goran", "2 blue pelan 2 red x end"]
    needed = ["1 red gix", "2 red x"]
    played = [Trajectory((turn,)), Trajectory((), stop_reason=StopReason.ERROR)]
    state = SimpleNamespace(global_step=7)
    given = log(
        prompts=["go", "red"], trajectories=played, observations=[shown, shown[1:]], wanted=[needed] * 2,
        level=["cue", "choose"], trainer_state=state, kind=["red"] * 2,
    )  # fmt: skip
    assert given == [None, None], "it rewards nothing"
    record = json.loads((tmp_path / "memory.jsonl").read_text())
    assert record["step"] == 7
    assert record["kept"] == {
        "cue other 1": [1, 1], "cue needed 1": [0, 1], "cue needed 2": [1, 1], "cue other 2": [0, 1],
        "choose other 1": [0, 1], "choose needed 1": [0, 1], "choose needed 2": [0, 1], "choose other 2": [0, 1],
    }  # fmt: skip


def write_run(folder, rows):
    """A training that keeps so many of ten needed rows of `choose` in each step."""
    folder.mkdir()
    for step, held in enumerate(rows, start=1):
        with (folder / "training.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "reward": 0.5}) + "\n")
        kept = {"choose needed 1": [held, 4], "choose needed 2": [0, 6], "choose other 1": [9, 9]}
        with (folder / "memory.jsonl").open("a") as file:
            file.write(json.dumps({"step": step - 1, "kept": kept}) + "\n")


def test_kinds_of_credit_are_compared_at_equal_steps(modules, tmp_path):
    """By hand: 100 steps, whose phases end at 20, 32, 57 and 100; the last 25 steps of each count, and only if the run has come so far."""
    curves = modules["credit_curves"]
    assert curves.boundaries(100) == [20, 32, 57, 100]
    assert curves.columns(450) == [
        ("choose", 144), ("choose", 256), ("cue", 256), ("choose", 450), ("evict", 450), ("cue", 450),
    ]  # fmt: skip
    write_run(tmp_path / "grpo-seed0", [0] * 32 + [4] * 25 + [2] * 43)
    write_run(tmp_path / "grpo-seed1", [1] * 40)
    write_run(tmp_path / "ppo-turn-seed2", [3] * 31)
    record = curves.compare_credit(curves.read_runs(tmp_path), 100)
    assert record == {
        "grpo": {"choose-32": {0: 0.0, 1: 0.1}, "choose-57": {0: 0.4}, "choose-100": {0: 0.2}},
    }, "seed 1 stopped at 40, and the run of PPO before the first comparison"
    table = curves.credit_table(record, 100).splitlines()
    assert table[0].startswith("| advantages of | seeds | choose, steps 8 to 32 | choose, steps 33 to 57 | cue, ")
    assert table[2:] == ["| GRPO, episodes | 0, 1 | 0.05 (0.00, 0.10) | 0.40 (0.40) |  | 0.20 (0.20) |  |  |"]


def test_the_lessons_teach_a_habit_and_not_the_rule(modules, world):
    """What is kept is the last row as often as the habit says, and the needed one as often as chance."""
    lessons = modules["warm_up"].Lessons(world.build_tokenizer(), 0)
    habit = modules["warm_up"].HABIT
    last = needed = count = 0
    for _ in range(1500):
        task = world.draw_task(lessons.rng, "choose", 3)
        _, rows = lessons.states(task, [habit] * 3)[-1]
        for passage, row in zip(task.passages, rows, strict=True):
            last += row == passage[-1]
            needed += row[1] == task.kind
            count += 1
    assert last / count == pytest.approx(habit + (1 - habit) / 4, abs=0.03)
    assert needed / count == pytest.approx(1 / 4, abs=0.03)


def test_only_what_the_model_writes_is_trained(modules, world):
    tokenizer = world.build_tokenizer()
    lessons = modules["warm_up"].Lessons(tokenizer, 1)
    for draw in (lessons.turn, lessons.history):
        for _ in range(30):
            ids, trained = draw()
            text = tokenizer.decode([i for i, flag in zip(ids, trained) if flag])
            read = tokenizer.decode([i for i, flag in zip(ids, trained) if not flag])
            assert text.startswith("<think>") and text.endswith(("</search>", "</answer>"))
            assert "<information>" not in text and read.startswith("/")


def episode(reward, prompt=1):
    return Trajectory((Turn((prompt,), (2,)),), reward=reward, stop_reason=StopReason.ANSWER)


def test_what_is_imitated(modules):
    choose = modules["imitate"].choose
    played = [episode(r) for r in (1.0, 0.0, 0.0, 0.0, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1.0, 1.0, 0.0, 2 / 3)]
    assert [t.reward for t in choose("success", played, 4, 0)] == [1.0, 1.0, 1.0]
    assert sorted(t.reward for t in choose("quartile", played, 4, 0)) == [1.0, 1.0, 1.0]
    assert len(choose("quartile", [episode(0.5)] * 8, 4, 0)) == 2
    # A task whose episodes are all alike says nothing
    chosen = choose("best_of_group", played, 4, 0)
    assert [[t is one for one in played].index(True) for t in chosen] == [0, 8, 9]


def test_memory_scores_by_hand(modules):
    topic, rows = modules["agents"].state_rows("red ; 1 red gix 2 blue fob")
    assert (topic, rows) == ("red", {"1 red gix", "2 blue fob"})
    assert modules["agents"].state_rows(None) == ("", set())


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [
        ("grpo-stitched", {"layout": "paper", "num_generations": 16}),
        ("grpo-turn", {"advantage_level": "turn", "gamma": 1.0, "lam": 0.9}),
        ("grpo-state", {"advantage_level": "state"}),
        ("ppo-token", {"advantage_level": "token", "gamma": 1.0, "lam": 1.0, "kl_in_reward": False, "beta": 0.04}),
        ("ppo-discounted", {"advantage_level": "token", "gamma": 0.99, "lam": 0.9}),
        ("ppo-turn", {"advantage_level": "turn", "gamma": 0.99, "lam": 0.9}),
        ("ppo-two-level", {"advantage_level": "two_level", "gamma": 0.99, "lam": 0.9}),
    ],
)
def test_a_stage_trains_with_what_its_name_says(modules, monkeypatch, tmp_path, stage, wanted):
    run_all, train = modules["run_all"], modules["train"]
    options = {**run_all.ABLATIONS, **run_all.CREDIT}[stage]
    monkeypatch.setattr("sys.argv", ["train.py", "--start", "start", "--output_dir", str(tmp_path), *options])
    config = train.configuration(train.parse_arguments())
    assert {name: getattr(config, name) for name in wanted} == wanted


@pytest.mark.slow
def test_every_stage_in_short_form(modules, fork_server, tmp_path):
    options = [
        "--short",
        "--output_dir",
        str(tmp_path),
        "--stages",
        "start",
        "grpo",
        "quartile",
        "scalar",
        "twin",
        "ppo-turn",
    ]
    cut = fork_server.run(FOLDER / "run_all.py", *options, "--minutes", "0")
    assert cut.returncode == 3, cut.stderr[-2000:]  # the time was up
    done = fork_server.run(FOLDER / "run_all.py", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    for label in ("start", "grpo", "quartile", "scalar", "twin-start", "twin", "ppo-turn"):
        cells = list((tmp_path / f"{label}-seed0" / "evaluation").glob("*.json"))
        assert len(cells) == len(modules["agents"].CELLS), label
    assert json.loads((tmp_path / "grpo-seed0" / "done.json").read_text())["steps"] == 2
    page = fork_server.run(FOLDER / "write_results.py", str(tmp_path), "--to", str(tmp_path / "page"))
    assert page.returncode == 0, page.stderr[-3000:]
    text = (tmp_path / "page" / "RESULTS.md").read_text()
    assert (
        "Not run: imitation of successes, imitation of the best of each group, GRPO, embeddings trained, too, GRPO, no level `carry` in training"
        in text
    )
    results = json.loads((tmp_path / "page" / "results.json").read_text())
    cell = json.loads((tmp_path / "grpo-seed0" / "evaluation" / "choose-3-asked-t0.json").read_text())
    assert results["cells"]["grpo"]["choose-3-asked-t0"]["kept"]["mean"] == pytest.approx(
        cell["metrics"]["kept"]["mean"]
    )
    assert {path.name for path in (tmp_path / "page").glob("*.png")} == {
        "agents.png", "credit.png", "memory.png", "reward.png",
    }  # fmt: skip
    again = fork_server.run(FOLDER / "run_all.py", *options)
    assert again.returncode == 0 and "success" not in again.stdout, "nothing is done twice"


@pytest.mark.slow
def test_a_part_of_a_training_is_tested_and_goes_on(modules, fork_server, tmp_path):
    """Stopped and tested after one step, which is not done again; the rest comes with the next call."""
    start = ["--short", "--output_dir", str(tmp_path), "--stages"]
    assert fork_server.run(FOLDER / "run_all.py", *start, "start", "grpo").returncode == 0
    part = [*start, "grpo-state", "--stop_at", "1"]
    assert fork_server.run(FOLDER / "run_all.py", *part).returncode == 0
    run = tmp_path / "grpo-state-seed0"
    assert len(list((run / "at-1" / "evaluation").glob("*.json"))) == len(modules["agents"].CELLS)
    assert not (run / "done.json").exists()
    assert fork_server.run(FOLDER / "run_all.py", *part).returncode == 0
    assert [json.loads(line)["step"] for line in (run / "training.jsonl").read_text().splitlines()] == [1]
    page = fork_server.run(FOLDER / "write_results.py", str(tmp_path), "--to", str(tmp_path / "page"))
    assert page.returncode == 0, page.stderr[-3000:]
    assert "### Tested at step 1" in (tmp_path / "page" / "RESULTS.md").read_text()
    cell = json.loads((run / "at-1" / "evaluation" / "cue-3-held-out-t0.json").read_text())
    parts = json.loads((tmp_path / "page" / "results.json").read_text())["parts"]
    assert parts["1"]["grpo-state"]["cue-3-held-out-t0"]["kept"]["mean"] == cell["metrics"]["kept"]["mean"]
    behind = fork_server.run(FOLDER / "run_all.py", *start, "grpo", "--stop_at", "1")
    assert "--stop_at must be a step after the last checkpoint, 2, and before the end, 2, but is 1" in behind.stderr
    refused = fork_server.run(FOLDER / "run_all.py", *start, "start", "--stop_at", "1")
    assert "--stop_at needs --stages of grpo, " in refused.stderr
    rest = fork_server.run(FOLDER / "run_all.py", *start, "grpo-state")
    assert rest.returncode == 0, rest.stderr[-3000:]
    assert json.loads((run / "done.json").read_text())["steps"] == 2
    assert [json.loads(line)["step"] for line in (run / "training.jsonl").read_text().splitlines()] == [1, 2]
