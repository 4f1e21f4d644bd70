"""A program of the user's that runs: a function in a thread, or a command in a process group of its own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import IO, Any

from ..environment_runtime.rows import own_copy
from ..json_text import write_json

_MOST_OUTPUT = 2**20  # bytes of a command's output that are read
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
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()
        if callable(program):
            run: Callable[[], Any] = lambda: program(own_copy(dict(row)), base_url)  # noqa: E731
        else:
            command: Sequence[str] = program
            run = lambda: self._run_command(command, row, base_url)  # noqa: E731
        threading.Thread(target=self._run, args=(run,), daemon=True, name="mem1-program").start()

    def stop(self) -> None:
        """
        End a command and all that it has started, without waiting: it is asked to end, and killed if it has not after two seconds. A function
        cannot be ended and runs on, but its result is ignored.
        """
        with self._lock:
            self._stopped = True
            process = self._process
        if process is not None:
            _signal(process, signal.SIGTERM)
            # Not a daemon: a program that ends now ends when this is done
            threading.Thread(target=_kill_after, args=(process,), name="mem1-program-end").start()

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
        # Files and not pipes: what a command has started may hold a pipe open after it
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
            given.write(write_json(dict(row)).encode("utf-8"))
            given.seek(0)
            with self._lock:
                if self._stopped:
                    raise RuntimeError("it was stopped before it began")
                self._process = process = subprocess.Popen(
                    list(command),
                    env={**os.environ, **address},
                    stdin=given,
                    stdout=out,
                    stderr=said,
                    start_new_session=True,
                )
            status = process.wait()
            _signal(process, signal.SIGKILL)  # what it has left behind
            if status != 0:
                last = _end_of(said).strip().rpartition("\n")[2]
                raise RuntimeError(f"the command ended with status {status}: {last:.200}")
            return _end_of(out)


def _end_of(file: IO[bytes]) -> str:
    """The last of what was written to a file, with the line breaks of Python."""
    file.seek(max(file.seek(0, os.SEEK_END) - _MOST_OUTPUT, 0))
    return io.TextIOWrapper(io.BytesIO(file.read()), errors="replace").read()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process and all that it has started, which may outlive it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _kill_after(process: subprocess.Popen[bytes]) -> None:
    """Kill a process if it does not end by itself."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    _signal(process, signal.SIGKILL)


async def _finish(result: Awaitable[Any]) -> Any:
    return await result
