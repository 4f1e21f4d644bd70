"""A check, what it finds, and running several, each in a process of its own."""

from __future__ import annotations

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


def outcomes(checks: list[Check], setting: Setting, seconds: float) -> Iterator[Outcome]:
    """
    What checks find, one after the other, each in a fork: an error of a GPU ends its process, and not the others.

    Args:
        checks (`list[Check]`):
            The checks.
        setting ([`Setting`]):
            Where they run.
        seconds (`float`):
            Time for all of them. A check that has not ended by then is ended, and those after it are skipped.
    """
    end = time.perf_counter() + seconds
    context = multiprocessing.get_context("fork")  # the libraries are imported already
    for check in checks:
        left = end - time.perf_counter()
        if left <= 0:
            yield Outcome(check.name, "skipped", 0.0, reasons=[f"the {seconds:g} seconds were over"])
            continue
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(sender, check, setting))
        began = time.perf_counter()
        process.start()
        sender.close()
        try:
            found = receiver.recv() if receiver.poll(left) else None
            reason = f"it had not ended after {left:.0f} seconds"
        except EOFError:
            process.join()
            found, reason = None, f"its process ended with exit status {process.exitcode}"
        if process.is_alive() and found is None:
            process.kill()  # a handler of the parent, which the fork has, may take the milder signal
        process.join()
        yield found or Outcome(check.name, "failed", round(time.perf_counter() - began, 1), reasons=[reason])


def _send(sender: Any, check: Check, setting: Setting) -> None:
    """What a check finds, through a pipe; what libraries print meanwhile is dropped."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if setting.device == "cpu":
        torch.set_num_threads(1)  # threads of the parent do not exist in a fork
    sender.send(outcome_of(check, setting))
