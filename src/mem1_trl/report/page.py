"""The HTML page: one file that loads no other file, and that never interprets the text of an episode as HTML."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ..version import __version__
from .earlier_runs import left_out
from .palette import agent_style
from .plots import Plot

if TYPE_CHECKING:
    from .run_directory import Result, RunDirectory

# Metric -> heading and explanation. The first table shows these in this order, the second one all other metrics.
MAIN_METRICS = {
    "exact_match": ("EM", "exact matches, summed over the objectives of a task"),
    "exact_match_per_objective": ("EM per objective", "exact matches, share of the objectives"),
    "f1_per_objective": ("F1 per objective", "word overlap with the right answer, mean over the objectives"),
    "success": ("Success", "share of tasks with every objective right"),
    "reward": ("Reward", "of the environment or the reward functions"),
    "peak_tokens": ("Peak tokens", "largest context plus output of any turn"),
    "peak_tokens_without_prompt": ("Peak without prompt", "the same without the task prompt, as counted in the paper"),
    "dependency_length": ("Dependency length", "pairs of a generated token and a token it attends to"),
    "turns": ("Turns", "calls of the model"),
    "seconds": ("Seconds", "time per episode"),
}
OTHER_METRICS = {
    "f1": ("F1", "word overlap, summed over the objectives of a task"),
    "generated_tokens": ("Generated tokens", "tokens sampled over all turns"),
    "state_tokens": ("State tokens", "tokens of internal state per turn"),
    "valid_action_rate": ("Valid actions", "share of turns with a complete action"),
    "repeated_actions": ("Repeated actions", "share of actions that the episode had taken before, word for word"),
    "failed_actions": ("Failed actions", "actions that the environment refused, per episode"),
}


_MOST_DECIMALS = 6


def data_block(identifier: str, data: Any) -> str:
    """
    `data` as a JSON block of the page.

    A script element ends at the first `</script>`, even inside a string, so `<`, `>` and `&` are written as JSON escapes.

    Args:
        identifier (`str`):
            `id` of the element.
        data (`Any`):
            Anything JSON can hold.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{escape(identifier)}">{text}</script>'


def render_page(
    run: RunDirectory,
    sections: Sequence[tuple[str, str, str, Sequence[Plot]]],
    blocks: Sequence[dict[str, Any]],
    compared: str = "",
) -> str:
    """
    The whole page.

    Args:
        run ([`RunDirectory`][mem1_trl.report.run_directory.RunDirectory]):
            The run.
        sections (`Sequence[tuple]`):
            Id, heading, introduction and plots of every section; sections without plots are left out.
        blocks (`Sequence[dict]`):
            Episodes of each evaluation, as [`mem1_trl.report.browser.browse`] gives them.
        compared (`str`, *optional*):
            HTML of a table of comparisons, shown below the results.

    Returns:
        `str`: HTML.
    """
    body = []
    links = []
    if run.results:
        links.append(("results", "Results"))
        body.append(_results(run, compared))
    for identifier, heading, introduction, plots in sections:
        if plots:
            links.append((identifier, heading))
            figures = "\n".join(map(_figure, plots))
            body.append(
                f'<section id="{identifier}"><h2>{escape(heading)}</h2>\n<p>{escape(introduction)}</p>\n'
                f'<div class="figures">\n{figures}\n</div></section>'
            )
    shown = [block for block in blocks if block["total"]]
    if shown:
        links.append(("episodes", "Episodes"))
        body.append(_episodes(shown))
    script = files(__package__).joinpath("page.js").read_text(encoding="utf-8")
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8") + _agent_rules(run)
    # Only this script and style may run, even if an episode contains a script; nothing is loaded from elsewhere
    policy = (
        f"default-src 'none'; img-src data:; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title, notice = f"MEM1 report: {run.path.resolve().name}", left_out(run.with_earlier)
    navigation = "".join(f'<li><a href="#{identifier}">{escape(heading)}</a></li>' for identifier, heading in links)
    content = "\n\n".join(body)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>{escape(title)}</h1>
<p class="soft">{escape(_summary(run))}</p>{notice and f'<p class="note">{escape(notice)}</p>'}
</header>
<nav aria-label="Sections"><ul>{navigation}</ul></nav>
<main id="main">
{content}
</main>
<footer class="soft">Written by mem1-trl {__version__} from {_count(len(run.results), "evaluation")} and
{_count(len(run.logs), "training log")}.</footer>
<script>{script}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _agent_rules(run: RunDirectory) -> str:
    return "".join(
        f".agent-{i} {{ --agent: {agent_style(agent, run.agents)['color']}; }}\n" for i, agent in enumerate(run.agents)
    )


def _summary(run: RunDirectory) -> str:
    agents = {result.agent for result in run.results}
    tasks = sum(result.summary["count"] for result in run.results)
    parts = []
    if run.results:
        parts.append(f"{_count(len(agents), 'agent')}, {_count(tasks, 'episode')}")
    if run.objectives:
        parts.append(f"objectives per task: {', '.join(map(str, run.objectives))}")
    if run.logs:
        parts.append(_count(len(run.logs), "training run"))
    return " · ".join(parts)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


# Tables


def digits_of(values: Iterable[float]) -> int:
    """Decimals that a column of numbers needs: none from 1,000 on, two below 100, and below 0.1 as many as show two digits of the largest."""
    top = max((abs(value) for value in values), default=0.0)
    if 0 < top < 0.1:
        return min(1 - math.floor(math.log10(top)), _MOST_DECIMALS)
    return 0 if top >= 1000 else 1 if top >= 100 else 2


def _results(run: RunDirectory, compared: str) -> str:
    measured = {metric for result in run.results for metric in result.metrics}
    main = {metric: names for metric, names in MAIN_METRICS.items() if metric in measured}
    rest = {metric: names for metric, names in OTHER_METRICS.items() if metric in measured}
    rest |= {metric: (metric, "") for metric in sorted(measured - set(main) - set(rest))}
    tables = [
        _table(
            "results-table",
            "Mean over the tasks, with its 95% bootstrap interval below.",
            run,
            {
                "Tasks": [f"{r.summary['count']:,}" for r in run.results],
                "Errors": [_share(r.summary.get("errors")) for r in run.results],
            },
            main,
        )
    ]
    tables += [compared] if compared else []
    if rest:
        table = _table("other-table", "Mean and interval, as above.", run, {}, rest)
        tables.append(f"<details><summary>Other metrics</summary>{table}</details>")
    reasons = sorted({reason for r in run.results for reason in r.summary.get("stop_reasons") or {}})
    if reasons:
        shares = {
            reason.replace("_", " "): [_share((r.summary.get("stop_reasons") or {}).get(reason)) for r in run.results]
            for reason in reasons
        }
        table = _table("stop-table", "Share of the episodes that ended for each reason.", run, shares, {})
        tables.append(f"<details><summary>How the episodes ended</summary>{table}</details>")
    settings = {_row_name(result): result.summary.get("settings") or {} for result in run.results}
    text = escape(json.dumps(settings, indent=2, ensure_ascii=False))
    tables.append(f"<details><summary>Settings</summary><pre>{text}</pre></details>")
    return '<section id="results"><h2>Results</h2>\n' + "\n".join(tables) + "</section>"


def _row_name(result: Result) -> str:
    return result.agent if result.objectives is None else f"{result.agent}, {result.objectives} objectives"


def _share(value: float | None) -> str:
    return "" if value is None else f'<data value="{value!r}">{value:.1%}</data>'


def _table(
    identifier: str, caption: str, run: RunDirectory, texts: dict[str, list[str]], metrics: dict[str, tuple[str, str]]
) -> str:
    digits = {
        metric: digits_of(r.metrics[metric]["mean"] for r in run.results if metric in r.metrics) for metric in metrics
    }
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in texts)
    for heading, explanation in metrics.values():
        head += f'<th scope="col" title="{escape(explanation)}">{escape(heading)}</th>'
    width = 1 + len(texts) + len(metrics)
    rows = []
    block: Any = ()
    for number, result in enumerate(run.results):
        if result.objectives != block:
            block = result.objectives
            name = "No or differing numbers of objectives" if block is None else _count(block, "objective")
            rows.append(f'<tr><th class="group" scope="rowgroup" colspan="{width}">{name}</th></tr>')
        cells = "".join(f"<td>{column[number]}</td>" for column in texts.values())
        cells += "".join(_cell(result, metric, digits[metric]) for metric in metrics)
        agent = run.agents.index(result.agent)
        objectives = "" if result.objectives is None else str(result.objectives)
        rows.append(
            f'<tr data-agent="{escape(result.agent)}" data-objectives="{objectives}">'
            f'<th scope="row"><span class="swatch agent-{agent}"></span>{escape(result.agent)}</th>{cells}</tr>'
        )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table id="{identifier}">'
        f'<caption class="hidden">{escape(caption)}</caption><thead><tr><th scope="col">Agent</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="note">{escape(caption)}</p>'
    )


def _cell(result: Result, metric: str, digits: int) -> str:
    found = result.metrics.get(metric)
    if found is None:
        return f'<td data-metric="{escape(metric)}"></td>'

    def number(key: str) -> str:
        return f'<data class="{key}" value="{found[key]!r}">{found[key]:,.{digits}f}</data>'

    return f'<td data-metric="{escape(metric)}">{number("mean")}<small>{number("low")} – {number("high")}</small></td>'


# Figures and episodes


def _figure(plot: Plot) -> str:
    light, dark = (f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (plot.light, plot.dark))
    return (
        f'<figure><picture><source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(plot.text)}"></picture><figcaption>{escape(plot.note)}</figcaption></figure>'
    )


def _episodes(blocks: Sequence[dict[str, Any]]) -> str:
    index = [
        {key: block[key] for key in ("agent", "objectives", "total", "kinds", "source")} for block in blocks
    ]  # read immediately; the episodes of a file are read only when it is shown
    data = [data_block("episodes-index", index)]
    data += [data_block(f"episodes-{number}", block["episodes"]) for number, block in enumerate(blocks)]
    return (
        '<section id="episodes"><h2>Episodes</h2>\n'
        "<p>The text that each turn kept, dropped, generated and observed. Right answers are marked in the text.</p>\n"
        "<noscript><p>The episodes need JavaScript; the rest of the page does not.</p></noscript>\n"
        '<div class="controls" id="episodes-controls" hidden>\n'
        '<label>Agent <select id="pick-agent"></select></label>\n'
        '<label>Objectives <select id="pick-objectives"></select></label>\n'
        '<label>Outcome <select id="pick-kind"></select></label>\n'
        '<label class="wide">Episode <select id="pick-episode"></select></label>\n'
        '<button type="button" id="previous">Previous</button> <button type="button" id="next">Next</button>\n'
        '<button type="button" id="unfold">Open or close all</button>\n'
        "</div>\n"
        '<p class="note" id="episodes-note" role="status"></p>\n'
        '<div id="episode"></div>\n' + "\n".join(data) + "\n</section>"
    )
