"""What an agent knows after each answer, kept under what was said, in memory and on disk, within limits."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from ..json_text import read_json, write_json, write_whole

logger = logging.getLogger(__name__)

_PRUNE_EVERY = 64  # files written between two looks at how many there are


class StateStore:
    """
    States by key, never changed once they are there: a conversation that goes on has another key.

    Args:
        directory (`str` or `os.PathLike`, *optional*):
            Where each state is written, so that it survives a restart. `None` keeps them in memory only, as do states that cannot be written:
            the log says so, once until one was written again.
        max_states (`int`, *optional*, defaults to `10000`):
            Most states in memory; those that were used least recently go.
        max_bytes (`int`, *optional*, defaults to `268435456`):
            Most bytes of states in memory.
        max_files (`int`, *optional*, defaults to `100000`):
            Most states on disk; those that were used least recently are deleted.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        max_states: int = 10_000,
        max_bytes: int = 256 * 2**20,
        max_files: int = 100_000,
    ):
        for name, value in (("max_states", max_states), ("max_bytes", max_bytes), ("max_files", max_files)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.directory = None if directory is None else Path(directory)
        if self.directory is not None:
            _make(self.directory)
        self.max_states = max_states
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.bytes = 0
        self._lock = threading.Lock()
        self._disk = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._written = 0
        self._fails = False

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Any:
        """The state of a key; `None` if it is not known (any more)."""
        with self._lock:
            packed = self._kept.get(key)
            if packed is not None:
                self._kept.move_to_end(key)
        if self.directory is not None:
            with contextlib.suppress(OSError):
                os.utime(self.directory / f"{key}.json")  # it was used now, and goes after others
        if packed is not None:
            return read_json(zlib.decompress(packed))
        if self.directory is None:
            return None
        try:
            value = read_json((self.directory / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        self._keep(key, value)
        return value

    def put(self, key: str, value: Any) -> None:
        """Keep a state, and write it to disk if there is a directory. Where that fails it is in memory all the same: its answer must not be lost."""
        self._keep(key, value)
        if self.directory is None:
            return
        text = write_json(value)
        try:
            with self._disk:  # the same state may come from two requests at once
                _write(self.directory, key, text)
        except OSError as error:
            self._warn(self.directory, error)
            return
        with self._lock:
            self._fails = False
            self._written += 1
            due = self._written % _PRUNE_EVERY == 0
        if due:
            self._prune(self.directory)

    def _warn(self, directory: Path, error: OSError) -> None:
        with self._lock:
            fails, self._fails = self._fails, True
        if not fails:
            logger.warning(
                "The state of a conversation could not be written to %s (%s): it is in memory only, and so are others until one can be "
                "written again.",
                directory,
                error.strerror or error,
            )

    def _keep(self, key: str, value: Any) -> None:
        packed = zlib.compress(write_json(value).encode(), 1)
        with self._lock:
            self.bytes += len(packed) - len(self._kept.pop(key, b""))
            self._kept[key] = packed
            while len(self._kept) > self.max_states or (self.bytes > self.max_bytes and len(self._kept) > 1):
                _, dropped = self._kept.popitem(last=False)
                self.bytes -= len(dropped)

    def _prune(self, directory: Path) -> None:
        files = []
        for path in directory.glob("*.json"):
            with contextlib.suppress(OSError):
                files.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(files)[: max(len(files) - self.max_files, 0)]:
            with contextlib.suppress(OSError):
                path.unlink()


def _write(directory: Path, key: str, text: str) -> None:
    """Write the state of a key; the directory is made again if it was deleted."""
    path = directory / f"{key}.json"
    try:
        write_whole(path, text)
    except FileNotFoundError:
        _make(directory)
        write_whole(path, text)


def _make(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
