"""
What the benchmarks share: runs of named variants side by side in one process, their time, memory and FLOPs, and the report.

A script describes itself with [`parse_arguments`], measures cases with [`compare`] (and [`peak_memory`], [`count_flops`]),
collects them in a [`Report`] and calls its `finish`, which prints tables and writes JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
warnings.filterwarnings("ignore", category=FutureWarning)  # about names that transformers and TRL use themselves
warnings.filterwarnings("ignore", message=".*pin_memory.*")

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
console = Console(width=None if sys.stdout.isatty() else 120)


# The command line


def parse_arguments(
    document: str, add: Callable[[argparse.ArgumentParser], None] | None = None, **defaults: Any
) -> argparse.Namespace:
    """
    Arguments that every benchmark takes, and those of its own; threads, clock and noise are set as a side effect.

    Args:
        document (`str`):
            The script's docstring.
        add (`Callable[[argparse.ArgumentParser], None]`, *optional*):
            Adds the script's own arguments.
        defaults:
            Other defaults for the common arguments, such as `repeats=9`.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, seconds: does it run? The times mean nothing"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions of each variant")
    parser.add_argument("--threads", type=int, default=None, help="threads of PyTorch (default: PyTorch's own choice)")
    parser.add_argument("--device", default="cpu", help="'cpu' or 'cuda'")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="time to report; 'cpu' (of all threads and children) for a machine that others use too",
    )
    parser.add_argument("--output", type=Path, default=None, help="JSON file (default: benchmarks/results/NAME.json)")
    if add is not None:
        add(parser)
    parser.set_defaults(**defaults)
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats} measures nothing: give 1 or more")
    if args.device.split(":")[0] not in ("cpu", "cuda"):
        parser.error(f"--device {args.device} is not known: give cpu or cuda")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device")
    if args.clock == "cpu" and args.device != "cpu":
        parser.error("--clock cpu does not see the work of a GPU: use wall")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    Timing.clock = args.clock
    if args.smoke:
        args.repeats = min(args.repeats, 2)
    quiet()
    return args


def quiet() -> None:
    """Silence what libraries print while they are measured."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()


# Time


@dataclass
class Timing:
    """
    The runs of one variant.

    Attributes:
        seconds (`list[float]`):
            Wall time of each timed repetition.
        cpu_seconds (`list[float]`):
            Processor time of each, over all threads of the process and the children that ended in it.
        result (`Any`):
            What the last repetition returned.
        clock (`str`):
            Which of the two is reported; the same for all timings, set by `--clock`.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    result: Any = None
    clock: ClassVar[str] = "wall"

    @property
    def times(self) -> list[float]:
        """Seconds of each repetition by the clock in use."""
        return self.cpu_seconds if self.clock == "cpu" else self.seconds

    @property
    def median(self) -> float:
        """Median of `times`."""
        return median(self.times)


def processor_time() -> float:
    """Seconds of processor time that this process and its ended children have used."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def synchronize() -> None:
    """Wait for what was queued on the GPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def compare(
    variants: Mapping[str, Callable[[], Any]],
    repeats: int,
    baseline: str,
    warmup: int = 1,
    before: Callable[[str], None] | None = None,
    label: str = "",
) -> dict[str, Timing]:
    """
    Time variants in turn, so that what slows the machine down slows all of them down.

    Each repetition runs every variant once, in the given order and in its reverse by turns, which cancels a drift. The
    garbage collector runs before each timed call and not during it.

    Args:
        variants (`dict[str, Callable[[], Any]]`):
            Name -> what to time.
        repeats (`int`):
            Timed repetitions.
        baseline (`str`):
            The variant that the others are compared to.
        warmup (`int`, *optional*, defaults to `1`):
            Repetitions before, not timed.
        before (`Callable[[str], None]`, *optional*):
            Called with the variant's name before each of its runs, not timed: seeds, resets.
        label (`str`, *optional*):
            Name of the case, for the progress line.

    Returns:
        `dict[str, Timing]`: In the order of `variants`.

    Example:

    ```python
    >>> timings = compare({"loop": loop, "vectorised": vectorised}, repeats=5, baseline="loop")
    >>> ratios(timings["vectorised"], timings["loop"])  # below 1: faster than the loop
    ```
    """
    if baseline not in variants:
        raise ValueError(f"The baseline {baseline!r} is none of the variants {', '.join(variants)}.")
    timings = {name: Timing() for name in variants}
    names = list(variants)
    began = time.perf_counter()
    for repetition in range(-warmup, repeats):
        progress = f"{label}: {'warm-up' if repetition < 0 else f'repetition {repetition + 1}/{repeats}'}"
        if sys.stderr.isatty():
            print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
        for name in names if repetition % 2 == 0 else reversed(names):
            if before is not None:
                before(name)
            gc.collect()
            enabled = gc.isenabled()
            gc.disable()
            try:
                synchronize()
                cpu, start = processor_time(), time.perf_counter()
                result = variants[name]()
                synchronize()
                seconds, cpu_seconds = time.perf_counter() - start, processor_time() - cpu
            finally:
                if enabled:
                    gc.enable()
            if repetition >= 0:
                timings[name].seconds.append(seconds)
                timings[name].cpu_seconds.append(cpu_seconds)
                timings[name].result = result
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    console.print(f"{label}: {repeats} repetitions of {len(names)} variants in {time.perf_counter() - began:.1f} s")
    return timings


def ratios(timing: Timing, baseline: Timing) -> list[float]:
    """Time of a variant over that of the baseline, per repetition: each pair was measured right after each other."""
    return [one / other for one, other in zip(timing.times, baseline.times, strict=True)]


# Memory and FLOPs


def peak_memory(run: Callable[[], Any], device: str = "cpu") -> int:
    """
    Most bytes that PyTorch's allocator held during `run` beyond what it held before it.

    The same quantity on both devices: `torch.cuda.max_memory_allocated` on a GPU, and on a CPU the running sum over the
    allocations and releases that PyTorch's profiler records. What a library allocates on its own (scratch space of a matrix
    product) is in neither. The run is slower than usual; do not time it.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - start
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def peak_rss() -> int:
    """Most bytes of physical memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _attention_pairs(query: Any, key: Any, is_causal: bool) -> int:
    """Query-key pairs that are attended to, over batch and heads; causal as PyTorch means it, both begin at one token."""
    batch, heads, queries, _ = query
    keys = key[2]
    pairs = sum(min(index + 1, keys) for index in range(queries)) if is_causal else queries * keys
    return batch * heads * pairs


def _attention_forward(query: Any, key: Any, value: Any, is_causal: bool) -> int:
    return 2 * _attention_pairs(query, key, is_causal) * (query[3] + value[3])


def _attention_backward(query: Any, key: Any, value: Any, is_causal: bool) -> int:
    # Scores again; gradients of values, scores, queries and keys
    return 2 * _attention_pairs(query, key, is_causal) * (3 * query[3] + 2 * value[3])


def _attention_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of fused attention. PyTorch knows no CPU kernel, and takes a causal one for a full one."""
    aten = torch.ops.aten

    def forward(
        query: Any, key: Any, value: Any, dropout: Any = 0.0, is_causal: bool = False, *_: Any, **__: Any
    ) -> int:
        return _attention_forward(query, key, value, is_causal)

    def backward_cpu(
        grad: Any,
        query: Any,
        key: Any,
        value: Any,
        out: Any,
        lse: Any,
        dropout: Any,
        is_causal: bool,
        *_: Any,
        **__: Any,
    ) -> int:
        return _attention_backward(query, key, value, is_causal)

    def backward_flash(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **__: Any) -> int:
        return _attention_backward(query, key, value, rest[7])

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward_cpu,
        aten._scaled_dot_product_flash_attention: forward,
        aten._scaled_dot_product_flash_attention_backward: backward_flash,
    }


def count_flops(run: Callable[[], Any]) -> int:
    """
    Floating-point operations of the matrix products and attention kernels in `run`, by shape; a causal kernel counts half.

    Twice the number of multiplications, as `torch.utils.flop_counter` counts. Elementwise work is left out.
    """
    with FlopCounterMode(display=False, custom_mapping=_attention_formulas()) as counter:
        run()
    return counter.get_total_flops()


# The report


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
