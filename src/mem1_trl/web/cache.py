"""A file with the pages and search results of a run, so that the run can be repeated."""

from __future__ import annotations

import sqlite3
import threading
import time
import zlib
from pathlib import Path
from typing import Any

from ..json_text import read_json, write_json

_MODES = ("read_write", "replay")
_UNMOVED = 20
"""Entries after which what was written beside the file, in `-wal`, is moved into it."""


class WebCache:
    """
    Pages and search results in one sqlite file. Threads and processes may share it. While it is open, the last entries stand in
    a second file, whose name ends in `-wal`; they move into the first with every 20th entry, and when it is closed.

    Args:
        path (`str` or `Path`):
            The file; it is created if it does not exist.
        mode (`str`, *optional*, defaults to `"read_write"`):
            `"read_write"` answers from the file if it has an entry, else from the web, and adds the answer. Temporary
            failures, such as a time-out, are added too, but the next request goes to the web again. `"replay"` answers from
            the file only, temporary failures included: a run is repeated as it was, without a network, and a missing entry is
            an error.

    Raises:
        `ValueError`: if `mode` is neither of the two, or the file is not a web cache.
        `FileNotFoundError`: if the file to replay does not exist.
    """

    def __init__(self, path: str | Path, mode: str = "read_write") -> None:
        if mode not in _MODES:
            raise ValueError(f"mode must be 'read_write' or 'replay', got {mode!r}; to use no cache, pass cache=None.")
        if mode == "replay" and not Path(path).is_file():
            raise FileNotFoundError(
                f"There is no web cache {str(path)!r} to replay: record one with mode='read_write'."
            )
        self.path = str(path)
        self.mode = mode
        self._lock = threading.Lock()
        self._written = 0
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        uri = Path(path).absolute().as_uri() + ("?mode=ro" if mode == "replay" else "")
        try:
            self._database = sqlite3.connect(uri, uri=True, timeout=60, check_same_thread=False)
            if mode == "read_write":
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS web (kind TEXT, key TEXT, value BLOB, passing INTEGER, written REAL, "
                    "PRIMARY KEY (kind, key))"
                )
                self._database.commit()
                self._move_into_file()
            self._database.execute("SELECT kind, key, value, passing, written FROM web LIMIT 1").fetchone()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path!r} is not a web cache ({error}): choose another file.") from None

    def __reduce__(self) -> Any:
        return WebCache, (self.path, self.mode)

    def __len__(self) -> int:
        """Number of pages and searches in the file."""
        with self._lock:
            return int(self._database.execute("SELECT count(*) FROM web").fetchone()[0])

    @property
    def replay(self) -> bool:
        """Whether all answers come from the file."""
        return self.mode == "replay"

    def get(self, kind: str, key: str) -> Any:
        """The stored value of a key; `None` if there is none, or if it is a temporary failure and the mode is not `"replay"`."""
        with self._lock:
            row = self._database.execute(
                "SELECT value, passing FROM web WHERE kind = ? AND key = ?", (kind, key)
            ).fetchone()
        if row is None or (row[1] and not self.replay):
            return None
        return read_json(zlib.decompress(row[0]))

    def get_of_any(self, kind: str, beginning: str) -> Any:
        """The stored value of the first key that begins so, temporary failures included; `None` if there is none."""
        with self._lock:
            row = self._database.execute(
                "SELECT value FROM web WHERE kind = ? AND substr(key, 1, ?) = ? ORDER BY key LIMIT 1",
                (kind, len(beginning), beginning),
            ).fetchone()
        return None if row is None else read_json(zlib.decompress(row[0]))

    def put(self, kind: str, key: str, value: Any, passing: bool = False) -> None:
        """Store a JSON-serializable value."""
        data = zlib.compress(write_json(value).encode())
        with self._lock:
            self._database.execute(
                "INSERT OR REPLACE INTO web VALUES (?, ?, ?, ?, ?)", (kind, key, data, int(passing), time.time())
            )
            self._database.commit()
            self._written += 1
            if self._written % _UNMOVED == 0:
                self._move_into_file()

    def _move_into_file(self) -> None:
        """Move what was written into the file itself, as far as no other process reads it."""
        self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()
