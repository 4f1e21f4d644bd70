"""Finds the command, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..printable import one_line
from ..version import __version__

COMMANDS = {
    "chat": ("chat", "talk with an agent in the terminal"),
    "eval": ("evaluate", "evaluate an agent on tasks of more and more objectives"),
    "index": ("index", "write a search index of a corpus to disk"),
    "report": ("report", "write what a run found as one HTML page with plots"),
    "retriever": ("retriever", "search a corpus over HTTP, with the API of Search-R1"),
    "serve": ("serve", "serve an agent over OpenAI's API"),
    "train": ("train", "train an agent by reinforcement"),
    "trajectories": ("trajectories", "print episodes of an evaluation, turn by turn"),
}
"""Command -> its module below this package, and what it does. A module is imported when its command is used."""

USAGE = f"""\
usage: mem1 COMMAND [OPTIONS]

Agents that keep one compact memory instead of a growing context.

commands:
{chr(10).join(f"  {name:14}{what}" for name, (_, what) in COMMANDS.items())}

`mem1 COMMAND --help` lists the options of a command. `mem1 --version` prints the version.
MEM1_DEBUG=1 shows the traceback of an error instead of one sentence.
"""


def main(args: Sequence[str] | None = None) -> int:
    """
    Run a command. What its options name by import path is searched for in the current directory, too.

    Args:
        args (`Sequence[str]`, *optional*):
            The arguments; `None` takes those of the process.

    Returns:
        `int`: 0 if all went well, 2 for wrong input, 130 if interrupted.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(__version__)
        return 0
    command = args[0]
    if command not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(COMMANDS)}."
        print(f"mem1: there is no command {command!r}: {hint}", file=sys.stderr)
        return 2

    from ..retrying import UnusableServer
    from ..trainers.run_stopped import RunStopped
    from .options import CommandError

    if os.getcwd() not in sys.path:  # last, so that nothing in it hides an installed package
        sys.path.append(os.getcwd())
    try:
        import_module(f".{COMMANDS[command][0]}", __package__).run(args[1:])
    except KeyboardInterrupt:
        print(f"\nmem1 {command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mem1 trajectories ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CommandError, RunStopped, UnusableServer, ValueError, OSError, ImportError) as error:
        if os.environ.get("MEM1_DEBUG"):
            raise
        # Such as which reward function it was; that of another process is its traceback
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()) if "\n" not in note)
        print(f"mem1 {command}: {one_line(error)}{notes}", file=sys.stderr)
        if isinstance(error, CommandError):
            print(f"`mem1 {command} --help` lists the options.", file=sys.stderr)
        return 2
    return 0
