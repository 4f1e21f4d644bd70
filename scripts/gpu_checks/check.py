"""A check, what it finds, and running several in a process beside this one."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

LONGEST = 180.0
"""Seconds that one check may take, its compilation included."""

START = 120.0
"""Seconds that a process may take to import its libraries."""


@dataclass(frozen=True)
class Setting:
    """
    Where and how large.

    Attributes:
        device (`str`):
            `"cuda"`, or `"cpu"`, where our CPU kernels stand in for those of a GPU.
        short (`bool`):
            Whether sizes are as small as can be.
    """

    device: str
    short: bool


class Skipped(Exception):
    """Raised by a check that cannot be made here, with the reason."""


@dataclass
class Finding:
    """
    What a check has measured.

    Attributes:
        measured (`dict[str, Any]`):
            Numbers by name.
        differs (`list[str]`):
            A sentence for each that is not as expected.
    """

    measured: dict[str, Any] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)

    def expect(self, name: str, value: float, most: float) -> None:
        """Note a number that must be at most `most`; one that is not a number is more."""
        self.measured[name] = value
        if not value <= most:
            self.differs.append(f"{name} is {value:.3g}, expected at most {most:.3g}")

    def expect_equal(self, name: str, value: Any, wanted: Any) -> None:
        """Note something that must be as it is wanted."""
        self.measured[name] = value
        if value != wanted:
            self.differs.append(f"{name} is {value!r}, expected {wanted!r}")


@dataclass(frozen=True)
class Check:
    """
    Attributes:
        name (`str`):
            What is checked, in a few words.
        run (`Callable`):
            Takes a [`Setting`] and returns a [`Finding`].
    """

    name: str
    run: Callable[[Setting], Finding]


@dataclass
class Outcome:
    """
    Attributes:
        name (`str`): Of the check.
        outcome (`str`): `"as expected"`, `"different"`, `"failed"` or `"skipped"`.
        seconds (`float`): What it took.
        measured (`dict`): Numbers by name.
        reasons (`list[str]`): What differed, what was raised, or why it was skipped.
    """

    name: str
    outcome: str
    seconds: float
    measured: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def outcome_of(check: Check, setting: Setting) -> Outcome:
    """What a check finds, in this process."""
    began = time.perf_counter()

    def done(outcome: str, finding: Finding | None = None, *reasons: str) -> Outcome:
        finding = finding or Finding()
        seconds = round(time.perf_counter() - began, 1)
        return Outcome(check.name, outcome, seconds, finding.measured, [*finding.differs, *reasons])

    try:
        finding = check.run(setting)
    except Skipped as reason:
        return done("skipped", None, str(reason))
    except Exception as error:  # of any library; the others go on
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        return done("failed", None, f"{type(error).__name__} at {place}: {error}")
    return done("different" if finding.differs else "as expected", finding)


class Worker:
    """
    A process that makes checks, one after the other.

    It is a new process, not a fork: a fork cannot use CUDA once its parent has, and some libraries initialise CUDA when they are imported
    (bitsandbytes, which PEFT imports).
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()
        if self.pipe.poll(START):  # libraries are imported
            self.pipe.recv()

    def make(self, check: Check, setting: Setting, seconds: float) -> Outcome | None:
        """What a check finds; `None` if it has not ended after so many seconds."""
        began = time.perf_counter()
        try:
            self.pipe.send((check, setting))
            found: Outcome | None = self.pipe.recv() if self.pipe.poll(seconds) else None
        except (EOFError, OSError):
            self.process.join()
            reason = f"its process ended with exit status {self.process.exitcode}"
            found = Outcome(check.name, "failed", round(time.perf_counter() - began, 1), reasons=[reason])
        return found

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def outcomes(checks: list[Check], setting: Setting, seconds: float) -> Iterator[Outcome]:
    """
    What checks find, one after the other, in another process; after a failed one in a new one, since an error of a GPU stays with its process.

    Args:
        checks (`list[Check]`):
            The checks. Their functions must be importable.
        setting ([`Setting`]):
            Where they run.
        seconds (`float`):
            Time for all of them. A check that has not ended by then is ended, and those after it are skipped. One that takes more than
            [`LONGEST`] of it has failed.
    """
    end, worker = time.perf_counter() + seconds, None
    try:
        for check in checks:
            left = end - time.perf_counter()
            if left <= 0:
                yield Outcome(check.name, "skipped", 0.0, reasons=[f"the {seconds:g} seconds were over"])
                continue
            worker = worker or Worker()
            left = max(0.0, end - time.perf_counter())
            limit = min(left, LONGEST)
            found = worker.make(check, setting, limit)
            unfinished = found is None
            if found is None and limit < left:
                found = Outcome(check.name, "failed", limit, reasons=[f"it had not ended after {limit:.0f} seconds"])
            elif found is None:
                found = Outcome(
                    check.name, "skipped", limit, reasons=[f"the {seconds:g} seconds were over before it ended"]
                )
            if unfinished or found.outcome == "failed":
                worker.end()
                worker = None
            yield found
    finally:
        if worker is not None:
            worker.end()


def _serve(pipe: Any) -> None:
    """Make the checks that come through a pipe; what libraries print meanwhile is dropped."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    pipe.send("ready")
    while True:
        try:
            check, setting = pipe.recv()
        except EOFError:
            return
        pipe.send(outcome_of(check, setting))
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()
