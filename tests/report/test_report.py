"""The report: what stood in context, the same numbers as the files, hostile text, and a real browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from support.contexts import next_context

from mem1_trl import StopReason, Trajectory, Turn
from mem1_trl.evaluation.result import EvaluatedTask, Evaluation
from mem1_trl.evaluation.retention import trace_objectives
from mem1_trl.metrics import trajectory_metrics
from mem1_trl.report import build as build_module
from mem1_trl.report import report
from mem1_trl.report.browser import _episode, choose, completion_parts, mean_usage, outcome_of
from mem1_trl.report.page import data_block, digits_of
from mem1_trl.report.plots import retention_curve, told
from mem1_trl.report.run_directory import read_run
from mem1_trl.report.step_plots import running_mean, series_plot
from mem1_trl.turn_usage import turn_usage
from mem1_trl.update.state_value import StateValue

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROMPT = tuple(range(100, 110))
HOSTILE = "</script><img src=x onerror=document.body.setAttribute('data-pwned',1)><!--<script>&amp;\u2028"


def episode(rule: str, turns: int = 3, answer: str = "Paris; Fe", hostile: str = "") -> Trajectory:
    """Each turn writes 4 tokens (3 of state) and reads an observation of 6; token ids never repeat."""
    history, played = [], []
    for number in range(turns):
        completion = tuple(1000 * (number + 1) + i for i in range(4))
        observation = tuple(1000 * (number + 1) + 500 + i for i in range(6))
        last = number == turns - 1
        state = "capital is Paris" if number else "nothing yet"
        tag = "answer" if last else "search"
        said = answer if last else f"query {number}{hostile}"
        played.append(
            Turn(
                prompt_ids=tuple(next_context(rule, PROMPT, history, max_history_length=20)),
                completion_ids=completion,
                text=f"<think>{state}</think><{tag}>{said}</{tag}>",
                observation=None if last else f"<information>Paris is {number}{hostile}</information>",
                observation_tokens=0 if last else 6,
                action=tag,
                action_input=said,
                state=state,
                state_tokens=3,
            )
        )
        history.append((*completion, *observation))
    return Trajectory(played, answer=answer)


def evaluated(index: int, trajectory: Trajectory, exact_match: float, hostile: str = "", error: str | None = None):
    answers = [["Paris"], ["Fe"]]
    scores = trajectory_metrics(trajectory) if trajectory.turns else {}
    scores |= {"exact_match": exact_match, "exact_match_per_objective": exact_match / 2, "seconds": 0.5 + index}
    return EvaluatedTask(
        index=index,
        task={"prompt": "capital; symbol" + hostile, "questions": ["capital" + hostile, "symbol"], "answers": answers},
        prompt_text="capital; symbol" + hostile,
        trajectory=trajectory,
        scores=scores,
        objectives_detail=() if error else tuple(trace_objectives(trajectory, answers)),
        error=error,
        memory_values=tuple(StateValue(n + 1, 1.25 + n, 0.5, 2.75) for n in range(len(trajectory.turns) - 1))
        + (None,),
    )


def write_run(root: Path, hostile: str = "") -> Path:
    """Two agents, one of them hostile, on 2 and 4 objectives, and a training log."""
    for agent, rule in (("MEM1" + hostile, "mem1"), ("Full history", "full")):
        for n, length in ((2, 3), (4, 5)):
            tasks = [
                evaluated(0, episode(rule, length, hostile=hostile), 2.0, hostile),
                evaluated(1, episode(rule, length, "Rome; Fe" + hostile, hostile), 1.0, hostile),
                evaluated(2, episode(rule, length, "Rome", hostile), 0.0, hostile),
                evaluated(
                    3, Trajectory([], stop_reason=StopReason.ERROR), 0.0, hostile, "OSError: no index" + hostile
                ),
            ]
            evaluation = Evaluation.from_tasks(tasks, agent, {"context": rule, "model": hostile}, resamples=50)
            summary = evaluation.save(root / rule / "evaluation", f"{rule}-{n}")
            content = json.loads(summary.read_text())
            summary.write_text(json.dumps(content | {"objectives": n}))
    history = [
        {"step": i, "reward": i / 10, "value/loss": 1 / i, "value/explained_variance": 0.5} for i in range(1, 21)
    ]
    for checkpoint, logged in (("checkpoint-9", 9), ("checkpoint-20", 20)):
        state = root / "mem1" / checkpoint / "trainer_state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"global_step": logged, "log_history": history[:logged]}))
    return root


class Page(HTMLParser):
    """What a browser's parser makes of the page: elements, attributes, and the text of scripts and tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.rows: list[tuple[str, dict[str, str], dict]] = []
        self.table = self.metric = self.number = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag == "script":
            self.scripts.append((attributes, ""))
        elif tag == "table":
            self.table = attributes.get("id")
        elif tag == "tr" and "data-agent" in attributes:
            self.rows.append((self.table, attributes, {}))
        elif tag == "td":
            self.metric = attributes.get("data-metric")
        elif tag == "data" and self.metric:
            self.number = attributes["class"]
            self.rows[-1][2][self.metric, self.number] = [float(attributes["value"]), ""]

    def handle_endtag(self, tag):
        if tag == "data":
            self.number = None

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif self.number:
            self.rows[-1][2][self.metric, self.number][1] += data


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return report(write_run(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return report(write_run(tmp_path_factory.mktemp("hostile"), HOSTILE), max_trajectories=3)


# What stood in context


def test_mem1_keeps_the_last_turn_only():
    third = turn_usage(episode("mem1"))[2]
    assert (third.prompt, third.state, third.action, third.observation, third.other) == (10, 3, 1, 6, 0)
    assert (third.kept, third.dropped, third.dropped_tokens) == ((1,), (0,), 10)
    assert (third.new_state, third.new_action, third.context) == (3, 1, 20)


def test_a_full_history_drops_nothing():
    third = turn_usage(episode("full"))[2]
    assert (third.state, third.action, third.observation, third.other) == (6, 2, 12, 0)
    assert (third.kept, third.dropped, third.dropped_tokens) == ((0, 1), (), 0)


def test_a_truncated_history_drops_whole_turns():
    usages = turn_usage(episode("truncate", turns=5))  # room for two turns of 10 tokens
    assert [usage.kept for usage in usages] == [(), (0,), (0, 1), (1, 2), (2, 3)]
    assert [usage.dropped_tokens for usage in usages] == [0, 0, 0, 10, 20]


def test_scratch_that_is_not_carried_on_counts_as_dropped():
    first, second, _ = episode("mem1").turns
    carried = PROMPT + (900, 901, 902) + second.prompt_ids[-6:]  # 3 tokens written anew in place of 4
    shortened = Turn(prompt_ids=carried, completion_ids=second.completion_ids, state_tokens=3)
    usage = turn_usage(Trajectory([first, shortened]))[1]
    assert (usage.state, usage.action, usage.observation, usage.kept) == (3, 0, 6, (0,))
    assert usage.dropped_tokens == 1


def test_what_an_external_memory_puts_back_is_told_apart():
    *_, third = episode("mem1").turns
    memory = (7001, 7002, 7003, 7004)
    for body in (memory + third.prompt_ids[10:], third.prompt_ids[10:] + memory):
        turns = [*episode("mem1").turns[:2], Turn(prompt_ids=PROMPT + body, completion_ids=(1,))]
        usage = turn_usage(Trajectory(turns))[2]
        assert (usage.other, usage.observation, usage.kept, usage.dropped) == (4, 6, (1,), (0,))


def test_mean_usage_is_over_the_episodes_that_reached_the_turn():
    short, long = turn_usage(episode("full", turns=1)), turn_usage(episode("full", turns=2))
    first, second = mean_usage([short, long])
    assert (first["episodes"], first["prompt"], first["generated"], first["observation"]) == (2, 10, 4, 0)
    assert (second["episodes"], second["state"], second["observation"]) == (1, 3, 6)


# What is shown of an episode


@pytest.mark.parametrize(
    ("turn", "kinds"),
    [
        (("<think> a </think>\n<search>b</search>", "a", "search", "b"), ["state", "text", "action"]),
        (("so <think>a</think><search>b", "a", None, None), ["text", "state", "text"]),
        (("<search>b</search> and <think>a</think>", None, "search", "b"), ["action", "text"]),
        (("(.*)<IS>(.*)</IS><query>[</query>", "(.*)", "query", "["), ["text", "state", "action"]),
        (("no tags", None, None, None), ["text"]),
    ],
)
def test_parts_of_a_completion_join_to_its_text(turn, kinds):
    parts = completion_parts(*turn)
    assert "".join(text for _, text in parts) == turn[0]
    assert [kind for kind, _ in parts] == kinds


def test_kinds_of_episodes():
    details = [{"correct": True}, {"correct": False}]
    assert outcome_of({"scores": {"exact_match": 2.0}, "objectives_detail": details}) == "right"
    assert outcome_of({"scores": {"exact_match": 1.0}, "objectives_detail": details}) == "partly"
    assert outcome_of({"scores": {"exact_match": 0.0}, "objectives_detail": [{"correct": False}]}) == "wrong"
    assert outcome_of({"scores": {"exact_match": 2.0}, "objectives_detail": details, "error": "x"}) == "error"
    assert outcome_of({"scores": {}, "objectives_detail": []}) == "unscored"
    assert outcome_of({"scores": {"success": 1.0}, "objectives_detail": []}) == "right"
    assert outcome_of({"scores": {"success": 0.0}, "objectives_detail": []}) == "wrong"
    # A success that the caller defined
    assert outcome_of({"scores": {"exact_match": 0.0, "success": 1.0}, "objectives_detail": details}) == "right"


@pytest.mark.parametrize("questions", [3, "Who won?", {"a": 1}])
def test_a_column_of_questions_that_means_something_else_is_passed_over(tmp_path, questions):
    task = EvaluatedTask(
        0, {"prompt": "the task", "questions": questions}, "the task", episode("mem1"), {"reward": 1.0}
    )
    Evaluation.from_tasks([task], "A").save(tmp_path / "evaluation", "a")
    assert _episode({"task": task.task}, "right", 0)["title"] == "the task"
    assert "the task" in report(tmp_path).read_text()


def test_the_choice_starts_with_the_first_and_finds_the_rare():
    kinds = ["right"] * 50 + ["wrong"] + ["right"] * 40 + ["error"] + ["right"] * 8
    assert choose(kinds, 6) == [0, 1, 2, 3, 50, 91]
    assert choose(["right"] * 4 + ["wrong"], 2) == [0, 4]
    assert choose(kinds, 1000) == list(range(100))
    assert choose(kinds, 0) == choose([], 5) == []


def test_running_mean_is_over_a_tenth():
    assert running_mean([1.0, 3.0]) == [1.0, 3.0]
    assert running_mean([float(i) for i in range(20)])[:3] == [0.0, 0.5, 1.5]


# Reading a run


def test_a_run_is_read_whole(tmp_path):
    run = read_run(write_run(tmp_path))
    assert run.agents == ["Full history", "MEM1"]
    assert run.objectives == [2, 4]
    assert [(r.agent, r.objectives) for r in run.results] == [
        ("Full history", 2), ("MEM1", 2), ("Full history", 4), ("MEM1", 4)
    ]  # fmt: skip
    [log] = run.logs  # the newest checkpoint, named after the agent that was evaluated beside it
    assert log.label == "MEM1"
    assert log.series("reward")[0] == list(range(1, 21))
    assert log.series("absent") == ([], [])


def test_seeds_of_one_agent_are_told_apart(tmp_path):
    for seed in ("seed0", "seed1"):
        tasks = [evaluated(0, episode("mem1"), 2.0)]
        Evaluation.from_tasks(tasks, "MEM1", resamples=10).save(tmp_path / seed / "evaluation", "mem1-2")
    assert read_run(tmp_path).agents == ["MEM1 (seed0)", "MEM1 (seed1)"]


def test_retention_of_several_evaluations_is_weighted_by_cases(tmp_path):
    run = read_run(write_run(tmp_path))
    for result in run.results:
        points = (
            [{"age": 1, "kept": 1.0, "count": 1}] if result.objectives == 2 else [{"age": 1, "kept": 0.5, "count": 3}]
        )
        result.summary["retention"] = points
    assert retention_curve(run, "MEM1") == [(1, 0.625, 4)]


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds neither evaluation"):
        read_run(tmp_path)
    file = tmp_path / "evaluation" / "a.json"
    file.parent.mkdir()
    whole = {"format": 1, "name": "a", "agent": "a", "objectives": 1, "count": 1}
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object, got a list"),
        (json.dumps({"format": 2, "metrics": {}}), "has format 2"),
        (json.dumps({"format": 1, "metrics": {}}), "lacks 'name', 'agent'"),
        (json.dumps(whole | {"metrics": [1.0]}), "must have the numbers mean, low, high of metrics"),
        (json.dumps(whole | {"metrics": {"f1": {"mean": 1.0, "low": None}}}), "the numbers mean, low, high of f1"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path)
    file.unlink()
    log = tmp_path / "trainer_state.json"
    for history in ({"reward": 1.0}, ["step 1"]):
        log.write_text(json.dumps({"log_history": history}))
        with pytest.raises(ValueError, match="must have a list of entries as 'log_history'"):
            report(tmp_path)
    with pytest.raises(ValueError, match="max_trajectories must be at least 0, got -1"):
        report(tmp_path, max_trajectories=-1)


def test_a_checkpoint_that_was_cut_off_leaves_the_log_before_it(tmp_path, caplog):
    root = write_run(tmp_path)
    cut = root / "mem1" / "checkpoint-30" / "trainer_state.json"
    cut.parent.mkdir()
    cut.write_text('{"global_step": 30, "log_his')
    [log] = read_run(root).logs
    assert log.path.parent.name == "checkpoint-20" and len(log.history) == 20
    assert str(cut) in caplog.text and "the curves of training are those of" in caplog.text
    for whole in ("checkpoint-9", "checkpoint-20"):
        (root / "mem1" / whole / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-30.*is not JSON"):
        read_run(root)


def test_a_line_that_was_cut_off_is_said(tmp_path):
    root = write_run(tmp_path)
    file = root / "full" / "evaluation" / "full-2.jsonl"
    file.write_text(file.read_text()[:-40])
    with pytest.raises(ValueError, match=r"Line 4 of .*full-2\.jsonl is not JSON"):
        report(root)


# The page


def test_the_page_shows_the_numbers_of_the_files(plain):
    rows = {}
    for _, attributes, cells in Page(plain.read_text()).rows:
        rows.setdefault((attributes["data-agent"], attributes["data-objectives"]), {}).update(cells)
    files = sorted(plain.parents[1].glob("*/evaluation/*.json"))
    assert len(files) == len(rows) == 4
    for file in files:
        summary = json.loads(file.read_text())
        cells = rows[summary["agent"], str(summary["objectives"])]
        for metric, numbers in summary["metrics"].items():
            for key in ("mean", "low", "high"):
                value, text = cells[metric, key]
                assert value == numbers[key]
                shown = text.replace(",", "")
                assert abs(float(shown) - value) <= 0.5 * 10 ** -len(shown.partition(".")[2]) + 1e-9, (metric, text)
        assert len(cells) == 3 * len(summary["metrics"])


def test_large_numbers_are_told_without_a_power_of_ten():
    assert [told(value) for value in (12345.6, 0.12345, 999.0, -2000.0)] == ["12346", "0.123", "999", "-2000"]


@pytest.mark.parametrize(
    ("column", "digits"),
    [
        ([], 2),
        ([0.0], 2),
        ([99.9, 0.001], 2),
        ([-100.0], 1),
        ([1e6], 0),
        ([0.1], 2),
        ([0.034, -0.002], 3),
        ([1e-9], 6),
    ],
)
def test_a_column_has_as_many_digits_as_it_needs(column, digits):
    assert digits_of(column) == digits


def test_each_state_has_its_worth_beside_it(plain):
    blocks = {a["id"]: json.loads(text) for a, text in Page(plain.read_text()).scripts if "id" in a}
    turns = [one["turns"] for one in blocks["episodes-0"] if one["turns"]]
    assert turns and all(turn["worth"]["next_turn"] == 1.25 + n for own in turns for n, turn in enumerate(own[:-1]))
    assert all(own[-1]["worth"] is None for own in turns)


def test_plots_lie_beside_the_page_and_in_it(plain):
    text = plain.read_text()
    names = {path.stem for path in plain.parent.glob("*.png")}
    assert names == {
        "exact_match", "exact_match_per_objective", "peak_tokens", "peak_tokens_without_prompt", "retention",
        "failures-mem1", "failures-full-history", "tokens-mem1", "tokens-full-history", "reward", "value_loss",
        "explained_variance",
    }  # fmt: skip
    for name in names:
        assert base64.b64encode((plain.parent / f"{name}.png").read_bytes()).decode() in text


def test_the_pictures_are_told_in_words(plain):
    alts = [attributes["alt"] for tag, attributes in Page(plain.read_text()).elements if tag == "img"]
    assert any(
        "Full history: 2: 34, 4: 54" in alt or re.search(r"Full history: 2: [\d.]+, 4: [\d.]+", alt) for alt in alts
    )
    assert all(len(alt) > 40 for alt in alts)


def test_two_reports_are_the_same(plain, tmp_path):
    again = report(plain.parents[1], tmp_path / "again.html")
    assert again.read_bytes() == plain.read_bytes()
    assert (tmp_path / "reward.png").read_bytes() == (plain.parent / "reward.png").read_bytes()


def test_nothing_is_loaded_and_only_our_script_runs(hostile):
    page = Page(hostile.read_text())
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), tag
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    [policy] = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    code = [text for attributes, text in page.scripts if not attributes]
    assert len(code) == 1
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_hostile_text_stays_text(hostile):
    page = Page(hostile.read_text())
    assert not [a for tag, a in page.elements if tag == "img" and not a["src"].startswith("data:")]
    blocks = {a["id"]: json.loads(text) for a, text in page.scripts if a}
    assert set(blocks) == {"episodes-index", "episodes-0", "episodes-1", "episodes-2", "episodes-3"}
    [number] = [i for i, f in enumerate(blocks["episodes-index"]) if HOSTILE in f["agent"] and f["objectives"] == 2]
    first = blocks[f"episodes-{number}"][0]
    assert first["prompt"] == "capital; symbol" + HOSTILE
    assert first["turns"][0]["observation"] == f"<information>Paris is 0{HOSTILE}</information>"


def test_json_in_the_page_holds_no_markup():
    block = data_block("x", ["</script>", "<!--", "\u2029", 'say "hi"\\'])
    inner = block.removeprefix('<script type="application/json" id="x">').removesuffix("</script>")
    assert not re.search("[<>&\u2028\u2029]", inner)
    assert json.loads(inner) == ["</script>", "<!--", "\u2029", 'say "hi"\\']


def test_what_is_left_out_is_said(hostile):
    blocks = {a["id"]: json.loads(text) for a, text in Page(hostile.read_text()).scripts if a}
    for number, file in enumerate(blocks["episodes-index"]):
        assert (file["total"], len(blocks[f"episodes-{number}"])) == (4, 3)
        assert file["kinds"] == {"error": 1, "wrong": 1, "partly": 1, "right": 1}
        assert file["source"].endswith(f"-{file['objectives']}.jsonl")


def test_a_page_that_would_grow_too_large_shows_fewer_episodes(tmp_path, monkeypatch):
    run = read_run(write_run(tmp_path))
    whole, _ = build_module._read_episodes(run, 50)
    monkeypatch.setattr(build_module, "MAX_EPISODE_BYTES", len(json.dumps(whole)) // 2)
    blocks, usage = build_module._read_episodes(run, 50)
    assert {len(block["episodes"]) for block in blocks} <= {1, 2}
    assert {block["total"] for block in blocks} == {4}
    assert usage["MEM1", 2][0]["episodes"] == 3  # the mean is over all that were played


def test_a_training_log_alone_makes_a_report(tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "reward": 0.5}]}))
    page = report(tmp_path, tmp_path / "page.html")
    assert page == tmp_path / "page.html"
    assert [path.stem for path in tmp_path.glob("*.png")] == ["reward"]
    assert "episodes-index" not in {a.get("id") for _, a in Page(page.read_text()).elements}


@pytest.mark.skipif(NODE is None, reason="needs node")
@pytest.mark.parametrize(
    ("golds", "text", "expected"),
    [
        (["Jean-Luc", "No"], "Jean-Luc said: no, not Jeanne, nor Noah.", ["Jean-Luc", "no"]),
        (["-5", "C++ (2011)"], "at -5 degrees, 15 miles; C++ (2011)", ["-5", "C++ (2011)"]),
        (["-"], "abc", []),
        (["Łódź"], "łódź, Łódźa", ["łódź"]),
    ],
)
def test_right_answers_are_marked_as_whole_words(golds, text, expected):
    script = (Path(build_module.__file__).parent / "page.js").read_text()
    pattern = script[script.index("const goldPattern") : script.index("const marked")]
    asked = json.dumps([{"objectives": [{"gold": golds}]}, text])
    command = f"{pattern} const [episode, text] = {asked}; console.log(JSON.stringify(text.match(goldPattern(episode)) ?? []));"
    done = subprocess.run([NODE, "-e", command], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


# A real browser


def dump_dom(page: Path, anchor: str, tmp_path: Path) -> tuple[str, str]:
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        f"--user-data-dir={tmp_path}", f"{page.as_uri()}{anchor}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as from `apt-get install chromium`")
def test_a_browser_shows_the_episodes_and_runs_nothing_of_theirs(hostile, tmp_path):
    index = json.loads(next(text for a, text in Page(hostile.read_text()).scripts if a.get("id") == "episodes-index"))
    [number] = [i for i, file in enumerate(index) if file["agent"].startswith("MEM1") and file["objectives"] == 2]
    dom, console = dump_dom(hostile, f"#episode={number}.1", tmp_path)
    assert console == ""  # neither an error nor a refusal of the policy
    page = Page(dom)
    assert "data-pwned" not in dict(next(a for tag, a in page.elements if tag == "body"))
    assert not [a for tag, a in page.elements if tag == "img" and not a["src"].startswith("data:")]
    cards = [a["id"] for tag, a in page.elements if tag == "article"]
    assert cards == ["turn-1", "turn-2", "turn-3"]
    text = html.unescape(re.sub("<[^>]*>", "", dom[dom.index('id="episode"') : dom.index("episodes-index")]))
    assert "partly right: 1 of 2" in text
    assert "Kept from turn 2: 10 tokens (state 3, action 1, observation 6)" in text
    assert "Dropped, turn 1: 10 tokens" in text
    assert (
        "Its state carries 1.25 nats of the next turn, of its action 0.50 nats, of the right answer 2.75 nats" in text
    )
    assert f"query 0{HOSTILE}" in text
    assert "Showing 3 of 4 episodes; all of them are in mem1/evaluation/mem1-2.jsonl." in html.unescape(dom)


def write_training(root: Path, name: str, steps: list[int]) -> None:
    """What a trainer writes that evaluates itself: right answers rise with the steps."""
    for step in steps:
        tasks = [evaluated(i, episode("mem1"), 2.0 if i < step // 10 else 0.0) for i in range(4)]
        settings = {"context": "mem1", "step": step}
        Evaluation.from_tasks(tasks, f"step {step}", settings, resamples=50).save(
            root / "evaluation", f"{name}-{step}"
        )


def test_evaluations_on_the_way_are_one_curve_in_the_order_of_steps(tmp_path):
    steps = [100, 20, 30, 10, 2]  # as texts, 100 stands before 2
    write_training(tmp_path, "eval", steps)
    run = read_run(tmp_path)
    assert run.agents == [result.agent for result in run.results] == ["step 2", "step 100"]
    (series,) = run.series
    curve = [(step, found["mean"]) for step, found in series.curve("exact_match_per_objective")]
    assert curve == [(2, 0.0), (10, 0.25), (20, 0.5), (30, 0.75), (100, 1.0)]
    page = report(tmp_path)
    text = html.unescape(page.read_text())
    assert (
        "Exact match per objective by optimizer step. evaluation: 2: 0, 10: 0.25, 20: 0.5, 30: 0.75, 100: 1." in text
    )
    assert (page.parent / "evaluated_em.png").is_file() and text.count("data-agent=") < 3 * len(run.results) + 1
    assert '"step 20"' not in text and "step 20," not in text


@pytest.mark.parametrize(("best", "bottom"), [(-1.0, -3.5), (2.0, 0.0)])
def test_a_reward_below_zero_is_in_the_picture(tmp_path, best, bottom):
    for step in (0, 10):
        tasks = [evaluated(i, episode("mem1"), 0.0) for i in range(4)]
        tasks = [dataclasses.replace(task, scores={"reward": best - (step == 0)}) for task in tasks]
        Evaluation.from_tasks(tasks, f"step {step}", {"step": step}, resamples=50).save(
            tmp_path / "evaluation", f"eval-{step}"
        )
    axes = Figure().subplots()
    series_plot(read_run(tmp_path), "reward", "r", "Reward", "mean reward").draw(axes)
    low, high = axes.get_ylim()
    assert axes.lines[0].get_ydata().tolist() == [best - 1, best]
    assert low < high and low <= best - 1 and best <= high
    assert (low == 0.0) == (best > 0) and low >= bottom


def test_data_sets_and_runs_have_a_curve_each(tmp_path):
    for folder in ("a", "b"):
        write_training(tmp_path / folder, "eval_short", [0, 10])
        write_training(tmp_path / folder, "eval_long", [0, 10, 20])
    write_training(tmp_path / "once", "eval", [5])  # no series
    run = read_run(tmp_path)
    assert sorted(series.label for series in run.series) == ["a, long", "a, short", "b, long", "b, short"]
    assert [len(series.points) for series in run.series if series.label == "a, long"] == [3]
    assert {r.path.stem for r in run.results if r.path.parent.parent.name == "a"} == {
        "eval_short-0", "eval_short-10", "eval_long-0", "eval_long-20",
    }  # fmt: skip
    assert any(agent.startswith("step 5") for agent in run.agents)


def test_many_agents_share_the_page(tmp_path):
    for number in range(11):
        tasks = [evaluated(0, episode("mem1"), 2.0)]
        Evaluation.from_tasks(tasks, f"agent {number}", {}, resamples=50).save(tmp_path / "evaluation", f"a{number}")
    page = report(tmp_path)
    assert len(list(page.parent.glob("failures-*.png"))) == len(list(page.parent.glob("tokens-*.png"))) == 8
    assert "first 8 of 11 agents" in page.read_text() and 'data-agent="agent 10"' in page.read_text()


def of_contexts(kept: list[list[int]], tail: tuple[int, ...] = ()) -> Trajectory:
    """A full history of which each turn reads the given earlier ones, and then `tail`."""
    whole = episode("full", turns=len(kept)).turns
    left = [tuple(whole[i + 1].prompt_ids[10 * (i + 1) : 10 * (i + 2)]) for i in range(len(whole) - 1)]
    contexts = [
        (*PROMPT, *(token for i in of_turn for token in left[i]), *(tail if of_turn else ())) for of_turn in kept
    ]
    return Trajectory([dataclasses.replace(turn, prompt_ids=ids) for turn, ids in zip(whole, contexts)])


def test_a_turn_that_was_left_out_between_others_is_dropped():
    """As a closed branch is."""
    usages = turn_usage(of_contexts([[], [0], [0, 1], [0, 2], [0, 2, 3]]))
    assert [usage.kept for usage in usages] == [(), (0,), (0, 1), (0, 2), (0, 2, 3)]
    assert [usage.dropped_tokens for usage in usages] == [0, 0, 0, 10, 10]
    assert [usage.other for usage in usages] == [0] * 5


def test_what_follows_the_last_turn_leaves_the_others_kept():
    """As the request for a summary does."""
    usages = turn_usage(of_contexts([[], [0], [0, 1]], tail=(9001, 9002)))
    assert [(usage.kept, usage.dropped, usage.dropped_tokens) for usage in usages[1:]] == [
        ((0,), (), 0),
        ((0, 1), (), 0),
    ]
    assert [usage.other for usage in usages] == [0, 2, 2]
