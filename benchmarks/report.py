"""What a benchmark writes: the system it ran on, its cases as tables and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from timing import Timing, console, ratios

HERE = Path(__file__).parent


def system_information(device: str) -> dict[str, Any]:
    """Hardware, versions and commit, without anything that names a person or a directory."""
    information: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": device,
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": _commit(),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        information["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"
        information["cuda"] = torch.version.cuda
    for package in ("torch", "transformers", "trl", "datasets", "bm25s", "mem1-trl"):
        try:
            information[package] = version(package)
        except PackageNotFoundError:
            information[package] = None
    return information


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit that last changed the measured package, with `+changes` if files differ from it."""
    import mem1_trl

    def git(*arguments: str) -> str:
        directory = Path(mem1_trl.__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("log", "-1", "--format=%h", "--", ".") + (
            "+changes" if git("status", "--porcelain", "--", ".") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


class Report:
    """
    The cases of one benchmark, as they go into its JSON file.

    Args:
        name (`str`):
            Name of the benchmark and of its file.
        args (`argparse.Namespace`):
            From [`parse_arguments`].
        settings (`dict`, *optional*):
            What all cases share: sizes of the model, lengths.
    """

    def __init__(self, name: str, args: argparse.Namespace, settings: Mapping[str, Any] | None = None):
        self.name = name
        self.args = args
        self.settings = dict(settings or {})
        self.cases: list[dict[str, Any]] = []
        # Now, and not when it is written: what is measured is what is imported by now
        self.system = system_information(args.device)

    def add(
        self,
        case: str,
        timings: Mapping[str, Timing],
        baseline: str,
        settings: Mapping[str, Any] | None = None,
        values: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """
        Add the result of one [`compare`].

        Args:
            case (`str`):
                What was run, such as `"16 turns"`.
            timings (`dict[str, Timing]`):
                From [`compare`].
            baseline (`str`):
                The variant that the others are compared to.
            settings (`dict`, *optional*):
                What belongs to this case alone.
            values (`dict[str, dict]`, *optional*):
                Variant -> further columns, such as `{"packed": {"tokens": 4000, "peak_bytes": 10**8}}`. Keys that end in
                `_bytes` are printed in MB, `flops` in units of 10^9.

        Returns:
            `dict`: The case as it will be written.
        """
        variants = {}
        for name, timing in timings.items():
            pairs = ratios(timing, timings[baseline])
            variants[name] = {
                "median_seconds": timing.median,
                "min_seconds": min(timing.times),
                "max_seconds": max(timing.times),
                "median_ratio": median(pairs),
                "min_ratio": min(pairs),
                "max_ratio": max(pairs),
                "wall_seconds": timing.seconds,
                "cpu_seconds": timing.cpu_seconds,
                "values": dict((values or {}).get(name, {})),
            }
        entry = {"name": case, "baseline": baseline, "settings": dict(settings or {}), "variants": variants}
        self.cases.append(entry)
        return entry

    def as_dict(self) -> dict[str, Any]:
        """All of it, fit for JSON."""
        return {
            "benchmark": self.name,
            "smoke": self.args.smoke,
            "repeats": self.args.repeats,
            "clock": self.args.clock,
            "system": self.system,
            "settings": self.settings,
            "cases": self.cases,
        }

    def finish(self) -> Path:
        """Print a table of each case, write the JSON file and return its path."""
        for case in self.cases:
            heading, rows = case_table(case)
            table = Table(title=case["name"], title_justify="left")
            for index, column in enumerate(heading):
                table.add_column(column, justify="left" if index == 0 else "right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
        path = self.args.output
        if path is None:
            # A smoke run must not replace what was measured
            path = HERE / "results" / f"{self.name}{'.smoke' if self.args.smoke else ''}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n")
        console.print(f"numbers: {os.path.relpath(path)}")
        return path


def format_value(key: str, value: Any) -> str:
    """A cell: bytes in MB, FLOPs in GFLOP, whole numbers with separators, others with three digits."""
    if value is None:
        return "-"
    if isinstance(value, (bool, str)):
        return str(value)
    if key.endswith("_bytes"):
        return f"{value / 1e6:,.0f}"
    if key == "flops":
        return f"{value / 1e9:,.1f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def format_seconds(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def case_table(case: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of a case: variant, time, ratio to the baseline, then the further columns."""
    keys = list(dict.fromkeys(key for variant in case["variants"].values() for key in variant["values"]))
    names = [
        key.removesuffix("_bytes").replace("_", " ") + " MB"
        if key.endswith("_bytes")
        else {"flops": "GFLOP"}.get(key, key.replace("_", " "))
        for key in keys
    ]
    heading = ["variant", "median (range)", f"time / {case['baseline']} (range)", *names]
    rows = []
    for name, variant in case["variants"].items():
        spread = f"{format_seconds(variant['min_seconds'])} – {format_seconds(variant['max_seconds'])}"
        ratio = f"{variant['median_ratio']:.2f} ({variant['min_ratio']:.2f} – {variant['max_ratio']:.2f})"
        rows.append(
            [
                name,
                f"{format_seconds(variant['median_seconds'])} ({spread})",
                "1" if name == case["baseline"] else ratio,
                *(format_value(key, variant["values"].get(key)) for key in keys),
            ]
        )
    return heading, rows
