"""The plots of a report: one axes each, so that they are readable on a phone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..evaluation.result import slug
from .palette import OUTCOMES, PARTS, agent_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .run_directory import RunDirectory

_SIZE = (4.6, 3.3)  # inches; two of them fit side by side on a desktop page
_DPI = 160
_ROW, _SIGN = 72, 5  # characters of a row of the legend, and those that the sign of a name takes

MOST_AGENTS = 8
"""Agents that have plots of their own; all of them are in the tables and in the plots that compare agents."""

THEMES = {
    "light": {"background": "#ffffff", "ink": "#1c2330", "grid": "#d9dde3"},
    "dark": {"background": "#1a1f29", "ink": "#e3e7ee", "grid": "#3a4250"},
}
"""Theme -> colours of a plot, the same as those of the page in `page.css`."""


@dataclass(frozen=True)
class Plot:
    """
    A plot that can be drawn for either theme.

    Attributes:
        name (`str`):
            File name without extension.
        title (`str`):
            Title.
        note (`str`):
            Explanation for the caption.
        text (`str`):
            Content in words and numbers, for readers who do not see the plot.
        draw (`Callable[[Axes], None]`):
            Draws into empty axes.
    """

    name: str
    title: str
    note: str
    text: str
    draw: Callable[[Axes], None]

    @cached_property
    def light(self) -> bytes:
        """PNG on a light ground; the same bytes for the same numbers."""
        return self._png("light")

    @cached_property
    def dark(self) -> bytes:
        """PNG on a dark ground."""
        return self._png("dark")

    def _png(self, theme: str) -> bytes:
        colours = THEMES[theme]
        settings = {
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": colours["grid"],
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            **dict.fromkeys(
                ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), colours["ink"]
            ),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), colours["background"]),
        }
        with matplotlib.rc_context(settings):
            figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
            axes = figure.subplots()
            self.draw(axes)
            axes.set_title(plain_text(self.title), loc="left")
            buffer = io.BytesIO()
            # Without the version of matplotlib in the metadata
            FigureCanvasAgg(figure).print_figure(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def plain_text(text: str) -> str:
    """Text that matplotlib does not parse as a formula, short enough to leave room for the plot."""
    return (text if len(text) <= 44 else f"{text[:43]}…").replace("$", r"\$")


def _unique_slugs(labels: Sequence[str]) -> dict[str, str]:
    taken: dict[str, str] = {}
    for label in labels:
        name, number = slug(label), 2
        while name in taken.values():
            name, number = f"{slug(label)}-{number}", number + 1
        taken[label] = name
    return taken


def told(value: float) -> str:
    """A number in words: three digits, or all before the point, and no power of ten for a large one."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def numbers(pairs: Sequence[tuple[Any, float]]) -> str:
    return ", ".join(f"{x}: {told(y)}" for x, y in pairs)


def metric_plot(run: RunDirectory, metric: str, name: str, title: str, label: str, note: str) -> Plot | None:
    """One metric against the number of objectives, with intervals, one line per agent. `None` if it was never measured."""
    lines = {}
    for agent in run.agents:
        points = [(r.objectives, r.metrics[metric]) for r in run.of_agent(agent) if metric in r.metrics]
        if points:
            lines[agent] = points
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        for agent, points in lines.items():
            x = [n for n, _ in points]
            y = [m["mean"] for _, m in points]
            errors = [
                [max(0.0, m["mean"] - m["low"]) for _, m in points],
                [max(0.0, m["high"] - m["mean"]) for _, m in points],
            ]
            axes.errorbar(
                x,
                y,
                yerr=errors,
                capsize=2.5,
                markersize=4.5,
                label=plain_text(agent),
                **agent_style(agent, run.agents),
            )
        axes.set_xticks(run.objectives)
        axes.set_xlabel("objectives")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        legend_below(axes)

    text = ". ".join(f"{agent}: {numbers([(n, m['mean']) for n, m in points])}" for agent, points in lines.items())
    return Plot(name, title, note, f"{title} against objectives. {text}.", draw)


def retention_curve(run: RunDirectory, agent: str) -> list[tuple[int, float, int]]:
    """Age in turns, share kept and number of cases, over all evaluations of an agent together."""
    kept: dict[int, float] = {}
    counts: dict[int, int] = {}
    for result in run.results:
        if result.agent != agent:
            continue
        for point in result.summary.get("retention") or []:
            kept[point["age"]] = kept.get(point["age"], 0.0) + point["kept"] * point["count"]
            counts[point["age"]] = counts.get(point["age"], 0) + point["count"]
    return [(age, kept[age] / counts[age], counts[age]) for age in sorted(counts) if counts[age]]


def retention_plot(run: RunDirectory) -> Plot | None:
    """Share of the found answers that are still in memory, against the number of turns since they were seen."""
    curves = {agent: curve for agent in run.agents if (curve := retention_curve(run, agent))}
    if not curves:
        return None

    def draw(axes: Axes) -> None:
        for agent, curve in curves.items():
            axes.plot(
                [age for age, _, _ in curve],
                [share for _, share, _ in curve],
                markersize=4.5,
                label=plain_text(agent),
                **agent_style(agent, run.agents),
            )
        axes.set(xlabel="turns since the answer was observed", ylabel="share still in memory", ylim=(-0.03, 1.03))
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend_below(axes)

    text = ". ".join(f"{agent}: {numbers([(a, s) for a, s, _ in curve])}" for agent, curve in curves.items())
    return Plot(
        "retention",
        "Answers that stay in memory",
        "Of the right answers that an observation contained, the share still in memory later: in the state, or in the text that "
        "the agent carries along. Over all numbers of objectives; few cases remain at the right end.",
        f"Share of observed answers still in memory, by turns since. {text}.",
        draw,
    )


def failure_plots(run: RunDirectory) -> list[Plot]:
    """Outcomes of the objectives, one plot for each of the first agents."""
    plots = []
    names = _unique_slugs(run.agents)
    for agent in run.agents[:MOST_AGENTS]:
        bars = {}
        for result in run.of_agent(agent):
            failures = result.summary.get("failures") or {}
            total = sum(failures.get(outcome, 0) for outcome in OUTCOMES)
            if total:
                bars[result.objectives] = {outcome: failures.get(outcome, 0) / total for outcome in OUTCOMES}
        if not bars:
            continue

        def draw(axes: Axes, bars: dict[int | None, dict[str, float]] = bars) -> None:
            bottom = [0.0] * len(bars)
            labels = [str(n) for n in bars]
            for outcome, colour in OUTCOMES.items():
                heights = [bar[outcome] for bar in bars.values()]
                axes.bar(labels, heights, 0.7, bottom=bottom, color=colour, label=outcome.replace("_", " "))
                bottom = [b + h for b, h in zip(bottom, heights)]
            axes.set(xlabel="objectives", ylabel="share of the objectives", ylim=(0, 1))
            axes.grid(axis="x", visible=False)
            legend_below(axes)

        text = ". ".join(
            f"{n} objectives: "
            + ", ".join(f"{outcome.replace('_', ' ')} {share:.2f}" for outcome, share in bar.items())
            for n, bar in bars.items()
        )
        plots.append(
            Plot(
                f"failures-{names[agent]}",
                f"{agent}: outcomes",
                "Misreported: in memory at the end, but not in the answer. Forgotten: an observation contained it, but it was no longer "
                "in memory at the end.",
                f"{agent}, outcomes of the objectives. {text}.",
                draw,
            )
        )
    return plots


def token_plots(run: RunDirectory, usage: dict[str, tuple[int | None, list[dict[str, float]]]]) -> list[Plot]:
    """
    Tokens of each turn by part, one plot for each of the first agents, all with the same scale.

    Args:
        run ([`RunDirectory`]):
            The run.
        usage (`dict[str, tuple]`):
            Agent -> the number of objectives of the episodes, and per turn the mean tokens of every part in
            [`PARTS`][mem1_trl.report.palette.PARTS] and the number of `episodes` that reached it.
    """
    top = max((sum(turn[part] for part in PARTS) for _, turns in usage.values() for turn in turns), default=0.0)
    names = _unique_slugs(run.agents)
    plots = []
    for agent, (objectives, turns) in list(usage.items())[:MOST_AGENTS]:

        def draw(axes: Axes, turns: list[dict[str, float]] = turns) -> None:
            x = list(range(1, len(turns) + 1))
            bottom = [0.0] * len(turns)
            for part, colour in PARTS.items():
                heights = [turn[part] for turn in turns]
                if any(heights):
                    axes.bar(x, heights, 0.8, bottom=bottom, color=colour, label=part)
                    bottom = [b + h for b, h in zip(bottom, heights)]
            axes.set(xlabel="turn", ylabel="tokens", ylim=(0, top * 1.04 or 1))
            axes.set_xlim(0.4, max(len(turns) for _, turns in usage.values()) + 0.6)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="x", visible=False)
            legend_below(axes)

        text = ". ".join(
            f"turn {number}: " + ", ".join(f"{part} {turn[part]:.0f}" for part in PARTS if turn[part])
            for number, turn in enumerate(turns, start=1)
        )
        of = "" if objectives is None else f" with {objectives} objective{'s' * (objectives != 1)}"
        plots.append(
            Plot(
                f"tokens-{names[agent]}",
                f"{agent}: tokens per turn",
                f"Mean over the episodes{of} that reached the turn ({turns[0]['episodes']:.0f} in turn 1, "
                f"{turns[-1]['episodes']:.0f} in turn {len(turns)}).",
                f"{agent}, mean tokens per turn. {text}.",
                draw,
            )
        )
    return plots


def legend_below(axes: Axes) -> None:
    """Draw a legend below the axes, since bars leave no room inside."""
    handles, labels = axes.get_legend_handles_labels()
    widest = max(map(len, labels), default=0) + _SIGN
    axes.figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(4 if len(labels) == 4 else 3, _ROW // widest)),
        fontsize=8,
        handlelength=0.9,
        columnspacing=1.0,
        handletextpad=0.4,
    )
