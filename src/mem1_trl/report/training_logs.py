"""The logs of training runs: each checkpoint holds that of all steps up to it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.result import without_slashes
from ..hub.logged_evaluations import LoggedEvaluation, logged_evaluations
from ..json_text import read_json_object

if TYPE_CHECKING:
    from .run_directory import Result

logger = logging.getLogger(__name__)

ADVICE = "was it cut off? Write it again."
"""What is said of a file that cannot be read."""


@dataclass(frozen=True)
class TrainingLog:
    """
    The log of one training run up to a checkpoint, from its `trainer_state.json`.

    Attributes:
        path (`Path`):
            The file.
        label (`str`):
            Directory of the run, or the agent that was evaluated in it.
        state (`dict`):
            What the file holds.
    """

    path: Path
    label: str
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps of the run up to there."""
        return self.state.get("global_step") or 0

    @cached_property
    def time(self) -> float:
        """When the file was written, in seconds."""
        return self.path.stat().st_mtime

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """`log_history`: one dictionary per logging step, with `step`."""
        found = self.state.get("log_history", [])
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise ValueError(f"{self.path} must have a list of entries as 'log_history': {ADVICE}")
        return [entry for entry in found if "step" in entry]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one logged number; empty if it was never logged."""
        points = [(entry["step"], entry[key]) for entry in self.history if isinstance(entry.get(key), int | float)]
        return [step for step, _ in points], [value for _, value in points]

    def goes_on_from(self, other: TrainingLog) -> bool:
        """Whether it begins with the entries of another log: no two runs log the same times and losses."""
        count = len(other.history)
        return self.history[:count] == other.history

    def holds(self, result: Result) -> bool:
        """Whether this run logged the numbers of an evaluation."""
        return any(
            (one.step, without_slashes(one.data)) == (result.step, result.data)
            and _same_numbers(one.metrics, result.metrics)
            for one in self._evaluations
        )

    @cached_property
    def _evaluations(self) -> list[LoggedEvaluation]:
        return logged_evaluations(self.history)


def _same_numbers(logged: dict[str, float], metrics: dict[str, dict[str, float]]) -> bool:
    common = logged.keys() & metrics.keys()
    return bool(common) and all(math.isclose(logged[key], metrics[key]["mean"], rel_tol=1e-6) for key in common)


def find_logs(paths: Iterable[Path], root: Path) -> dict[Path, list[TrainingLog]]:
    """
    The logs of all checkpoints by the folder of their run.

    Args:
        paths (`Iterable[Path]`):
            Every `trainer_state.json`.
        root (`Path`):
            The directory that is read; it is a run of its own even if it is called as a checkpoint is.

    Raises:
        `ValueError`: If no log of a run can be read.
    """
    found: dict[Path, list[TrainingLog]] = {}
    cut_off: list[tuple[Path, ValueError]] = []
    for path in paths:
        run = _run_of(path, root)
        try:
            state = read_json_object(path, ADVICE)
        except ValueError as error:  # a run that was killed, or found the disk full, as it saved a checkpoint
            cut_off.append((run, error))
            continue
        found.setdefault(run, []).append(TrainingLog(path, run.relative_to(root).as_posix(), state))
    for run, cause in cut_off:
        if run not in found:
            raise cause
        logger.warning("%s It is left out: the curves of training are those of another checkpoint.", cause)
    return found


def _run_of(path: Path, root: Path) -> Path:
    parent = path.parent
    run = parent.parent if parent.name.startswith("checkpoint-") and parent != root else parent
    return run.parent if run.name == "checkpoints" and run != root else run
