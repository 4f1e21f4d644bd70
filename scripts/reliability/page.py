"""The page that the measurement writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .outcome import Outcome

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


class Row(NamedTuple):
    """One line of a table: what was tried, how to repeat it, and what came of it."""

    part: str
    what: str
    command: str
    outcome: Outcome


HEADINGS = {
    "inputs": (
        "Random inputs",
        "Texts are made of tags, halves of tags, control tokens, characters of all kinds and words. *Turns*: a turn of anything is "
        "read as by expressions that are too slow for use; a turn that was written, with anything inside its tags and after them, is read as it was meant; text of an "
        "environment, escaped, holds no tag and is otherwise unchanged. *Observations*: the frame is whole, the budget is kept, "
        "no token of them is a control token, and what is shown is the beginning of the text. *Tool calls*: turns, calls and results through the chat templates that "
        "TRL ships. *Arguments*: a value of the type of the hint, or one sentence for the agent.",
    ),
    "growth": (
        "Growth of time",
        "Four times the text may take less than eight times as long, up to a megabyte, on the text that an expression takes longest for, and for each parser "
        "on a list of hostile texts and on mixtures.",
    ),
    "episodes": (
        "Threads and long runs",
        "Eight threads share one agent, and every call is to play what it plays alone, token for token. A long run is to leave nothing behind after each episode.",
    ),
    "suites": (
        "Failures around an agent",
        "Tests that let each of these fail in every way that is known, and compare values with those of a run without the failure. A case is one test.",
    ),
}


def render(rows: Iterable[Row], seed: int, versions: str, commit: str, minutes: float) -> str:
    """The whole page."""
    rows = list(rows)
    lines = [
        "# Reliability: what was tried, and what held",
        "",
        "Written by",
        "",
        "```bash",
        f"python scripts/measure_reliability.py    # {minutes:.0f} minutes here",
        "```",
        "",
        f"with seed {seed}, {versions}, at commit `{commit}`, on a CPU. `--quick` runs a short form in less than a minute, and leaves this page alone; "
        "so does a part, such as `--only growth`. What happens when something fails is in [faults.md](faults.md).",
    ]
    for part, (title, introduction) in HEADINGS.items():
        lines += [
            "",
            f"## {title}",
            "",
            introduction,
            "",
            "| what | tried | held | failed | skipped | by |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            if row.part == part:
                o = row.outcome
                what = f"{row.what} ({o.note})" if o.note else row.what
                lines.append(
                    f"| {what} | {o.tried:,} | {o.held:,} | {o.failed:,} | {o.skipped or ''} | `{row.command}` |"
                )
    failures = [f"- {row.what}: {failure}" for row in rows for failure in row.outcome.failures]
    if failures:
        lines += ["", "## What failed", "", *failures]
    return "\n".join(lines) + "\n"
