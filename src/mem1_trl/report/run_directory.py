"""Finds and reads what a run left on disk: evaluations, their episodes, and the log of training."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..evaluation.result import FORMAT
from ..json_lines import read_json_lines
from ..json_text import read_json_object
from ..trajectory import Trajectory
from .earlier_runs import newest_runs
from .evaluation_series import EvaluationSeries, find_series
from .training_logs import ADVICE, TrainingLog, find_logs

_NEEDED = ("name", "agent", "objectives", "count", "metrics")
_NUMBERS = ("mean", "low", "high")
_STEP = re.compile(r"step (\d+)")


@dataclass(frozen=True)
class Result:
    """
    One agent on one number of objectives: `evaluation/<name>.json` and, with its episodes, `<name>.jsonl`.

    Attributes:
        path (`Path`):
            The JSON file.
        agent (`str`):
            Label of the agent, unique within a run directory together with `objectives`.
        summary (`dict`):
            What the JSON file holds.
    """

    path: Path
    agent: str
    summary: dict[str, Any]

    @property
    def objectives(self) -> int | None:
        """Objectives of each task, or `None` if they differ."""
        return self.summary["objectives"]

    @property
    def run(self) -> Path:
        """Directory of the run that it belongs to."""
        return self.path.parent.parent

    @cached_property
    def step(self) -> int | None:
        """The optimizer step after which a trainer evaluated itself; `None` for any other evaluation."""
        match = _STEP.fullmatch(str(self.summary["agent"]))
        step = (self.summary.get("settings") or {}).get("step")
        return step if match and isinstance(step, int) and int(match[1]) == step else None

    @property
    def data(self) -> str:
        """Name of the data set, if a trainer evaluated itself on one of several."""
        return self.path.stem.removesuffix(f"-{self.step}").removeprefix("eval").lstrip("_")

    @cached_property
    def time(self) -> float:
        """When the file was written, in seconds."""
        return self.path.stat().st_mtime

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metric -> `mean`, `stderr`, `low`, `high`, `count`."""
        return self.summary["metrics"]

    def episodes(self) -> Iterator[dict[str, Any]]:
        """The records of the `.jsonl` file with their trajectories, one at a time; none if the file is absent."""
        path = self.path.with_suffix(".jsonl")
        if path.exists():
            for _, record in read_json_lines(path, "was the evaluation cut off? Run it again.", read=read_episode):
                yield record


@dataclass(frozen=True)
class RunDirectory:
    """
    All that a report is made of.

    Attributes:
        path (`Path`):
            The directory.
        results (`list[Result]`):
            Ordered by objectives, then by agent in the order of `agents`.
        logs (`list[TrainingLog]`):
            In the order of their paths.
        series (`list[EvaluationSeries]`):
            Evaluations that training runs made on their way. Of each, `results` holds the first and the last only.
        with_earlier (`list[str]`):
            Folders in which an earlier run left files. These are not read, see [`mem1_trl.report.earlier_runs`].
    """

    path: Path
    results: list[Result]
    logs: list[TrainingLog]
    series: list[EvaluationSeries] = field(default_factory=list)
    with_earlier: list[str] = field(default_factory=list)

    @cached_property
    def agents(self) -> list[str]:
        """Labels of the agents and of training runs that were not evaluated, sorted, numbers by value; it fixes their colours."""
        return sorted({result.agent for result in self.results} | {log.label for log in self.logs}, key=_by_value)

    @cached_property
    def objectives(self) -> list[int]:
        """Numbers of objectives that were evaluated, ascending."""
        return sorted({result.objectives for result in self.results if result.objectives is not None})

    def of_agent(self, agent: str) -> list[Result]:
        """The results of one agent that have a number of objectives, ascending."""
        return [r for r in self.results if r.agent == agent and r.objectives is not None]


_PARTS = re.compile(r"(\D*)(\d*)")


def _by_value(label: str) -> list[tuple[str, int]]:
    """Sorts `step 4` before `step 12`."""
    return [(text, int(number or 0)) for text, number in _PARTS.findall(label)]


def read_run(run_dir: str | Path | Sequence[str | Path]) -> RunDirectory:
    """
    Read a run directory: every `evaluation/*.json` and the newest `trainer_state.json` of every run, at any depth.

    Several runs of one agent, such as seeds in directories of their own, are told apart by their directory.

    Args:
        run_dir (`str`, `Path` or a sequence of them):
            The directory, or several; what they hold is named by its place below the one that holds them all.

    Returns:
        [`RunDirectory`]

    Raises:
        `FileNotFoundError`: if there is no such directory, or it holds neither evaluations nor a training log.
        `ValueError`: if an evaluation file cannot be read.
    """
    places = [Path(one) for one in ([run_dir] if isinstance(run_dir, str | Path) else run_dir)]
    for place in places:
        if not place.is_dir():
            raise FileNotFoundError(f"{str(place)!r} is not a directory: pass the output directory of a run.")
    root = places[0]
    if len(places) > 1:
        places = [place.absolute() for place in places]
        root = Path(os.path.commonpath(places))
    found = [_read_result(path) for path in _below(places, "evaluation/*.json")]
    newest = newest_runs(
        find_logs(_below(places, "trainer_state.json"), root), [result for result in found if result is not None]
    )
    series, shown = find_series(newest.results, root)
    results = _told_apart(shown, root)
    logs = [_labelled(log, run, results) for run, log in newest.logs.items()]
    if not results and not logs:
        raise FileNotFoundError(
            f"{str(root)!r} holds neither evaluation/*.json nor trainer_state.json, at any depth: evaluate an agent into it "
            "with `mem1 eval`, or pass the output directory of a trainer, not a folder inside of it."
        )
    results.sort(key=lambda r: (r.objectives is None, r.objectives or 0, _by_value(r.agent), str(r.path)))
    earlier = [run.relative_to(root).as_posix() for run in newest.with_earlier]
    return RunDirectory(root, results, logs, series, earlier)


def read_episode(record: Any) -> dict[str, Any]:
    """
    The record of an episode in a file, with its [`Trajectory`], or `None`, as `trajectory`.

    Raises:
        `ValueError`: if it is not one.
    """
    if not isinstance(record, dict):
        raise ValueError(f"It is not a JSON object but {record!r:.60}: {ADVICE}")
    if isinstance(
        record.get("task"), str
    ):  # an episode of `collect_trajectories`, which has a checksum of its row there
        record = {**record, "task": {"prompt": record["prompt"]} if "prompt" in record else {}}
    for key, kind in (("task", dict), ("scores", dict), ("objectives_detail", list)):
        if not isinstance(record.get(key) or kind(), kind):
            raise ValueError(
                f"It has {key}={record[key]!r:.60}, which must be {'a list' if kind is list else 'an object'}."
            )
    if not all(isinstance(detail, dict) for detail in record.get("objectives_detail") or []):
        raise ValueError("It has objectives_detail of something else than objects.")
    found = record.get("trajectory") or (record if "turns" in record else None)
    return {**record, "trajectory": None if found is None else Trajectory.from_dict(found)}


def _read_result(path: Path) -> Result | None:
    summary = read_json_object(path, ADVICE)
    if "format" not in summary and "metrics" not in summary:
        return None  # somebody else's file
    if summary.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {summary.get('format')!r}, but this version reads format {FORMAT}: evaluate again, or "
            "install the version of mem1-trl that wrote it."
        )
    missing = [key for key in _NEEDED if key not in summary]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(map(repr, missing))}: evaluate again.")
    found = summary["metrics"] if isinstance(summary["metrics"], dict) else {"metrics": summary["metrics"]}
    for name, numbers in found.items():
        if not isinstance(numbers, dict) or not all(isinstance(numbers.get(key), int | float) for key in _NUMBERS):
            raise ValueError(f"{path} must have the numbers {', '.join(_NUMBERS)} of {name}: evaluate again.")
    return Result(path, str(summary["agent"]), summary)


def _told_apart(results: list[Result], root: Path) -> list[Result]:
    """Results with the same agent and objectives get the directory, or else the name, into their label."""
    groups: dict[tuple[str, int | None], list[Result]] = {}
    for result in results:
        groups.setdefault((result.agent, result.objectives), []).append(result)
    doubled = {agent for (agent, _), group in groups.items() if len(group) > 1}
    by_place: dict[tuple[str, str, int | None], int] = {}
    for result in results:
        key = (result.agent, _place(result, root), result.objectives)
        by_place[key] = by_place.get(key, 0) + 1
    named = []
    for result in results:
        label = result.agent
        if result.agent in doubled:
            place = _place(result, root)
            label = f"{label} ({place})" if place != "." else label
            if by_place[(result.agent, place, result.objectives)] > 1:
                label = f"{label} [{result.path.stem}]"
        named.append(Result(result.path, label, result.summary))
    return named


def _place(result: Result, root: Path) -> str:
    return result.run.relative_to(root).as_posix()


def _below(places: list[Path], pattern: str) -> list[Path]:
    """Files of a pattern at any depth, each once."""
    return sorted({path for place in places for path in place.rglob(pattern)})


def _labelled(log: TrainingLog, run: Path, results: list[Result]) -> TrainingLog:
    """A log named after the agent that was evaluated in its folder, if it is one."""
    agents = {result.agent for result in results if result.run == run}
    label = agents.pop() if len(agents) == 1 else log.label
    return replace(log, label="training" if label == "." else label)
