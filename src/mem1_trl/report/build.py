"""Builds a report: reads the run, draws the plots, writes the page."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .browser import browse
from .comparisons import RunComparison, compare_agents, compare_runs, comparison_table
from .page import render_page
from .plots import MOST_AGENTS, Plot, failure_plots, metric_plot, retention_plot, token_plots
from .run_directory import Result, RunDirectory, read_run
from .step_plots import difference_plot, log_plot, series_plot

logger = logging.getLogger(__name__)

MAX_EPISODE_BYTES = 20_000_000
"""Maximum number of bytes of episodes on one page, which a browser opens in about a second. A longer page shows fewer episodes."""

Usage = dict[tuple[str, int | None], list[dict[str, float]]]


def report(
    run_dir: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    max_trajectories: int = 50,
    baseline: str | None = None,
) -> Path:
    """
    Write the results of a run as one HTML page that does not need a network, with its plots as PNG files in the same directory.

    The page shows the metrics of every evaluation with their intervals, exact match and peak tokens against the number of
    objectives (MEM1, arXiv 2506.15841, Figure 4), how long answers stay in memory and how objectives fail, the tokens of each
    turn by part, the curves of training, and episodes turn by turn.

    Args:
        run_dir (`str`, `Path` or a sequence of them):
            Directory, or several, with `evaluation/<name>.json` and `<name>.jsonl` (as written by `mem1 eval`) and, if a trainer wrote one,
            `trainer_state.json`. They may also be in subdirectories, one for each agent or seed.
        output (`str` or `Path`, *optional*):
            Path of the page if it ends in `.html`, else a directory for `report.html`. `None` means `run_dir/report`, of several
            directories in the one that holds them all, if that lies in the working directory and is not the home directory, or else
            `./report`.
        max_trajectories (`int`, *optional*, defaults to `50`):
            Maximum number of episodes that the page shows for each evaluation. The metrics always include all episodes.
        baseline (`str`, *optional*):
            Label of the agent that the others are compared with, task by task, see [`mem1_trl.evaluation.compare`]; or the folder of a
            training run, with which the others are compared after each evaluation that they made on their way.

    Returns:
        `Path`: the path of the page.

    Raises:
        `FileNotFoundError`: if `run_dir` has nothing to report.
        `ValueError`: if a file cannot be read, `max_trajectories` is negative, or no agent and no run is called `baseline`.

    Example:

    ```python
    >>> from mem1_trl.report import report

    >>> report("runs/multi_objective")  # doctest: +SKIP
    PosixPath('runs/multi_objective/report/report.html')
    ```
    """
    if max_trajectories < 0:
        raise ValueError(f"max_trajectories must be at least 0, got {max_trajectories}.")
    run = read_run(run_dir)
    several = not isinstance(run_dir, str | Path) and len(run_dir) > 1
    page = _page_path(_place_of_several(run.path) if several and output is None else run.path, output)
    compared = ""
    runs: list[RunComparison] = []
    if baseline is not None:
        runs = compare_runs(run, baseline)
        found = [end for one in runs for end in one.ends()] or compare_agents(run, baseline)
        compared = comparison_table(found, baseline)
    # Before what takes long: a place that cannot be written to is said at once
    page.parent.mkdir(parents=True, exist_ok=True)
    blocks, usage = _read_episodes(run, max_trajectories)
    sections = _sections(run, usage, runs, baseline or "")
    html = render_page(run, sections, blocks, compared)
    for _, _, _, plots in sections:
        for plot in plots:
            (page.parent / f"{plot.name}.png").write_bytes(plot.light)
    page.write_bytes(html.encode("utf-8", errors="replace"))  # a model may write half a character
    return page


def _page_path(run_dir: Path, output: str | Path | None) -> Path:
    if output is None:
        return run_dir / "report" / "report.html"
    output = Path(output)
    if output.suffix.lower() in (".html", ".htm"):
        return output
    if output.is_file():
        raise ValueError(f"output must be a directory or a file that ends in .html, got the file {str(output)!r}.")
    return output / "report.html"


def _place_of_several(common: Path) -> Path:
    """Where the page of several runs is written by default: the directory that holds them all, unless that is one for everything."""
    here, place = Path.cwd(), common.resolve()
    if place.is_relative_to(here) and place not in (Path(place.anchor), Path.home().resolve()):
        return common
    logger.warning("The folder that holds all of the runs is %s: the page is written to %s.", common, here / "report")
    return Path()


def _read_episodes(run: RunDirectory, count: int) -> tuple[list[dict[str, Any]], Usage]:
    """The episodes to show, at most `count` per evaluation and fewer if the page would become too large, and mean tokens."""
    while True:
        blocks: list[dict[str, Any]] = []
        usage: Usage = {}
        for result in run.results:
            block, turns = browse(result, count)
            blocks.append({**block, "source": _source(result, run)})
            if turns:
                usage[(result.agent, result.objectives)] = turns
        size = sum(
            len(json.dumps(block["episodes"], ensure_ascii=False).encode("utf-8", "replace")) for block in blocks
        )
        if size <= MAX_EPISODE_BYTES or count <= 1:
            return blocks, usage
        longest = max(len(block["episodes"]) for block in blocks)
        count = max(1, min(longest - 1, longest * MAX_EPISODE_BYTES // size))


def _source(result: Result, run: RunDirectory) -> str:
    return result.path.with_suffix(".jsonl").relative_to(run.path).as_posix()


def _sections(
    run: RunDirectory, usage: Usage, runs: list[RunComparison], baseline: str
) -> list[tuple[str, str, str, list[Plot]]]:
    score = [
        metric_plot(
            run,
            "exact_match",
            "exact_match",
            "Exact match, summed",
            "right answers per task",
            "Summed over the objectives, as in the paper's Figure 4. Bars are the intervals of the table.",
        ),
        metric_plot(
            run,
            "exact_match_per_objective",
            "exact_match_per_objective",
            "Exact match per objective",
            "share of the objectives",
            "The same, divided by the number of objectives.",
        ),
        metric_plot(
            run,
            "peak_tokens",
            "peak_tokens",
            "Peak tokens",
            "tokens",
            "Largest context plus output of any turn, the task prompt included, which itself grows with every objective.",
        ),
        metric_plot(
            run,
            "peak_tokens_without_prompt",
            "peak_tokens_without_prompt",
            "Peak tokens without the task prompt",
            "tokens",
            "As counted in the paper. Flat: a memory that is rewritten. Rising: a context that grows.",
        ),
    ]
    evaluated = [
        difference_plot(runs, baseline),
        series_plot(
            run, "exact_match_per_objective", "evaluated_em", "Exact match per objective", "share of the objectives"
        ),
        series_plot(run, "success", "evaluated_success", "Successes", "share of the episodes"),
        series_plot(run, "reward", "evaluated_reward", "Reward in evaluations", "mean reward"),
        series_plot(run, "peak_tokens", "evaluated_peak", "Peak tokens in evaluations", "tokens"),
    ]
    few = ""
    if len(run.agents) > MOST_AGENTS:
        few = f" One plot for each of the first {MOST_AGENTS} of {len(run.agents)} agents."
    training = [
        log_plot(run, "reward", "reward", "Reward", "mean reward"),
        log_plot(run, "value/loss", "value_loss", "Value loss", "loss of the critic"),
        log_plot(run, "value/explained_variance", "explained_variance", "Explained variance of the critic", "share"),
        log_plot(run, "episode/peak_tokens", "training_peak_tokens", "Peak tokens in training", "tokens"),
    ]
    return [
        (
            "objectives",
            "Score and context",
            "How the score and the context change with the number of objectives per task.",
            [plot for plot in score if plot is not None],
        ),
        (
            "memory",
            "Memory",
            "Which answers the agents found, whether they still had them in memory later, and the outcome of every objective."
            + few,
            [plot for plot in [retention_plot(run)] if plot is not None] + failure_plots(run),
        ),
        (
            "tokens",
            "Tokens",
            "The context of each turn, and the text that the turn writes, by part. All agents have the same scale."
            + few,
            token_plots(run, _comparable(run, usage)),
        ),
        (
            "training",
            "Training",
            "Evaluations on the way, and metrics logged by the trainers.",
            [plot for plot in [*evaluated, *training] if plot is not None],
        ),
    ]


def _comparable(run: RunDirectory, usage: Usage) -> dict[str, tuple[int | None, list[dict[str, float]]]]:
    """For each agent, its turns at the largest number of objectives that all agents were evaluated on, or else its own largest."""
    by_agent = {agent: {n: turns for (a, n), turns in usage.items() if a == agent} for agent in run.agents}
    by_agent = {agent: found for agent, found in by_agent.items() if found}
    common = (
        set.intersection(*({n for n in found if n is not None} for found in by_agent.values())) if by_agent else ()
    )
    chosen = {}
    for agent, found in by_agent.items():
        n = max(common) if common else max(found, key=lambda n: -1 if n is None else n)
        chosen[agent] = (n, found[n])
    return chosen
