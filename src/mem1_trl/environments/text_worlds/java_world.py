"""The base of TextWorldExpress and ScienceWorld: a simulator in its own Java process, which starts at the first `reset`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ...optional_packages import require
from ..helpers import hidden_method
from ..recipe import Recipe, recipe_of_call

_SHOWN = 40


class JavaWorld(ABC):
    """
    A text world that a Java process simulates.

    Args:
        max_steps (`int`):
            Steps after which the simulator ends the episode.
        show_valid_actions (`bool`):
            Whether each observation lists the valid actions.

    Attributes:
        done (`bool`):
            Whether the task is solved, failed, or out of steps.
    """

    module = ""
    """Package of the simulator, which is also the name of the extra, with dashes for underscores."""

    def __init__(self, max_steps: int, show_valid_actions: bool) -> None:
        require(self.module, self.module.replace("_", "-"), type(self).__name__)
        if shutil.which("java") is None:
            raise RuntimeError(
                f"{type(self).__name__} needs Java 17 or later, and there is no `java` on the PATH: install it, for instance "
                "`apt install default-jre-headless`."
            )
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}.")
        self._max_steps = max_steps
        self._show_valid_actions = show_valid_actions
        self._simulator: Any = None
        self.done = False
        self._score = 0.0

    @property
    @abstractmethod
    def mem1_settings(self) -> dict[str, Any]:
        """The arguments of the class."""

    @property
    def _recipe(self) -> Recipe:
        return recipe_of_call(type(self).__name__, **self.mem1_settings)

    @abstractmethod
    def _start(self) -> Any:
        """Start the simulator."""

    def _running(self) -> Any:
        """The simulator; a new one if there is none yet, or its process has died."""
        if self._simulator is not None and self._simulator._gateway.java_process.poll() is not None:
            self.close()
        if self._simulator is None:
            self._simulator = self._start()
        return self._simulator

    def _playing(self) -> Any:
        """The simulator in the middle of an episode."""
        if self._simulator is None:
            raise RuntimeError("No episode has been started: call `reset` first.")
        if self._simulator._gateway.java_process.poll() is not None:
            raise RuntimeError(f"The Java process of {type(self).__name__} has died, so its episode is lost.")
        return self._simulator

    def get_reward(self) -> float:
        """The share of the task that was solved, 0 to 1."""
        return max(0.0, self._score)

    @hidden_method
    def close(self) -> None:
        """Stop the Java process; the next `reset` starts a new one."""
        simulator, self._simulator = self._simulator, None
        if simulator is None:
            return
        gateway = simulator._gateway
        process = gateway.java_process
        with contextlib.suppress(Exception):
            if process.poll() is None:
                simulator.close()
            else:  # the process is gone, so py4j's shutdown would log an error per object
                gateway._gateway_client.is_connected = False
                gateway.shutdown_callback_server()
        simulator.close = _nothing  # called again when the simulator is collected
        # The packages do not wait for the process, and a process without a message would keep running
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _told(self, observation: str, valid: Sequence[str]) -> str:
        """An observation, with the valid actions."""
        if not self._show_valid_actions:
            return observation.strip()
        shown = sorted(valid)[:_SHOWN]
        more = f", and {len(valid) - len(shown)} more" if len(valid) > len(shown) else ""
        return f"{observation.strip()}\nValid actions: {', '.join(shown)}{more}."


def _nothing() -> None:
    pass
