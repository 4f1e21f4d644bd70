"""The plots of a report: names that tell runs apart, room for a long legend, and bars that agree with the tables."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mem1_trl import StopReason, Trajectory, Turn
from mem1_trl.evaluation.episode_scores import evaluate_episode
from mem1_trl.evaluation.result import EvaluatedTask, Evaluation
from mem1_trl.report import report
from mem1_trl.report.comparisons import compare_runs
from mem1_trl.report.plots import Plot, failure_plots, metric_plot, retention_plot, token_plots
from mem1_trl.report.run_directory import RunDirectory, read_run
from mem1_trl.report.step_plots import difference_plot, log_plot, series_plot

ROOM = (4.6, 3.3)
QWEN = "Qwen2.5-0.5B-Instruct"


def task(index: int, right: float = 1.0) -> EvaluatedTask:
    """A task of one objective, whose answer was seen and kept."""
    turn = Turn((1,), (2,), observation="gold", observation_tokens=1, state="gold")
    trajectory = Trajectory([turn, turn], answer="gold" if right else "other")
    return evaluate_episode(trajectory, {"prompt": f"p{index}", "answers": [["gold"]]}, _Letters(), index=index)


class _Letters:
    """A tokenizer that is asked for text only."""

    def decode(self, ids, **_) -> str:
        return "p" * len(ids)


def write(folder: Path, agent: str, name: str = "m", count: int = 2, right: float = 1.0, **settings) -> None:
    tasks = [task(i, right) for i in range(count)]
    Evaluation.from_tasks(tasks, agent, settings, resamples=10).save(folder / "evaluation", name)


def score_plot(run: RunDirectory) -> Plot:
    plot = metric_plot(run, "exact_match", "exact_match", "Exact match", "right answers", "")
    assert plot is not None
    return plot


def drawn(plot: Plot) -> Figure:
    """The figure, drawn as a page has it; a warning of matplotlib is an error."""
    figure = Figure(figsize=ROOM, dpi=100, layout="constrained")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot.draw(figure.subplots())
        FigureCanvasAgg(figure).draw()
    return figure


def legend(plot: Plot) -> list[str]:
    return [text.get_text() for text in drawn(plot).legends[0].get_texts()]


def height(figure: Figure) -> float:
    """Inches of the axes from top to bottom."""
    return figure.axes[0].get_window_extent().height / figure.dpi


def pixels(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


# Names


def test_long_names_of_seeds_differ_in_legends_and_titles(tmp_path):
    for seed in range(3):
        write(tmp_path / f"two_objectives/grpo-lr1e-6/seed{seed}", QWEN)
    run = read_run(tmp_path)
    assert legend(score_plot(run)) == [f"Qwen2.5-0.5B-I…objectives/grpo-lr1e-6/seed{seed})" for seed in range(3)]
    assert legend(retention_plot(run)) == legend(score_plot(run))
    assert [plot.title for plot in failure_plots(run)] == [
        f"Qwen2.5-0.5…ves/grpo-lr1e-6/seed{seed}): outcomes" for seed in range(3)
    ]
    turn = {"prompt": 1, "state": 0, "action": 0, "observation": 0, "other": 0, "generated": 1, "episodes": 1}
    titles = [plot.title for plot in token_plots(run, {agent: (1, [turn]) for agent in run.agents})]
    assert titles == [f"Qwen2.5-0…rpo-lr1e-6/seed{seed}): tokens per turn" for seed in range(3)]
    assert all(len(plot.title) <= 44 for plot in failure_plots(run))
    assert all(agent in plot.text for agent, plot in zip(run.agents, failure_plots(run))), "the words have whole names"


def test_the_title_is_drawn_whole(tmp_path, monkeypatch):
    write(tmp_path, "an agent with a name of $40 that is much too long for a title")
    seen = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda self, text, **_: seen.append(text))
    assert failure_plots(read_run(tmp_path))[0].light
    assert seen == ["an agent wi…h too long for a title: outcomes"]


def test_names_that_differ_in_the_middle_are_cut_around_it(tmp_path):
    for place in ("01", "02", "12", "1" + "x" * 20):
        write(tmp_path / f"{'a' * 40}{place}{'b' * 60}", "m")
    assert legend(score_plot(read_run(tmp_path))) == [
        f"m (aaaaaaaaaaa…aaaaaaaaa{rest}…" for rest in ("01" + "b" * 17, "1" + "x" * 18, "02" + "b" * 17, "12" + "b" * 17)
    ]  # fmt: skip


def test_names_that_differ_in_two_places_are_numbered(tmp_path):
    for one, two in ("00", "01", "10"):
        write(tmp_path / f"{'a' * 40}{one}{'b' * 60}{two}{'c' * 60}", "m")
    names = legend(score_plot(read_run(tmp_path)))
    assert len(set(names)) == 3 and names[1] == f"{names[0]} (2)"


def test_a_short_name_stays_and_a_name_is_one_line(tmp_path):
    names = {"x" * 44: "x" * 44, "two\nlines": "two lines", "$a$ {}": r"\$a\$ {}", "two lines": "two lines (2)"}
    for number, agent in enumerate(names):
        write(tmp_path, agent, f"m{number}")
    assert sorted(legend(score_plot(read_run(tmp_path)))) == sorted(names.values())


@pytest.mark.parametrize("name", ["_old", "_", ""])
def test_a_name_that_begins_with_an_underscore_is_in_the_legend(tmp_path, name):
    for place, agent in (("x", name), ("y", "new")):
        write(tmp_path / place, agent)
    run = read_run(tmp_path)
    for plot in (score_plot(run), retention_plot(run)):
        assert sorted(legend(plot)) == sorted([name, "new"])


def test_plots_over_steps_name_their_runs_so_too(tmp_path):
    folders = ("_old", *(f"a-long-name-for-a-folder/of-some-experiment/seed{seed}" for seed in range(2)))
    for folder in folders:
        for step in (0, 10):
            write(tmp_path / folder, f"step {step}", f"eval-{step}", right=float(step > 0), step=step, context="mem1")
        log = [{"step": step, "reward": step / 2} for step in range(1, 5)]
        (tmp_path / folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    run = read_run(tmp_path)
    names = legend(series_plot(run, "exact_match", "e", "E", "e"))
    assert names == ["_old", *(f"a-long-name-fo…lder/of-some-experiment/seed{seed}" for seed in range(2))]
    assert len(set(names)) == len(set(legend(log_plot(run, "reward", "r", "R", "r")))) == 3
    assert legend(difference_plot(compare_runs(run, "_old"), "_old")) == names[1:]
    assert "_old" in legend(difference_plot(compare_runs(run, folders[1]), folders[1]))


def test_a_figure_has_a_name_that_a_file_system_takes(tmp_path):
    for seed in range(2):
        write(tmp_path / ("a" * 120) / ("é" * 120) / f"seed{seed}", "m")
    write(tmp_path / "short", "m")
    page = report(tmp_path)
    names = sorted(path.stem for path in page.parent.glob("failures-*.png"))
    assert len(names) == 3 and "failures-m-short" in names and all(len(name.encode()) < 120 for name in names)
    assert len(list(page.parent.glob("tokens-*.png"))) == 3


# Room


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Runs of 2, 3, 14 and 30 agents with long names, and of 14 with short ones."""
    root = tmp_path_factory.mktemp("many")
    for count in (2, 3, 14, 30):
        for seed in range(count):
            write(root / str(count) / f"ppo-lr1e-6-seed{seed}", QWEN, count=1)
    for number in range(14):
        write(root / "short", f"agent {number}", f"a{number}", count=1)
    return {path.name: read_run(path) for path in root.iterdir()}


@pytest.mark.parametrize("kind", ["14", "30", "short"])
def test_axes_keep_their_size_under_a_long_legend(many, kind):
    least = height(drawn(score_plot(many["3"])))
    assert least > 1.7
    for plot in (score_plot(many[kind]), retention_plot(many[kind])):
        figure = drawn(plot)
        assert height(figure) == pytest.approx(least, abs=0.06)
        box, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()
        assert len(figure.legends[0].get_texts()) == len(many[kind].agents)
        assert box.y0 >= 0 and box.y1 <= axes.y0, "it is neither cut nor over the axes"
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_figures_of_few_agents_keep_their_size(many):
    for kind in ("2", "3"):
        assert drawn(score_plot(many[kind])).get_size_inches().tolist() == list(ROOM)
        assert pixels(score_plot(many[kind]).light) == (736, 528)
    wide, tall = pixels(score_plot(many["30"]).dark)
    assert wide == 736 and 1100 < tall < 1500


# Outcomes


def failed(index: int) -> EvaluatedTask:
    """A task whose environment failed, as an evaluation scores it."""
    trajectory = Trajectory([], stop_reason=StopReason.ERROR, error="boom")
    return evaluate_episode(trajectory, {"prompt": f"p{index}", "answers": [["gold"]]}, _Letters(), index=index)


def test_the_bar_of_outcomes_counts_failed_episodes_as_the_table_does(tmp_path):
    tasks = [task(0), task(1), failed(2), failed(3)]
    evaluation = Evaluation.from_tasks(tasks, "A", resamples=10)
    evaluation.save(tmp_path / "evaluation", "a")
    assert evaluation.metrics["exact_match_per_objective"] == 0.5 and evaluation.failures["correct"] == 2
    [plot] = failure_plots(read_run(tmp_path))
    bars = {bar.get_label(): [part.get_height() for part in bar] for bar in drawn(plot).axes[0].containers}
    assert bars == {
        "correct": [0.5], "misreported": [0.0], "forgotten": [0.0], "never found": [0.0], "episode failed": [0.5],
    }  # fmt: skip
    assert "correct 0.50" in plot.text and "episode failed 0.50" in plot.text
    assert "Episode failed: " in plot.note


def test_an_evaluation_that_failed_throughout_has_a_bar(tmp_path):
    Evaluation.from_tasks([failed(0), failed(1)], "A", resamples=10).save(tmp_path / "evaluation", "a")
    [plot] = failure_plots(read_run(tmp_path))
    assert "correct 0.00" in plot.text and "episode failed 1.00" in plot.text


def test_without_failed_episodes_or_outcomes_nothing_is_said_of_them(tmp_path):
    write(tmp_path / "a", "A")
    [plot] = failure_plots(read_run(tmp_path))
    assert "failed" not in plot.text + plot.note and "episode failed" not in legend(plot)
    path = tmp_path / "a" / "evaluation" / "m.json"
    summary = json.loads(path.read_text())
    for change in ({"failures": {}, "errors": 0.5}, {"failures": {}, "errors": 1.0, "metrics": {}}):
        path.write_text(json.dumps(summary | change))
        assert failure_plots(read_run(tmp_path)) == [], "outcomes were not measured"
    del summary["errors"]
    path.write_text(json.dumps(summary))
    assert "correct 1.00" in failure_plots(read_run(tmp_path))[0].text
