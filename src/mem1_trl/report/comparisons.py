"""Paired differences of the agents of a run to one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from html import escape

from ..evaluation.comparison import Comparison, NoCommonScore, compare
from ..evaluation.result import Evaluation
from ..json_text import as_json
from .run_directory import Result, RunDirectory


@dataclass(frozen=True)
class AgentComparison:
    """
    One agent beside the baseline on one number of objectives.

    Attributes:
        agent (`str`):
            Label of the agent.
        objectives (`int` or `None`):
            Objectives of each task.
        found ([`Comparison`][mem1_trl.evaluation.Comparison] or `None`):
            `None` if no evaluation of both was on the same tasks, or they have no score in common.
        data (`str`):
            What it was evaluated on, if that differs between evaluations of the agent; `""` else.
        left_out (`int`):
            Number of evaluations of the agent without one of the baseline to compare them with, and of the baseline, on tasks that the
            agent has played, without one of the agent.
    """

    agent: str
    objectives: int | None
    found: Comparison | None
    data: str = ""
    left_out: int = 0


@dataclass(frozen=True)
class RunComparison:
    """
    One training run beside the baseline, evaluation by evaluation.

    Attributes:
        label (`str`):
            Of the run and its data set.
        points (`tuple[tuple[int, Comparison], ...]`):
            Optimizer step and comparison, for the steps after which both were evaluated on the same tasks.
    """

    label: str
    points: tuple[tuple[int, Comparison], ...]

    def ends(self) -> list[AgentComparison]:
        """The first and the last comparison, for the table."""
        if not self.points:
            return [AgentComparison(self.label, None, None)]
        ends = dict([self.points[0], self.points[-1]])
        return [AgentComparison(f"{self.label}, step {step}", None, found) for step, found in ends.items()]


def compare_runs(run: RunDirectory, baseline: str) -> list[RunComparison]:
    """
    Compare every training run that was evaluated on its way with one of them, step by step; nothing if `baseline` is not a run.

    Args:
        run ([`RunDirectory`][mem1_trl.report.run_directory.RunDirectory]):
            Runs in folders of their own.
        baseline (`str`):
            Folder of a run, as it stands before the curves.
    """
    against = {series.data: dict(series.points) for series in run.series if series.run == baseline}
    if all(series.run != baseline for series in run.series):
        return []
    compared = []
    for series in run.series:
        if series.run == baseline:
            continue
        points = []
        for step, result in series.points:
            other = against.get(series.data, {}).get(step)
            if other is None:
                continue
            ((own_tasks, (own,)),), ((tasks, (base,)),) = _by_tasks([result]).items(), _by_tasks([other]).items()
            found = _compared([(own, base)]) if own_tasks == tasks else None
            if found is not None:
                points.append((step, found))
        compared.append(RunComparison(series.label, tuple(points)))
    return compared


def compare_agents(run: RunDirectory, baseline: str) -> list[AgentComparison]:
    """
    Compare every agent with the baseline, seed by seed where both have the tasks of a seed.

    Args:
        run ([`RunDirectory`][mem1_trl.report.run_directory.RunDirectory]):
            The run.
        baseline (`str`):
            Label that an agent was evaluated with.

    Raises:
        `ValueError`: If there is no such agent.
    """
    groups: dict[tuple[int | None, str], list[Result]] = {}
    for result in run.results:
        groups.setdefault((result.objectives, str(result.summary["agent"])), []).append(result)
    agents = list(dict.fromkeys(agent for _, agent in groups))
    if baseline not in agents and any(series.run == baseline for series in run.series):
        raise ValueError(f"baseline={baseline!r} is the only training run of what is reported: leave it out.")
    if baseline not in agents:
        known = [*agents, *dict.fromkeys(series.run for series in run.series if series.run != ".")]
        near = get_close_matches(baseline, known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, known)) or 'none'}."
        raise ValueError(
            f"baseline={baseline!r} must be an agent or a training run (its folder) of what is reported: {advice}"
        )
    baselines = {
        objectives: _by_tasks(results) for (objectives, agent), results in groups.items() if agent == baseline
    }
    compared = []
    for (objectives, agent), results in groups.items():
        if agent == baseline:
            continue
        against = baselines.get(objectives, {})
        sources: dict[str, list[Result]] = {}
        for result in results:
            sources.setdefault(_source(result), []).append(result)
        for source, on_it in sources.items():
            sides = [(own, against.get(key, [])) for key, own in _by_tasks(on_it).items()]
            paired = [_paired(own, base) for own, base in sides]
            left_out = sum(max(len(own), len(base)) - len(pairs) for (own, base), pairs in zip(sides, paired))
            found = _compared([pair for one in paired for pair in one])
            compared.append(AgentComparison(agent, objectives, found, source if len(sources) > 1 else "", left_out))
    return compared


def _source(result: Result) -> str:
    """Where the tasks of an evaluation come from, as far as its settings say. Seeds are compared together, and what comes from elsewhere is no seed."""
    settings = result.summary.get("settings") or {}
    return ", ".join(str(settings[name]) for name in ("environment_path", "dataset_name") if settings.get(name))


def comparison_table(compared: Iterable[AgentComparison], baseline: str) -> str:
    """The comparisons as a table of the page."""
    rows = []
    for one in compared:
        objectives = "" if one.objectives is None else f", {one.objectives} objective{'s'[: one.objectives > 1]}"
        data = f", {escape(one.data)}" if one.data else ""
        found = one.found
        if found is None:
            cells = '<td colspan="5">not evaluated on the same tasks with a score in common</td>'
        else:
            clear = ' class="clear"' if found.is_clear else ""
            left_out = f"; {one.left_out} more not compared" if one.left_out else ""
            cells = (
                f"<td>{escape(found.metric)}</td><td>{found.a:.3f}</td><td>{found.b:.3f}</td>"
                f"<td{clear}>{found.difference:+.3f}<small>{found.low:+.3f} – {found.high:+.3f}</small></td>"
                f"<td>{found.better} / {found.worse} of {found.count}"
                f"<small>{', '.join(f'{value:+.3f}' for value in found.by_seed)}{left_out}</small></td>"
            )
        rows.append(f'<tr><th scope="row">{escape(one.agent)}{data}{objectives}</th>{cells}</tr>')
    note = (
        f"Mean difference to {baseline} on the same tasks, with its 95% bootstrap interval over tasks and seeds below; tasks won and lost, "
        "with the difference of each seed below. Bold: the interval leaves out 0, and on at least six tasks they differ."
    )
    head = "".join(
        f'<th scope="col">{escape(name)}</th>'
        for name in ("Agent", "Score", "Agent", baseline, "Difference", "Better / worse")
    )
    return (
        f'<h3>Compared with {escape(baseline)}</h3><div class="scroll" tabindex="0" role="region" aria-label="Comparisons">'
        f'<table id="comparison-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<p class="note">{escape(note)}</p>'
    )


def _by_tasks(results: Iterable[Result]) -> dict[str, list[Evaluation]]:
    """Evaluations by their tasks, several on the same tasks in the order of their files: they are seeds."""
    found: dict[str, list[Evaluation]] = {}
    for result in results:
        evaluation = Evaluation.load(result.path.parent, result.path.stem)
        tasks = json.dumps([as_json(task.task) for task in evaluation.tasks], sort_keys=True)
        found.setdefault(tasks, []).append(evaluation)
    return found


def _paired(own: list[Evaluation], base: list[Evaluation]) -> list[tuple[Evaluation, Evaluation]]:
    """Evaluations on the same tasks, seed by seed in their order; an agent that has no seeds stands beside each of the other's."""
    return list(zip(own * len(base) if len(own) == 1 else own, base * len(own) if len(base) == 1 else base))


def _compared(pairs: list[tuple[Evaluation, Evaluation]]) -> Comparison | None:
    try:
        return compare([own for own, _ in pairs], [other for _, other in pairs]) if pairs else None
    except NoCommonScore:  # of all other agents the page still says how they compare
        return None
