"""The picture of a training run on its card: reward, context and other logged metrics over the optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from .logged_evaluations import Log, is_number, logged_evaluations, metric_prefix, with_weight_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES_FILE = "training_curves.png"

# Panels of the figure: title, key of the log, and whether the axis starts at zero
_PANELS: tuple[tuple[str, str, bool], ...] = (
    ("reward", "reward", False),
    ("peak context (tokens)", "episode/peak_tokens", True),
    ("turns", "episode/turns", True),
    ("explained variance of the critic", "value/explained_variance", False),
    ("entropy (nats)", "entropy", False),
)
_TRAINING = "#4c78a8"
_EVALUATIONS = ("#e45756", "#54a24b", "#f58518", "#b279a2")

Points = list[tuple[float, float]]
"""Optimizer step and value, in the order of the steps."""


@dataclass(frozen=True)
class Panel:
    """
    One metric.

    Attributes:
        title (`str`):
            What stands above it.
        train (`list[tuple[float, float]]`):
            Its values in training.
        evaluated (`dict[str, list[tuple[float, float]]]`):
            Its values in evaluations, by the name of the data set; each at the step of the weights that were evaluated.
        from_zero (`bool`):
            Whether the axis starts at zero.
    """

    title: str
    train: Points
    evaluated: dict[str, Points]
    from_zero: bool


def curve_panels(log_history: Log) -> list[Panel]:
    """The metrics with at least two entries in a log (`trainer.state.log_history`)."""
    names = dict.fromkeys(one.data for one in logged_evaluations(log_history))
    by_weights = with_weight_steps(log_history)
    panels = []
    for title, key, from_zero in _PANELS:
        train = _series(log_history, key)
        evaluated = {name: _series(by_weights, f"{metric_prefix(name)}{key}") for name in names}
        if len(train) > 1:
            shown = {name or "evaluation": points for name, points in evaluated.items() if points}
            panels.append(Panel(title, train, shown, from_zero))
    return panels


def draw_curves(log_history: Log, path: Path) -> bool:
    """
    Draw reward, context and other logged metrics over the optimizer steps.

    Args:
        log_history (`Sequence[Mapping[str, Any]]`):
            `trainer.state.log_history`.
        path (`Path`):
            Image file to write.

    Returns:
        `bool`: Whether there was anything to draw; this needs two log entries.
    """
    from matplotlib.figure import Figure

    panels = curve_panels(log_history)
    if not panels:
        return False
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows), layout="constrained")
    for index, panel in enumerate(panels):
        _draw(figure.add_subplot(rows, columns, index + 1), panel)
    figure.savefig(path, dpi=110)
    return True


def _draw(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    many = len(panel.train) > 20
    marker = "" if many else "o"
    axes.plot(
        *zip(*panel.train), color=_TRAINING, linewidth=1, alpha=0.4 if many else 1.0, marker=marker, markersize=3
    )
    if many:
        axes.plot(*zip(*_smooth(panel.train)), color=_TRAINING, linewidth=2)
    for color, (name, points) in zip(cycle(_EVALUATIONS), panel.evaluated.items()):
        label = name.replace("$", r"\$")  # not a formula
        axes.plot(*zip(*points), color=color, marker="o", linewidth=1, markersize=4, label=label)
    if panel.evaluated:
        axes.legend(frameon=False, fontsize=8)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("optimizer step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    if panel.from_zero:
        axes.set_ylim(bottom=0)


def _series(log_history: Log, key: str) -> Points:
    points = {entry["step"]: entry[key] for entry in log_history if is_number(entry.get(key))}
    return sorted(points.items())


def _smooth(points: Points) -> Points:
    """Running mean over a tenth of the run."""
    width = max(2, len(points) // 10)
    means = []
    for index, (step, _) in enumerate(points):
        window = [value for _, value in points[max(0, index - width + 1) : index + 1]]
        means.append((step, sum(window) / len(window)))
    return means
