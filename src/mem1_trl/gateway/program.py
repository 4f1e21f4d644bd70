"""A program of the user's that runs: a function in a thread, or a command in a process group of its own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import subprocess
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ..json_text import write_json

_MOST_OUTPUT = 2**20  # characters of a command that are read
_PATIENCE = 2.0  # seconds between asking a command to end and killing it


class RunningProgram:
    """
    A program that was started.

    Args:
        program (`Callable` or `Sequence[str]`):
            As in [`GatewayEnvironment`].
        row (`Mapping`):
            What it is about.
        base_url (`str`):
            Where it finds the model.
        ended (`Callable[[Any, BaseException | None], None]`):
            Called in another thread with its result, or why it has none.
    """

    def __init__(
        self,
        program: Any,
        row: Mapping[str, Any],
        base_url: str,
        ended: Callable[[Any, BaseException | None], None],
    ):
        self._ended = ended
        self._process: subprocess.Popen[str] | None = None
        if callable(program):
            run: Callable[[], Any] = lambda: program(dict(row), base_url)  # noqa: E731
        else:
            command: Sequence[str] = program
            run = lambda: self._run_command(command, row, base_url)  # noqa: E731
        threading.Thread(target=self._run, args=(run,), daemon=True, name="mem1-program").start()

    def stop(self) -> None:
        """End a command with all that it has started. A function cannot be ended; nobody waits for it any more."""
        process = self._process
        if process is None:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)

    def _run(self, run: Callable[[], Any]) -> None:
        try:
            result = run()
            if inspect.isawaitable(result):
                result = asyncio.run(_finish(result))
        except BaseException as error:
            self._ended(None, error)
        else:
            self._ended(result, None)

    def _run_command(self, command: Sequence[str], row: Mapping[str, Any], base_url: str) -> str:
        address = {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "none"}
        self._process = process = subprocess.Popen(
            list(command),
            env={**os.environ, **address},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        out, said = process.communicate(write_json(dict(row)))
        if process.returncode != 0:
            last = said.strip().rpartition("\n")[2]
            raise RuntimeError(f"the command ended with status {process.returncode}: {last:.200}")
        return out[-_MOST_OUTPUT:]


async def _finish(result: Awaitable[Any]) -> Any:
    return await result
