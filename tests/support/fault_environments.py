"""Environments that fail: on demand, at random, or with the process they run in."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from typing import Any


class Misbehaving:
    """
    Does what the text of its action says; runs in a process of its own.

    Args:
        name (`str`, *optional*): Shown in answers.
    """

    def __init__(self, name: str = "m"):
        self.name = name
        self.steps = 0
        self.done = False

    def reset(self, prompt: Any = None, fails: str = "", **row: Any) -> str | None:
        self.steps, self.done = 0, False
        if fails == "reset":
            os._exit(3)
        return f"ready {self.name}" if fails == "speaks" else None

    def search(self, query: str, times: int = 1) -> str:
        """Do what it says.

        Args:
            query: What to do.
            times: How often.
        """
        self.steps += 1
        if query == "exit":
            os._exit(7)
        if query == "segfault":
            ctypes.string_at(0)
        if query == "hang":
            time.sleep(3600)
        if query == "spin":
            while True:
                pass
        if query == "raise":
            raise KeyError("lost")
        if query == "refuse":
            raise ValueError("no such page")
        if query == "odd error":
            raise OddError(1, 2)
        if query == "attribute":
            return None.nothing  # type: ignore[attr-defined]
        if query in _LEAVING:
            raise _LEAVING[query]("bye")
        if query == "mute error":
            raise MuteError
        if query == "unpicklable":
            return LockedNote()  # type: ignore[return-value]
        if query == "no text":
            return threading.Lock()  # type: ignore[return-value]
        if query == "children":
            with multiprocessing.get_context("fork").Pool(1) as pool:
                return str(pool.map(abs, [-1, -2]))
        if query == "leave a child":
            return str(subprocess.Popen(["sleep", "300"]).pid)
        if query == "big":
            return "x" * 1_000_000
        if query == "modules":
            return str(sorted({"torch", "trl", "pytest"} & set(sys.modules)))
        if query == "finish":
            self.done = True
        return f"{self.name} {query} {times} {self.steps}"

    def close(self) -> None:
        if self.name == "stubborn":
            time.sleep(3600)

    async def browse(self, page: int) -> str:
        """Open a page."""
        await asyncio.sleep(0)
        return f"page {page}"

    def get_reward(self) -> float:
        return float(self.steps)

    @property
    def mem1_state(self) -> int:
        return self.steps

    @mem1_state.setter
    def mem1_state(self, state: int) -> None:
        self.steps = state


_LEAVING = {"sys.exit": SystemExit, "cancel": asyncio.CancelledError, "leave": GeneratorExit}


class LockedNote:
    """Has a text, and cannot be pickled."""

    def __init__(self):
        self.lock = threading.Lock()

    def __str__(self):
        return "a note"


class MuteError(Exception):
    """Has no message that could be shown."""

    def __str__(self):
        raise RuntimeError("no words")


class OddError(Exception):
    """Cannot be unpickled."""

    def __init__(self, one, other):
        super().__init__("odd")


class Unlucky:
    """
    The lookup task, in which any call may fail in any way; what it does is drawn from a seed of its own.

    Attributes:
        rate (`float`): Probability of a failure in each call.
        kinds (`tuple[str]`): Kinds of failures.
        seen (`dict`): How often each kind struck where, over all instances.
    """

    rate = 0.3
    kinds = ("raise", "transient", "hang", "none", "int", "dict", "bytes", "exit", "refuse", "cancel")
    seen: dict[tuple[str, str], int] = {}  # noqa: RUF012
    luck = random.Random(0)
    lock = threading.Lock()
    hang = 1.5

    def _misfortune(self, where: str, sound: Any) -> Any:
        with self.lock:
            kind = self.luck.choice(self.kinds) if self.luck.random() < self.rate else ""
            if kind:
                self.seen[where, kind] = self.seen.get((where, kind), 0) + 1
        if kind == "raise":
            raise RuntimeError("broken\nin two lines")
        if kind == "transient":
            raise ConnectionError("nobody there")
        if kind == "refuse":
            raise ValueError("not so")
        if kind == "cancel":
            raise asyncio.CancelledError
        if kind == "exit":
            raise SystemExit(2)
        if kind == "hang":
            time.sleep(self.hang)
        return {"none": None, "int": 7, "dict": {"a": float("nan")}, "bytes": b"\xff\x00"}.get(kind, sound)

    def reset(self, prompt: Any = None, secret: str = "7", **row: Any) -> str | None:
        self.secret = secret
        self.given: str | None = None
        return self._misfortune("reset", None)

    def search(self, query: str) -> str:
        """Look the secret up."""
        return self._misfortune("search", self.secret)

    def answer(self, text: str) -> None:
        """Give the secret."""
        self.given = text
        return self._misfortune("answer", None)

    def get_reward(self) -> float:
        return self._misfortune("get_reward", float(self.given == self.secret))


class Importing:
    """Imports what is not there, in the method that its row names."""

    def reset(self, prompt=None, where="", **row):
        self.where = where
        self._import_in("reset")

    def _import_in(self, method):
        if self.where == method:
            import no_such_package  # noqa: F401

    def search(self, query: str) -> str:
        """Search."""
        self._import_in("search")
        return query

    def run(self, code: str) -> str:
        """Run code."""
        exec(code, {})
        return "ran"

    def load(self, name: str) -> str:
        """Load a module."""
        __import__(name)
        return "loaded"

    @property
    def done(self):
        self._import_in("done")
        return False

    def get_reward(self):
        self._import_in("get_reward")
        return 1.0


class Unfinished:
    """An action that yields."""

    def reset(self, **row): ...

    def many(self, query: str):
        """Find many."""
        yield query


class NoTruth:
    """As an array, neither true nor false."""

    def __bool__(self):
        raise ValueError("ambiguous")


class Unclear:
    """An attribute `done` without a truth value."""

    def __init__(self):
        self.done = NoTruth()

    def reset(self, **row): ...

    def search(self, query: str) -> str:
        """Look."""
        return query
