"""What the pages of results of several examples share."""

import argparse
import subprocess
from pathlib import Path


def commit():
    """The commit of the examples, as `git describe` names it."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def markdown_table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def smooth(values, window):
    """Running means over the last `window` values."""
    parts = [values[max(0, i + 1 - window) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def difference_cell(found):
    """A [`mem1_trl.evaluation.Comparison`] as a cell of a table, bold if its interval leaves out 0."""
    text = f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def control_in_words(control):
    """What a [`mem1_trl.evaluation.ScalarControl`] changes."""
    moved = " and ".join(f"{value:+g} on `{token}`" for token, value in control.constants.items()) or "no constant"
    return f"{moved}, temperature {control.temperature:g}"


def page_parser(description):
    """Options of a script that writes the page of an experiment of several stages."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="output folder of run_all.py")
    parser.add_argument("--to", type=Path, required=True, help="folder of the page")
    parser.add_argument(
        "--commit", default=commit(), help="commit that the runs were made at (default: that of this file)"
    )
    parser.add_argument("--note", default="", help="sentences that stand first on the page")
    return parser
