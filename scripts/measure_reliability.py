"""
Try what strangers, files, servers and machines may do, count what held, and write docs/reliability.md.

    python scripts/measure_reliability.py              # all, and the page
    python scripts/measure_reliability.py --quick      # a short form; no page
    python scripts/measure_reliability.py --only growth

Random inputs are the same for the same seed. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [
    str(ROOT / "tests"),
    str(ROOT / "scripts"),
]  # tokenizers, tiny models and hostile texts are those of the tests

import torch
import transformers
import trl
from reliability import arguments, episodes, growth, suites, tool_turns, turns
from reliability.outcome import Outcome
from reliability.page import HEADINGS, PAGE, Row, render
from support.growth import SIZES

Task = tuple[str, str, str, Callable[[], Outcome]]


def tasks(inputs: int, seed: int, quick: bool) -> Iterator[Task]:
    """Everything that can be tried: its part of the page, what it is, the command that repeats it, and how."""

    def by(part: str) -> str:
        return f"python scripts/measure_reliability.py --only {part} --inputs {inputs} --seed {seed}"

    for name in turns.PROTOCOLS:
        yield "inputs", f"turns: {name}", by("inputs"), partial(turns.measure, name, inputs, seed)
    for name in turns.PROTOCOLS:
        count = inputs // 5
        yield "inputs", f"observations: {name}", by("inputs"), partial(turns.measure_observations, name, count, seed)
    for name in tool_turns.FAMILIES:
        count = -(-inputs // len(tool_turns.FAMILIES))
        yield "inputs", f"tool calls: {name}", by("inputs"), partial(tool_turns.measure, name, count, seed)
    for name in arguments.HINTS:
        count = -(-inputs // len(arguments.HINTS))
        yield "inputs", f"arguments: `{name}`", by("inputs"), partial(arguments.measure, name, count, seed)
    sizes = SIZES[:3] if quick else SIZES
    yield "growth", "every expression", by("growth"), partial(growth.measure_patterns, sizes)
    yield "growth", "every parser and its texts", by("growth"), partial(growth.measure_parsers, seed, sizes)
    calls, played = (48, 40) if quick else (800, 4000)
    yield "episodes", "calls from eight threads", by("episodes"), partial(episodes.measure_threads, calls)
    yield "episodes", "episodes of a long run", by("episodes"), partial(episodes.measure_long_run, played)
    if not quick:  # CI runs these as tests
        for name, selection in suites.SUITES.items():
            yield "suites", name, f"pytest {selection}", partial(suites.measure, selection)


def commit() -> str:
    """The commit that is measured."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _measure(task: Task) -> Outcome:
    return task[-1]()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, help="random inputs for each protocol; 50000, or 200 with --quick")
    parser.add_argument("--seed", type=int, default=0, help="of random inputs")
    parser.add_argument("--only", choices=list(HEADINGS), help="one part; no page is written")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="a short form; no page is written")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    measured, began, rows = commit(), time.monotonic(), []
    inputs = options.inputs or (200 if options.quick else 50_000)
    chosen = [task for task in tasks(inputs, options.seed, options.quick) if options.only in (None, task[0])]
    # Forked: what was imported need not be imported again
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
        for (part, what, command, _), outcome in zip(chosen, pool.map(_measure, chosen), strict=True):
            rows.append(Row(part, what, command, outcome))
            print(f"{what}: {outcome.tried} tried, {outcome.failed} failed {outcome.note}", flush=True)
            for failure in outcome.failures:
                print(f"    {failure}", flush=True)
    if not options.quick and options.only is None:
        versions = f"Python {platform.python_version()}, transformers {transformers.__version__}, trl {trl.__version__} and torch {torch.__version__}"
        page = render(rows, options.seed, versions, measured, (time.monotonic() - began) / 60)
        PAGE.write_text(page, encoding="utf-8")
    return int(any(row.outcome.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
