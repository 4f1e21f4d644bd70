"""The plots of a report: one axes each, so that they are readable on a phone."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..evaluation.result import slug
from ..printable import one_line
from .palette import FAILED, OUTCOMES, PARTS, agent_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .run_directory import Result, RunDirectory

_SIZE = (4.6, 3.3)  # inches; two of them fit side by side on a desktop page
_DPI = 160
_ROW, _SIGN = 72, 5  # characters of a row of the legend, and those that the sign of a name takes
_ROWS = 3  # rows of the legend that the figure has room for; it grows by the others
_LONGEST = 44  # characters of a title or a name that leave room for the plot
_FILE_NAME = 100  # bytes of a label in the name of a figure, of the 255 that file systems allow
_SHOWN = "\u200b"  # in front of a name until the legend is drawn: matplotlib leaves out those that begin with "_"

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
            axes.set_title(plain_text(_cut(one_line(self.title))), loc="left")
            buffer = io.BytesIO()
            # Without the version of matplotlib in the metadata
            FigureCanvasAgg(figure).print_figure(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def plain_text(text: str) -> str:
    """Text that matplotlib does not parse as a formula."""
    return text.replace("$", r"\$")


def _cut(text: str, most: int = _LONGEST, around: int | None = None) -> str:
    """A text of at most `most` characters: its beginning, and its end or what stands around a place in it."""
    if len(text) <= most:
        return text
    begin = most // 3
    end = most - begin - 1
    if around is None or around >= len(text) - end:
        return f"{text[:begin]}…{text[-end:]}"
    start = max(begin, around - end // 3)
    return f"{text[:begin]}…{text[start : start + end - 1]}…"


def short_labels(labels: Iterable[str], most: int = _LONGEST) -> dict[str, str]:
    """
    Labels -> short texts of one line, which are different for different labels.

    A folder, which tells seeds apart, stands at the end of a label, so that long ones are cut in the middle. Those that would look the same
    are cut around the place where they begin to differ.
    """
    lines = {label: one_line(label) for label in labels}
    shown = {label: _cut(line, most) for label, line in lines.items()}
    alike: dict[str, list[str]] = {}
    for label, text in shown.items():
        alike.setdefault(text, []).append(label)
    for group in alike.values():
        if len(group) > 1:
            place = _first_difference([lines[label] for label in group])
            shown |= {label: _cut(lines[label], most, place) for label in group}
    return _numbered(shown, "{} ({})")


def _first_difference(texts: Sequence[str]) -> int | None:
    return next((place for place, letters in enumerate(zip(*texts)) if len(set(letters)) > 1), None)


def legend_names(labels: Iterable[str]) -> dict[str, str]:
    """Labels -> what a plot is given as `label`, for [`legend_below`]."""
    return {label: _SHOWN + plain_text(text) for label, text in short_labels(labels).items()}


def _titles(labels: Iterable[str], ending: str) -> dict[str, str]:
    """Labels -> titles of their plots, short enough to be drawn whole."""
    return {label: text + ending for label, text in short_labels(labels, _LONGEST - len(ending)).items()}


def _file_names(labels: Iterable[str]) -> dict[str, str]:
    """Labels -> parts of the names of their figures."""
    return _numbered({label: _file_name(label) for label in labels}, "{}-{}")


def _file_name(label: str) -> str:
    name = slug(label)
    if len(name.encode()) <= _FILE_NAME:
        return name
    checksum = hashlib.sha256(label.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{name.encode()[: _FILE_NAME - 9].decode(errors='ignore')}-{checksum}"


def _numbered(texts: dict[str, str], form: str) -> dict[str, str]:
    """The texts, of which those that were there already get a number."""
    taken: dict[str, str] = {}
    for label, text in texts.items():
        name, number = text, 2
        while name in taken.values():
            name, number = form.format(text, number), number + 1
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
    names = legend_names(run.agents)

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
                label=names[agent],
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
    names = legend_names(run.agents)

    def draw(axes: Axes) -> None:
        for agent, curve in curves.items():
            axes.plot(
                [age for age, _, _ in curve],
                [share for _, share, _ in curve],
                markersize=4.5,
                label=names[agent],
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


def outcome_shares(result: Result) -> dict[str, float]:
    """
    Share of the objectives for each outcome, empty if outcomes were not measured.

    Episodes whose environment failed have no outcomes, but count as wrong in the tables. Their objectives are a share of their own, so that
    the bar agrees with the table.
    """
    failures = result.summary.get("failures") or {}
    counts = {outcome: failures.get(outcome, 0) for outcome in OUTCOMES}
    episodes = result.summary["count"]
    failed = round((result.summary.get("errors") or 0) * episodes)
    if not any(counts.values()) and not (failed == episodes and "exact_match" in result.metrics):
        return {}
    counts[FAILED] = failed * (result.objectives or 0)
    total = sum(counts.values())
    return {outcome: count / total for outcome, count in counts.items()} if total else {}


def failure_plots(run: RunDirectory) -> list[Plot]:
    """Outcomes of the objectives, one plot for each of the first agents."""
    plots = []
    names, titles = _file_names(run.agents), _titles(run.agents, ": outcomes")
    for agent in run.agents[:MOST_AGENTS]:
        bars = {result.objectives: shares for result in run.of_agent(agent) if (shares := outcome_shares(result))}
        if not bars:
            continue
        failed = any(shares[FAILED] for shares in bars.values())
        parts = {outcome: colour for outcome, colour in OUTCOMES.items() if failed or outcome != FAILED}

        def draw(axes: Axes, bars: dict[int | None, dict[str, float]] = bars, parts: dict[str, str] = parts) -> None:
            bottom = [0.0] * len(bars)
            labels = [str(n) for n in bars]
            for outcome, colour in parts.items():
                heights = [bar[outcome] for bar in bars.values()]
                axes.bar(labels, heights, 0.7, bottom=bottom, color=colour, label=outcome.replace("_", " "))
                bottom = [b + h for b, h in zip(bottom, heights)]
            axes.set(xlabel="objectives", ylabel="share of the objectives", ylim=(0, 1))
            axes.grid(axis="x", visible=False)
            legend_below(axes)

        text = ". ".join(
            f"{n} objectives: " + ", ".join(f"{outcome.replace('_', ' ')} {bar[outcome]:.2f}" for outcome in parts)
            for n, bar in bars.items()
        )
        plots.append(
            Plot(
                f"failures-{names[agent]}",
                titles[agent],
                "Misreported: in memory at the end, but not in the answer. Forgotten: an observation contained it, but it was no longer "
                "in memory at the end."
                + (
                    " Episode failed: objectives of episodes whose environment failed, which the tables count as wrong."
                    * failed
                ),
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
    names, titles = _file_names(run.agents), _titles(run.agents, ": tokens per turn")
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
                titles[agent],
                f"Mean over the episodes{of} that reached the turn ({turns[0]['episodes']:.0f} in turn 1, "
                f"{turns[-1]['episodes']:.0f} in turn {len(turns)}).",
                f"{agent}, mean tokens per turn. {text}.",
                draw,
            )
        )
    return plots


def legend_below(axes: Axes) -> None:
    """Draw a legend below the axes, since bars leave no room inside. The figure grows with a long one, so that the axes keep their size."""
    handles, given = axes.get_legend_handles_labels()
    labels = [label.removeprefix(_SHOWN) for label in given]
    widest = max(map(len, labels), default=0) + _SIGN
    columns = max(1, min(4 if len(labels) == 4 else 3, _ROW // widest))
    figure = axes.figure
    assert isinstance(figure, Figure)
    legend = figure.legend(
        handles,
        given,
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        handlelength=0.9,
        columnspacing=1.0,
        handletextpad=0.4,
    )
    for text, label in zip(legend.get_texts(), labels):
        text.set_text(label)
    rows = math.ceil(len(labels) / columns)
    if rows > _ROWS:
        height = legend.get_window_extent().height / figure.dpi
        figure.set_figheight(figure.get_figheight() + height * (rows - _ROWS) / rows)
