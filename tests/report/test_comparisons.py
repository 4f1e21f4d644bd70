"""Agents of a run against one of them: what the page says is what `compare` finds."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mem1_trl import StopReason, Trajectory, Turn
from mem1_trl.cli.main import main
from mem1_trl.evaluation import EvaluatedTask, Evaluation, compare
from mem1_trl.report import report
from mem1_trl.report.build import _sections
from mem1_trl.report.comparisons import compare_agents, compare_runs
from mem1_trl.report.run_directory import read_run


def evaluation(agent, scores, seed, tasks=None, **settings):
    tasks = tasks or [f"seed {seed}, task {i}" for i in range(len(scores))]
    return Evaluation.from_tasks(
        [
            EvaluatedTask(
                i,
                {"prompt": prompt, "answers": [["a"], ["b"]]},
                prompt,
                Trajectory((Turn((1,), (2,)),), stop_reason=StopReason.ANSWER),
                {"exact_match_per_objective": float(score)},
            )
            for i, (prompt, score) in enumerate(zip(tasks, scores))
        ],
        agent,
        settings,
    )


def save(place, agent, scores, seed, tasks=None):
    found = evaluation(agent, scores, seed, tasks)
    found.save(place / f"{agent}-{seed}" / "evaluation", "2")
    return found


@pytest.fixture
def run(tmp_path):
    before = [save(tmp_path, "before <RL>", [0, 1, 0, 0, 0], seed) for seed in range(2)]
    after = [save(tmp_path, "after", [1, 1, 1, seed, 1], seed) for seed in range(2)]
    save(tmp_path, "elsewhere", [1, 1], 0, ["another", "task"])
    return tmp_path, before, after


def test_the_page_shows_what_compare_finds(run):
    place, before, after = run
    page = report(place, baseline="before <RL>").read_text()
    table = re.search(r'<table id="comparison-table">.*?</table>', page, re.DOTALL)[0]
    found = compare(after, before)
    assert found.by_seed == (0.6, 0.8) and found.is_clear
    row = re.search(r"<tr><th scope=\"row\">after, 2 objectives</th>.*?</tr>", table)[0]
    assert f"<td>{found.a:.3f}</td><td>{found.b:.3f}</td>" in row
    assert f'<td class="clear">{found.difference:+.3f}<small>{found.low:+.3f} – {found.high:+.3f}</small></td>' in row
    assert "<td>7 / 0 of 10<small>+0.600, +0.800</small></td>" in row
    assert 'elsewhere, 2 objectives</th><td colspan="5">not evaluated on the same tasks' in table
    assert "before &lt;RL&gt;" in table and "before <RL>" not in page


@pytest.mark.parametrize(("baseline", "sign"), [("seeds", -1), ("alone", 1)])
def test_an_agent_without_seeds_stands_beside_every_seed_of_the_other(tmp_path, baseline, sign):
    """On whichever side it is: none of the seeds is dropped, which would turn this difference round."""
    tasks = [f"task {i}" for i in range(10)]
    seeds = [
        evaluation("seeds", [index < right for index in range(10)], seed, tasks)
        for seed, right in enumerate((1, 9, 9))
    ]
    alone = evaluation("alone", [index % 2 for index in range(10)], 0, tasks)
    for number, one in enumerate([*seeds, alone]):
        one.save(tmp_path / str(number) / "evaluation", "2")
    ((found,),) = [compare_agents(read_run(tmp_path), baseline)]
    assert found.left_out == 0 and len(found.found.by_seed) == 3
    assert found.found.difference == pytest.approx(sign * (1.9 / 3 - 0.5))


def test_seeds_that_the_other_side_lacks_are_counted(tmp_path):
    tasks = [f"task {i}" for i in range(10)]
    for label, count in (("a", 3), ("b", 2)):
        for seed in range(count):
            save(tmp_path, label, [1] * 5 + [0] * 5, seed, tasks)
    for baseline in "ab":
        (found,) = compare_agents(read_run(tmp_path), baseline)
        assert (found.left_out, len(found.found.by_seed)) == (1, 2)
    assert "1 more not compared" in report(tmp_path, baseline="a").read_text()


def test_an_agent_without_a_score_in_common_leaves_the_others_compared(run):
    place, before, after = run
    for seed, one in enumerate(before):
        tasks = [dataclasses.replace(task, scores={"turns": 1.0}) for task in one.tasks]
        Evaluation.from_tasks(tasks, "unscored").save(place / f"unscored-{seed}" / "evaluation", "2")
    page = report(place, baseline="before <RL>").read_text()
    assert 'unscored, 2 objectives</th><td colspan="5">not evaluated on the same tasks with a score in common' in page
    assert f"<td>{compare(after, before).a:.3f}</td>" in page


def test_without_a_baseline_nothing_is_compared(run):
    assert "comparison-table" not in report(run[0]).read_text()


def test_a_baseline_that_is_not_there_is_said_before_anything_is_written(run, capsys):
    with pytest.raises(ValueError, match="did you mean 'after'"):
        report(run[0], baseline="aftr")
    assert main(["report", str(run[0]), "--baseline", "zzz"]) != 0
    assert (
        "baseline='zzz' must be an agent or a training run (its folder) of what is reported: there are"
        in capsys.readouterr().err
    )
    assert not (run[0] / "report").exists()


def test_a_place_that_cannot_be_written_to_is_said_before_the_episodes_are_read(run, monkeypatch):
    monkeypatch.setattr("mem1_trl.report.build._read_episodes", lambda *args: pytest.fail("episodes are read"))
    (run[0] / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        report(run[0], run[0] / "file" / "page.html")


@pytest.fixture
def two_runs(tmp_path):
    """Two training runs that evaluated themselves on the same tasks; one of them once more."""
    scores = {
        "a": {0: [0, 0, 0, 1], 5: [0, 1, 0, 1], 10: [1, 1, 0, 1]},
        "b": {0: [0, 0, 0, 1], 5: [1, 1, 1, 0], 9: [1] * 4},
    }
    found = {}
    for name, by_step in scores.items():
        for step, own in by_step.items():
            found[name, step] = evaluation(f"step {step}", own, 0, step=step)
            found[name, step].save(tmp_path / name / "evaluation", f"eval-{step}")
    return tmp_path, found


def test_two_training_runs_stand_side_by_side_with_their_paired_difference(two_runs, monkeypatch):
    place, found = two_runs
    monkeypatch.chdir(place.parent)
    for given in (place, [place / "a", place / "b"]):
        page = report(given, baseline="a")
        assert page == place / "report" / "report.html" and (page.parent / "difference.png").is_file()
        text = page.read_text()
        assert "Difference to a by optimizer step. b: 0: +0, 5: +0.25." in text  # step 9 has no pair
        table = re.search(r'<table id="comparison-table">.*?</table>', text, re.DOTALL)[0]
        assert re.findall(r'scope="row">(.*?)</th>', table) == ["b, step 0", "b, step 5"]
        last = compare(found["b", 5], found["a", 5])
        assert (last.better, last.worse, last.count) == (2, 1, 4)
        assert f"{last.difference:+.3f}<small>{last.low:+.3f} – {last.high:+.3f}</small>" in table
        assert "<td>2 / 1 of 4<small>+0.250</small></td>" in table


def test_a_baseline_without_a_data_set_of_the_others_is_not_unknown(two_runs, monkeypatch):
    place, found = two_runs
    monkeypatch.chdir(place)
    for step in (0, 5):
        found["a", step].save(place / "c" / "evaluation", f"eval_hard-{step}")
    text = report([place / "a", place / "c"], baseline="c").read_text()
    assert re.findall(r'scope="row">(a[^<]*)</th><td colspan="5">not evaluated on the same tasks', text)
    with pytest.raises(ValueError, match="baseline='a' is the only training run of what is reported: leave it out"):
        found["a", 0].save(place / "d" / "evaluation", "plain")
        report([place / "a", place / "d"], baseline="a")


def test_runs_on_other_tasks_are_not_compared(two_runs):
    place, _ = two_runs
    for step in (0, 5):
        other = evaluation(f"step {step}", [1, 1], 0, ["another", "task"], step=step)
        other.save(place / "c" / "evaluation", f"eval-{step}")
    text = report(place, baseline="a").read_text()
    assert 'scope="row">c</th><td colspan="5">not evaluated on the same tasks' in text
    with pytest.raises(ValueError, match=r"must be an agent or a training run .* there are 'step 0', .*'a', 'b', 'c'"):
        report(place, baseline="zz")


def test_the_command_takes_several_runs(two_runs, capsys):
    place, _ = two_runs
    assert main(["report", str(place / "a"), str(place / "b"), "--baseline", "b", "-o", str(place / "page.html")]) == 0
    assert "Difference to b by optimizer step. a: 0: +0, 5: -0.25." in (place / "page.html").read_text()


def test_what_is_written_beside_a_plot_lies_inside_of_the_picture(tmp_path):
    """Long names of runs: legends and labels of every plot, as they are drawn."""
    for run in ("ppo with the settings of the paper", "grpo with a long name", "another one, and its name is long"):
        for step in (0, 5):
            found = evaluation(f"step {step}", [0, 1, 1, 0], 0, step=step)
            found.save(tmp_path / run / "evaluation", f"eval-{step}")
    run = read_run(tmp_path)
    sections = _sections(run, {}, compare_runs(run, "grpo with a long name"), "grpo with a long name")
    plots = [plot for _, _, _, found in sections for plot in found]
    assert {"difference", "evaluated_em", "exact_match_per_objective"} <= {plot.name for plot in plots}
    for plot in plots:
        figure = Figure(figsize=(4.6, 3.3), dpi=160, layout="constrained")
        axes = figure.subplots()
        plot.draw(axes)
        FigureCanvasAgg(figure).draw()
        for part in (*figure.legends, axes.xaxis.label, axes.yaxis.label):
            box = part.get_window_extent()
            inside = box.x0 >= 0 and box.x1 <= 736 and box.y0 >= 0 and box.y1 <= figure.bbox.height
            assert inside and figure.bbox.height >= 528, (plot.name, part)


def test_seeds_that_have_the_same_tasks_are_all_compared(tmp_path):
    """As seeds of training are that were tested alike; one evaluation of the baseline stands beside each of them."""
    tasks = [f"task {i}" for i in range(5)]
    before = [save(tmp_path, "before", [0, 1, 0, 0, 0], 0, tasks)]
    after = [save(tmp_path, "after", [1 - (seed == 2), 1, seed == 0, 0, 1], seed, tasks) for seed in range(3)]
    found = compare(after, before * 3)
    page = report(tmp_path, baseline="before").read_text()
    assert len(found.by_seed) == 3 and found.count == 15
    shown = ", ".join(f"{value:+.3f}" for value in found.by_seed)
    assert f"<td>{found.better} / {found.worse} of 15<small>{shown}</small></td>" in page
    assert f"{found.difference:+.3f}<small>{found.low:+.3f} – {found.high:+.3f}</small>" in page


def test_evaluations_without_one_of_the_baseline_are_counted(tmp_path):
    tasks = [f"task {i}" for i in range(5)]
    for seed in range(3):
        save(tmp_path, "after", [1, 1, 1, 0, 1], seed, tasks)
    for seed in range(2):
        save(tmp_path, "before", [0, 1, 0, 0, 0], seed, tasks)
    assert "<small>+0.600, +0.600; 1 more not compared</small>" in report(tmp_path, baseline="before").read_text()


@pytest.mark.parametrize("where", ["elsewhere", "home", "root"])
def test_runs_without_a_folder_of_their_own_are_reported_here(two_runs, tmp_path, monkeypatch, caplog, where):
    """The folder that holds all of several runs may be `/`."""
    place, _ = two_runs
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here if where == "elsewhere" else place)
    if where == "home":
        monkeypatch.setenv("HOME", str(place))
    if where == "root":
        monkeypatch.setattr("mem1_trl.report.build.Path.cwd", lambda: Path("/"))
        monkeypatch.setattr("mem1_trl.report.run_directory.os.path.commonpath", lambda places: "/")
    page = report([place / "a", place / "b"])
    assert page == Path("report/report.html") and page.is_file() and "a" in page.read_text()
    common = "/" if where == "root" else place
    assert f"The folder that holds all of the runs is {common}: the page is written to " in caplog.text
    caplog.clear()
    assert report([place / "a"]) == place / "a" / "report" / "report.html" and not caplog.text
    assert report([place / "a", place / "b"], place / "o.html") == place / "o.html" and not caplog.text


def test_tasks_from_elsewhere_are_no_seed(tmp_path):
    """Two data sets of which one agent wins one were a row with a difference of 0 between their extremes."""
    for place, ours, theirs in (("shop", [1] * 10, [0] * 10), ("maze", [0] * 40, [1] * 40)):
        tasks = [f"{place} {number}" for number in range(len(ours))]
        for agent, scores in (("A", ours), ("B", theirs)):
            evaluation(agent, scores, 0, tasks, dataset_name=place).save(tmp_path / place / agent / "evaluation", "2")
    found = {one.data: one.found.difference for one in compare_agents(read_run(tmp_path), "B")}
    assert found == {"shop": 1.0, "maze": -1.0}
    assert "A, shop, 2 objectives" in report(tmp_path, baseline="B").read_text()
