"""The plots of what changes over the optimizer steps of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .palette import agent_style
from .plots import Plot, legend_below, legend_names, numbers, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .comparisons import RunComparison
    from .run_directory import RunDirectory


def log_plot(run: RunDirectory, key: str, name: str, title: str, label: str) -> Plot | None:
    """A metric of the training log against the optimizer step: every entry, and a running mean over a tenth of them."""
    curves = {}
    for log in run.logs:
        steps, values = log.series(key)
        if steps:
            curves[(log.label, str(log.path))] = (steps, values)
    if not curves:
        return None
    labels = [label for label, _ in curves]
    names = legend_names(run.agents)

    def draw(axes: Axes) -> None:
        for (label_, _), (steps, values) in curves.items():
            style = agent_style(label_, run.agents)
            style.pop("marker")
            axes.plot(steps, values, alpha=0.3, linewidth=0.9, color=style["color"])
            axes.plot(steps, running_mean(values), label=names[label_], linewidth=1.8, **style)
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(labels) > 1 or labels[0] != "training":
            legend_below(axes)

    def described(values: list[float]) -> str:
        smooth = running_mean(values)
        return f"from {told(smooth[0])} to {told(smooth[-1])} in {len(values)} entries"

    text = ". ".join(f"{label}: {described(values)}" for (label, _), (_, values) in curves.items())
    return Plot(
        name,
        title,
        "Thin: every logged value. Thick: running mean, at each point over the preceding tenth of the run.",
        f"{title}. {text}.",
        draw,
    )


def series_plot(run: RunDirectory, metric: str, name: str, title: str, label: str) -> Plot | None:
    """A metric of the evaluations that training runs made on their way, against the optimizer step, with intervals."""
    curves = {series.label: series.curve(metric) for series in run.series if series.curve(metric)}
    if not curves:
        return None
    labels = list(curves)
    names = legend_names(labels)

    def draw(axes: Axes) -> None:
        for label_, points in curves.items():
            steps = [step for step, _ in points]
            style = agent_style(label_, labels)
            axes.plot(steps, [m["mean"] for _, m in points], markersize=3.5, label=names[label_], **style)
            lows, highs = [m["low"] for _, m in points], [m["high"] for _, m in points]
            axes.fill_between(steps, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if all(m["low"] >= 0 for points in curves.values() for _, m in points):  # a reward may be negative
            axes.set_ylim(bottom=0)
        if len(labels) > 1:
            legend_below(axes)

    text = ". ".join(f"{each}: {numbers([(s, m['mean']) for s, m in points])}" for each, points in curves.items())
    return Plot(
        name,
        title,
        "Evaluations during training, with their 95% intervals. Tables and episodes show the first and the last of them.",
        f"{title} by optimizer step. {text}.",
        draw,
    )


def difference_plot(compared: Sequence[RunComparison], baseline: str) -> Plot | None:
    """The paired differences of training runs to one of them, against the optimizer step, with intervals."""
    curves = {one.label: one.points for one in compared if one.points}
    if not curves:
        return None
    metric = next(iter(curves.values()))[0][1].metric.replace("_", " ")
    labels = list(curves)
    names = legend_names(labels)

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=axes.xaxis.label.get_color(), linewidth=0.8)
        for label, points in curves.items():
            x, y = [step for step, _ in points], [found.difference for _, found in points]
            errors = [
                [max(0.0, one.difference - one.low) for _, one in points],
                [max(0.0, one.high - one.difference) for _, one in points],
            ]
            axes.errorbar(
                x, y, yerr=errors, capsize=2.5, markersize=4, label=names[label], **agent_style(label, labels)
            )
        axes.set(xlabel="optimizer step", ylabel="difference")
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend_below(axes)

    text = ". ".join(
        f"{label}: " + ", ".join(f"{step}: {found.difference:+.3g}" for step, found in points)
        for label, points in curves.items()
    )
    return Plot(
        "difference",
        f"Difference to {baseline}",
        f"Mean difference in {metric} to {baseline} on the same tasks after the same number of steps, with its 95% bootstrap interval over tasks.",
        f"Difference to {baseline} by optimizer step. {text}.",
        draw,
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """Running mean: for each value, the mean over it and those before it, over a tenth of the sequence (at least one value)."""
    window = max(1, len(values) // 10)
    return [
        sum(values[max(0, i - window + 1) : i + 1]) / len(values[max(0, i - window + 1) : i + 1])
        for i in range(len(values))
    ]
