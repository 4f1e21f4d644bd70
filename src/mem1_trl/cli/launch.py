"""Starts a command again in the processes of `accelerate launch`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from .options import CommandError

_MARK = "MEM1_LAUNCHED"


def launched() -> bool:
    """Whether this process was started by [`launch`], or by another launcher such as `torchrun`."""
    return _MARK in os.environ or "LOCAL_RANK" in os.environ


def has_speaker() -> bool:
    """Whether this process was started by [`launch`], which says what is to be said once."""
    return _MARK in os.environ


def own_arguments(args: Sequence[str]) -> list[str]:
    """A command line without what is meant for the launcher."""
    kept, words = [], iter(args)
    for word in words:
        name = word.partition("=")[0].replace("-", "_").removeprefix("__")
        if name not in ("accelerate_config", "num_processes"):
            kept.append(word)
        elif "=" not in word:
            next(words, None)
    return kept


def count_processes(config: str | None, processes: int | None) -> int:
    """
    Number of processes that [`launch`] would start, on all machines.

    Raises:
        `CommandError`: If there is no such configuration.
    """
    return _count(_settings(config), processes)


def _count(settings: Mapping[str, Any], processes: int | None) -> int:
    count = processes or settings.get("num_processes")
    return count if isinstance(count, int) and count > 0 else 1


@contextmanager
def as_one_of(processes: int | None) -> Iterator[None]:
    """Configurations that are made here check their batches as in one of so many processes, which are not started yet; `None` is for this one."""
    from transformers import TrainingArguments

    if processes is None:
        yield
        return
    own: Any = TrainingArguments.world_size
    TrainingArguments.world_size = property(lambda self: processes)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        TrainingArguments.world_size = own  # type: ignore[method-assign]


def launch(command: str, args: Sequence[str], config: str | None, processes: int | None, on_cpu: bool = False) -> None:
    """
    Run a command of `mem1` in several processes.

    Args:
        command (`str`):
            Its name.
        args (`Sequence[str]`):
            Its arguments.
        config (`str`, *optional*):
            File of `accelerate config`, or the name of one that TRL brings.
        processes (`int`, *optional*):
            Number of processes, in place of the one in the file.
        on_cpu (`bool`, *optional*, defaults to `False`):
            Whether the command leaves GPUs alone.

    Raises:
        `CommandError`: If there is no such configuration, there are fewer GPUs than processes, or a process has failed.
        `KeyboardInterrupt`: If they were interrupted.
    """
    from subprocess import CalledProcessError

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    words = [] if config is None else ["--config_file", _config_file(config)]
    words += [] if processes is None else ["--num_processes", str(processes)]
    settings = _settings(config)
    marks = {_MARK: "1"}
    if _starts_one_alone(settings, _count(settings, processes), on_cpu):
        words.append("--multi_gpu")  # its launcher is torch's, which starts processes on a CPU, too
        if settings.get("use_cpu"):
            marks["ACCELERATE_USE_CPU"] = "true"
    parsed = launch_command_parser().parse_args([*words, "--module", "mem1_trl", command, *args])
    before = {name: os.environ.get(name) for name in marks}
    os.environ.update(marks)
    try:
        launch_command(parsed)
    except SignalException as error:  # by which torch's launcher says that it got one
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    except (SystemExit, CalledProcessError, ChildProcessError, ChildFailedError) as error:
        if getattr(error, "code", 1):
            raise CommandError("a process has failed, see above") from None
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _starts_one_alone(settings: Mapping[str, Any], count: int, on_cpu: bool) -> bool:
    """
    Whether accelerate, told of no GPUs, would start a single process where several are asked for.

    Raises:
        `CommandError`: If there are fewer GPUs on this machine than processes.
    """
    import torch

    if count == 1 or settings.get("num_machines", 1) != 1:
        return False
    devices = 0 if on_cpu or settings.get("use_cpu") else torch.accelerator.device_count()
    if 0 < devices < count:
        raise CommandError(
            f"num_processes is {count}, and each takes a GPU, of which this machine has {devices}: ask for fewer, or give --use_cpu true"
        )
    by_mpi = settings.get("mpirun_config") or settings.get("mpirun_hostfile")
    return str(settings.get("distributed_type", "NO")).upper() in ("NO", "MULTI_CPU") and not by_mpi


def _settings(config: str | None) -> dict[str, Any]:
    """What the configuration says, or the user's own of `accelerate config` if none is named; nothing if there is none."""
    import yaml
    from accelerate.commands.config.config_args import default_config_file

    path = Path(default_config_file if config is None else _config_file(config))
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"{path} is not a configuration of accelerate: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise CommandError(f"{path} is not a configuration of accelerate: it must hold names and values")
    return found


def _config_file(config: str) -> str:
    if Path(config).is_file():
        return config
    known = files("trl.accelerate_configs")
    path = known.joinpath(f"{config}.yaml")
    if not path.is_file():
        names = sorted(one.name.removesuffix(".yaml") for one in known.iterdir() if one.name.endswith(".yaml"))
        raise CommandError(f"accelerate_config must be a file or one of {', '.join(names)}, got {config!r}")
    return str(path)
