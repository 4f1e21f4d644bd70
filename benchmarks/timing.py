"""Time of named variants that run side by side in one process: [`compare`] and [`ratios`]."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, ClassVar

import torch
from rich.console import Console

console = Console(width=None if sys.stdout.isatty() else 120)


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
