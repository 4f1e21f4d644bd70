"""
Writes the tables of README.md from the JSON files in `benchmarks/results/`, so that no number in it is typed by hand.

    python benchmarks/summarize.py            # rewrites what stands between the markers of README.md
    python benchmarks/summarize.py --check    # exits with 1 if README.md is not what the files say

`<!-- results: NAME -->` ... `<!-- end -->` holds the tables of `results/NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report import HERE, case_table

README = HERE / "README.md"
_SECTION = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def system_line(report: Mapping[str, Any]) -> str:
    """One line on where and with what the numbers were measured."""
    system = report["system"]
    hardware = system.get("gpu") or f"{system['cpu']}, {system['threads']} of {system['cores']} cores"
    clock = {"wall": "wall time", "cpu": "processor time"}[report["clock"]]
    versions = f"torch {system['torch']}, transformers {system['transformers']}, trl {system['trl']}"
    return f"{hardware}; {clock}, {report['repeats']} repetitions; {versions}; mem1-trl at {system['commit']}."


def settings_line(settings: Mapping[str, Any]) -> str:
    """Settings as `name value`, nested ones in brackets."""
    parts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            parts.append(f"{key} ({settings_line(value)})")
        elif isinstance(value, list):
            parts.append(f"{key} {', '.join(map(str, value))}")
        else:
            parts.append(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}")
    return "; ".join(parts).replace("_", " ")


def tables(report: Mapping[str, Any]) -> str:
    """Markdown of one JSON file."""
    lines = [system_line(report), ""]
    if report["settings"]:
        lines += [f"Settings: {settings_line(report['settings'])}.", ""]
    for case in report["cases"]:
        heading, rows = case_table(case)
        lines += [f"**{case['name']}**", "", f"| {' | '.join(heading)} |"]
        lines.append("|".join(["", "---", *["---:"] * (len(heading) - 1), ""]))
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def fill(text: str, directory: Path) -> str:
    """
    The text with every section that has a JSON file in `directory` written anew.

    Raises:
        `ValueError`: If a file is of a smoke run, whose times mean nothing.
    """

    def section(match: re.Match[str]) -> str:
        path = directory / f"{match[2]}.json"
        if not path.exists():
            return f"{match[1]}Not measured yet.\n\n{match[3]}"
        report = json.loads(path.read_text())
        if report["smoke"]:
            raise ValueError(
                f"{path.name} is of a smoke run, whose times mean nothing: run the benchmark without --smoke."
            )
        return f"{match[1]}{tables(report)}\n{match[3]}"

    return _SECTION.sub(section, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if README.md is out of date")
    args = parser.parse_args()
    before = README.read_text()
    after = fill(before, HERE / "results")
    if args.check:
        sys.exit(int(before != after))
    README.write_text(after)


if __name__ == "__main__":
    main()
