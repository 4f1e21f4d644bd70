"""Processes that run a script without importing the libraries again, and processes that end with the test that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path

from support.ports import held_port


class ForkServer:
    """
    A process that has imported the libraries, which takes about ten seconds, and forks itself for each script.

    A script sees its own arguments, environment variables and standard streams, and ends as any process does. What a library
    reads from the environment on import it has read from that of the server.

    Args:
        environment (`Mapping[str, str]`, *optional*):
            Variables of the server, besides those of this process.

    Example:

    ```python
    >>> with ForkServer() as server:
    ...     done = server.run("tests/scripts/evaluate_rows.py", "model", "output", ranks=2)
    >>> done.returncode, done.stdout, done.stderr
    ```
    """

    def __init__(self, environment: Mapping[str, str] | None = None):
        self.environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(theirs.fileno())],
            env={**os.environ, **self.environment},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._ready = False

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()
        try:
            self._process.wait(20)
        finally:
            end_group(self._process.pid)

    def run(
        self,
        script: str | Path,
        *arguments: str | Path,
        ranks: int = 1,
        environment: Mapping[str, str] | None = None,
        timeout: float = 600.0,
    ) -> subprocess.CompletedProcess[str]:
        """
        The exit status and output of a script.

        Args:
            script (`str` or `Path`):
                Python file.
            arguments (`str` or `Path`):
                Of its command line.
            ranks (`int`, *optional*, defaults to `1`):
                Number of processes, which find each other as under torchrun. The exit status is that of the first which failed.
            environment (`Mapping[str, str]`, *optional*):
                Variables of the script, besides those of this process and of the server.
            timeout (`float`, *optional*, defaults to `600`):
                Seconds after which the script is killed and `subprocess.TimeoutExpired` raised.
        """
        if not self._ready:
            self._ready = self._connection.recv() == "ready"
        command = [str(Path(script).resolve()), *map(str, arguments)]
        with tempfile.TemporaryDirectory() as directory, held_port() as port:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            streams = {name: str(Path(directory) / name) for name in ("stdout", "stderr")}
            self._connection.send({
                "script": command[0], "arguments": command[1:], "ranks": ranks, "directory": os.getcwd(), "timeout": timeout,
                "environment": {**os.environ, **self.environment, **(environment or {}), **place}, **streams,
            })  # fmt: skip
            status = self._connection.recv()
            stdout, stderr = (Path(path).read_text(errors="replace") for path in streams.values())
        if status is None:
            raise subprocess.TimeoutExpired(command, timeout, stdout, stderr)
        return subprocess.CompletedProcess(command, status, stdout, stderr)


def end_group(group: int) -> None:
    """Kill what is left of a process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


@contextmanager
def processes_that_end() -> Iterator[list[int]]:
    """
    Give every process that `subprocess` starts inside of this a group of its own, and kill all of the group at the end.

    A test that fails or runs out of time leaves nothing behind, and neither do the workers of a launcher that was killed itself.
    """
    groups: list[int] = []
    original = subprocess.Popen.__init__

    def start(self: subprocess.Popen, *arguments: object, **settings: object) -> None:
        own = settings.setdefault("start_new_session", True)
        original(self, *arguments, **settings)
        if own:
            groups.append(self.pid)

    subprocess.Popen.__init__ = start
    try:
        yield groups
    finally:
        subprocess.Popen.__init__ = original
        for group in groups:
            end_group(group)
