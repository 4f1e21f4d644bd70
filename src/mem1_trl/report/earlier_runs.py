"""
What an earlier run left in the folder of a newer one.

A trainer that begins again overwrites only the steps that it comes to. No file names its run, so this is told from what the files hold and,
where that does not tell, from when they were written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .training_logs import TrainingLog

if TYPE_CHECKING:
    from .run_directory import Result

_COPYING = 5.0
"""Seconds between two files below which their order says nothing: a copy of a folder may write them in any order, and a run takes longer."""

_MAY_DIFFER = ("model", "step", "seed")
"""Settings of an evaluation that may differ within a run; a trainer refuses to resume if any other has changed."""


@dataclass
class NewestRuns:
    """
    What the newest run of each folder wrote.

    Attributes:
        logs (`dict[Path, TrainingLog]`):
            Folder -> log of its newest run.
        results (`list[Result]`):
            The evaluations without those of earlier runs.
        with_earlier (`list[Path]`):
            Folders in which an earlier run left something.
    """

    logs: dict[Path, TrainingLog] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    with_earlier: list[Path] = field(default_factory=list)


def newest_runs(logs: dict[Path, list[TrainingLog]], results: Sequence[Result]) -> NewestRuns:
    """
    Leave out what is of an earlier run.

    `checkpoint-2` and `checkpoint-4` of one run, then `checkpoint-2` of another: the log is that of `checkpoint-2`, and an evaluation
    after step 3 that is older than this is left out.

    Args:
        logs (`dict[Path, list[TrainingLog]]`):
            Folder of a run -> logs of its checkpoints.
        results (`Sequence[Result]`):
            Evaluations. Those that no trainer made are kept.
    """
    found = NewestRuns()
    earlier: set[Path] = set()
    trained: dict[Path, list[Result]] = {}
    for result in results:
        if result.step is not None:
            trained.setdefault(result.run, []).append(result)
    for run in dict.fromkeys([*logs, *trained]):
        own_logs, own_results = logs.get(run, []), trained.get(run, [])
        current = [log for log in own_logs if not _is_earlier_log(log, own_logs, own_results)]
        newest = max(current, key=lambda log: (log.step, log.time), default=None)
        left = {result.path for result in own_results if _is_earlier_result(result, newest, own_logs, own_results)}
        if newest is not None:
            found.logs[run] = newest
        if left or len(current) < len(own_logs):
            found.with_earlier.append(run)
        earlier |= left
    found.results = [result for result in results if result.path not in earlier]
    return found


def left_out(folders: Sequence[str]) -> str:
    """A sentence that says in which folders something is not shown; empty if there are none."""
    places = ", ".join("this folder" if folder == "." else folder for folder in folders)
    return f"What an earlier run left in {places} is not shown." if folders else ""


def _is_earlier_log(log: TrainingLog, logs: Sequence[TrainingLog], results: Sequence[Result]) -> bool:
    return any(_begins_again(other, log) and not log.goes_on_from(other) for other in logs) or any(
        _begins_again(result, log, _COPYING) and not log.holds(result) for result in results
    )


def _is_earlier_result(
    result: Result, newest: TrainingLog | None, logs: Sequence[TrainingLog], results: Sequence[Result]
) -> bool:
    if newest is not None and newest.holds(result):
        return False
    last = max(results, key=lambda one: one.time)
    files: list[TrainingLog | Result] = [*logs, *results]
    return _other_settings(result, last) or any(_begins_again(one, result, _COPYING) for one in files)


def _begins_again(later: TrainingLog | Result, file: TrainingLog | Result, seconds: float = 0.0) -> bool:
    """Whether one file shows that the run of another has begun again: it is of fewer steps, and newer by more than some seconds."""
    # An evaluation before the first step says nothing: a script may make it each time that it resumes
    return 0 < (later.step or 0) < (file.step or 0) and later.time > file.time + seconds


def _other_settings(one: Result, other: Result) -> bool:
    a, b = (result.summary.get("settings") or {} for result in (one, other))
    return any(a[name] != b[name] for name in a.keys() & b.keys() if name not in _MAY_DIFFER)
