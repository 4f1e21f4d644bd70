"""The evaluations that a training run makes on its way: one series over the steps, and not one agent for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run_directory import Result

FEWEST = 2
"""Evaluations that make a series."""


@dataclass(frozen=True)
class EvaluationSeries:
    """
    Evaluations of one training run on one data set, in the order of their steps.

    Attributes:
        label (`str`):
            Folder of the run and name of the data set, where there are several of them.
        points (`tuple[tuple[int, Result], ...]`):
            Optimizer step and evaluation.
        run (`str`):
            Folder of the run.
        data (`str`):
            Name of the data set; empty if there is one.
    """

    label: str
    points: tuple[tuple[int, Result], ...]
    run: str = "."
    data: str = ""

    def curve(self, metric: str) -> list[tuple[int, dict[str, float]]]:
        """Step, and `mean`, `low` and `high` of one metric; empty if it was never measured."""
        return [(step, result.metrics[metric]) for step, result in self.points if metric in result.metrics]


def find_series(results: list[Result], root: Path) -> tuple[list[EvaluationSeries], list[Result]]:
    """
    Gather evaluations of training runs.

    Args:
        results (`list[Result]`):
            Every evaluation of a run directory, without those of earlier runs.
        root (`Path`):
            That directory.

    Returns:
        `tuple[list[EvaluationSeries], list[Result]]`: The series, and the evaluations without those between the first and the last of
        a series.
    """
    groups: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        if result.step is not None:
            place = result.run.relative_to(root).as_posix()
            groups.setdefault((place, result.data), {})[result.step] = result
    groups = {key: found for key, found in groups.items() if len(found) >= FEWEST}
    places = {place for place, _ in groups}
    series, between = [], set()
    for (place, name), found in groups.items():
        words = [place] if len(places) > 1 and place != "." else []
        label = ", ".join([*words, *([name] if name else [])]) or "evaluation"
        points = tuple(sorted(found.items()))
        series.append(EvaluationSeries(label, points, place, name))
        between |= {result.path for _, result in points[1:-1]}
    return series, [result for result in results if result.path not in between]
