"""Checkpoints of runs that resume exactly: which of them are complete, and the state that `Trainer` does not save."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..json_text import write_whole
from ..update.critic.head import HEAD_FILE

if TYPE_CHECKING:
    from torch.utils.data import Sampler

COMPLETE_FILE = "mem1_checkpoint.json"
"""Written last, so that a checkpoint without it was interrupted."""

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
"""Name of the directory of a checkpoint."""


def mark_complete(directory: str | os.PathLike[str], global_step: int) -> None:
    """Mark a checkpoint as written to its end."""
    write_whole(Path(directory) / COMPLETE_FILE, json.dumps({"global_step": global_step}) + "\n")


def mark_incomplete(directory: str | os.PathLike[str]) -> None:
    """Remove the mark of a checkpoint that is about to be written (again)."""
    (Path(directory) / COMPLETE_FILE).unlink(missing_ok=True)


def is_complete(directory: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint was written to its end."""
    return (Path(directory) / COMPLETE_FILE).is_file()


def has_random_states(directory: str | os.PathLike[str]) -> bool:
    """Whether `Trainer` has saved its random states in a checkpoint, as it does beside optimizer and schedule, unless `save_only_model` is set."""
    return any(Path(directory).glob("rng_state*.pth"))


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """Path of the latest complete checkpoint of a run, or `None`."""
    steps = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        match = CHECKPOINT.fullmatch(path.name)
        if match and is_complete(path):
            steps[int(match[1])] = str(path)
    return steps[max(steps)] if steps else None


def checkpoint_algorithm(directory: str | os.PathLike[str]) -> str:
    """`"ppo"` or `"grpo"`: the algorithm of the run that wrote a complete checkpoint, in which PPO also saves a critic."""
    return "ppo" if any(Path(directory).glob(f"*/{HEAD_FILE}")) else "grpo"


def checkpoint_to_resume(
    resume_from_checkpoint: str | bool | None, output_dir: str | None, algorithm: str | None = None
) -> str | None:
    """
    The checkpoint that `train(resume_from_checkpoint=...)` means.

    Args:
        resume_from_checkpoint (`str` or `bool` or `None`):
            A path, `True` for the latest complete checkpoint of the run, or nothing.
        output_dir (`str` or `None`):
            Directory of the run.
        algorithm (`str`, *optional*):
            `"ppo"` or `"grpo"`, which must be that of the checkpoint. `None` takes either.

    Returns:
        `str` or `None`: A complete checkpoint, or `None` to start from the beginning.

    Raises:
        `ValueError`: If there is none, if the one that is named was not written to its end, or if it is of a run with another algorithm.
    """
    if not resume_from_checkpoint:
        return None
    found = _complete_checkpoint(resume_from_checkpoint, output_dir)
    written_by = checkpoint_algorithm(found)
    if algorithm not in (None, written_by):
        raise ValueError(
            f"The checkpoint {found} is of a run with {written_by}, which {algorithm} cannot continue: resume with {written_by}, or start "
            "from the beginning."
        )
    return found


def _complete_checkpoint(resume_from_checkpoint: str | Literal[True], output_dir: str | None) -> str:
    last = last_complete_checkpoint(output_dir or ".")
    if resume_from_checkpoint is True:
        if last is None:
            raise ValueError(
                f"There is no complete checkpoint in {output_dir}: call train() without resume_from_checkpoint to start from the beginning."
            )
        return last
    if not Path(resume_from_checkpoint).is_dir():
        raise ValueError(
            f"There is no checkpoint {resume_from_checkpoint}: "
            + (f"the latest is {last}." if last else f"{output_dir} holds none.")
        )
    if not is_complete(resume_from_checkpoint):
        instead = f"resume from {last} instead" if last else "start from the beginning"
        raise ValueError(
            f"The checkpoint {resume_from_checkpoint} was not written to its end (it has no {COMPLETE_FILE}): {instead}."
        )
    return str(resume_from_checkpoint)


@dataclass
class RunState:
    """
    The progress of one process of a run, beyond weights, optimizer and random states.

    Attributes:
        micro_step (`int`):
            Micro-batches trained on so far.
        buffer (`list[dict]` or `None`):
            Micro-batches of the last generation batch, if some of them are still to be trained on.
        metrics (`dict[str, list[float]]`):
            Values that the next log entry will average.
        loss (`float`):
            Sum of losses that the next log entry will average.
        last_logged (`int`):
            Optimizer step of the last log entry.
        entropy (`list[float]`):
            State of TRL's adaptive entropy bonus: its coefficient and the entropy it last saw.
        processes (`int` or `None`):
            Number of processes of the run; `None` in a checkpoint that does not say it.
        batches (`dict[str, Any]`):
            Settings that say how many micro-batches a generation batch has, and what each holds; empty in a checkpoint that does not say it.
    """

    micro_step: int
    buffer: list[dict[str, Any]] | None
    metrics: dict[str, list[float]]
    loss: float
    last_logged: int
    entropy: list[float]
    processes: int | None = None
    batches: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: str | os.PathLike[str], process: int) -> None:
        """Write the state of one process into a checkpoint."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        torch.save({field.name: getattr(self, field.name) for field in fields(self)}, self._path(directory, process))

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], process: int, processes: int, device: torch.device
    ) -> RunState | None:
        """The state of one process, or in all of them `None` if the checkpoint was written by another number of `processes`."""
        path = cls._path(directory, process)
        if not path.is_file():
            return None
        place = (
            "cpu" if device.type == "cpu" else device
        )  # of several processes it is `cpu:0`, which PyTorch does not load to
        state = cls(**torch.load(path, map_location=place, weights_only=True))
        return state if state.processes in (None, processes) else None

    @staticmethod
    def _path(directory: str | os.PathLike[str], process: int) -> Path:
        return Path(directory) / f"mem1_run_state_{process}.pt"


def replay_shuffles(sampler: Sampler, epochs: int) -> None:
    """
    Bring TRL's sampler to where it was after some epochs.

    It draws one permutation per epoch from a generator that is seeded when the run begins, and has no memory of epochs: a
    resumed run would go through the data in the order of the first epoch again.
    """
    if getattr(sampler, "shuffle", False):
        for _ in range(epochs):
            torch.randperm(sampler.num_samples, generator=sampler.generator)  # type: ignore[attr-defined]
