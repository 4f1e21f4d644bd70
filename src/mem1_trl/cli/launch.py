"""Starts a command again in the processes of `accelerate launch`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from .options import CommandError

_MARK = "MEM1_LAUNCHED"


def launched() -> bool:
    """Whether this process was started by [`launch`], or by another launcher such as `torchrun`."""
    return _MARK in os.environ or "LOCAL_RANK" in os.environ


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


def launch(command: str, args: Sequence[str], config: str | None, processes: int | None) -> None:
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

    Raises:
        `CommandError`: If there is no such configuration, or a process has failed.
    """
    from subprocess import CalledProcessError

    from accelerate.commands.launch import launch_command, launch_command_parser

    words = [] if config is None else ["--config_file", _config_file(config)]
    words += [] if processes is None else ["--num_processes", str(processes)]
    parsed = launch_command_parser().parse_args([*words, "--module", "mem1_trl", command, *args])
    os.environ[_MARK] = "1"
    try:
        launch_command(parsed)
    except (SystemExit, CalledProcessError, ChildProcessError) as error:
        if getattr(error, "code", 1):
            raise CommandError("a process has failed, see above") from None
    finally:
        del os.environ[_MARK]


def _config_file(config: str) -> str:
    if Path(config).is_file():
        return config
    known = files("trl.accelerate_configs")
    path = known.joinpath(f"{config}.yaml")
    if not path.is_file():
        names = sorted(one.name.removesuffix(".yaml") for one in known.iterdir() if one.name.endswith(".yaml"))
        raise CommandError(f"accelerate_config must be a file or one of {', '.join(names)}, got {config!r}")
    return str(path)
