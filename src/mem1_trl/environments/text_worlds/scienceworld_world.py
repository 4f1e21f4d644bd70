"""ScienceWorld: primary school experiments in a house of ten rooms, thirty tasks with partial credit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...optional_packages import require
from ..helpers import hidden_method, joined_prompt
from .java_world import JavaWorld


class ScienceWorldEnvironment(JavaWorld):
    """
    Runs experiments in ScienceWorld (arXiv 2203.07540). Needs the extra `scienceworld` and Java 17 or later.

    Each instance runs a Java process from its first `reset` to `close`.

    Args:
        task (`str`, *optional*, defaults to `"boil"`):
            Task for rows that do not name one: one of thirty, such as `"grow-plant"`; see ScienceWorld's documentation.
        simplifications (`str`, *optional*, defaults to `"easy"`):
            Simplifications to apply, separated by commas; `""` for none.
        max_steps (`int`, *optional*, defaults to `100`):
            Steps after which the episode ends.
        show_valid_actions (`bool`, *optional*, defaults to `False`):
            Whether each observation lists the valid actions. Some rooms have hundreds; the list is cut after 40.

    Attributes:
        done (`bool`):
            Whether the task is solved, has failed, or is out of steps.

    Example:

    ```python
    >>> make_env = ScienceWorldEnvironment.factory("grow-plant", max_steps=150)
    ```
    """

    module = "scienceworld"

    def __init__(
        self,
        task: str = "boil",
        simplifications: str = "easy",
        max_steps: int = 100,
        show_valid_actions: bool = False,
    ) -> None:
        super().__init__(max_steps, show_valid_actions)
        self._task, self._simplifications = task, simplifications

    @property
    def mem1_settings(self) -> dict[str, Any]:
        """The settings that a model trained in this environment needs when it is run; they are saved with the model."""
        return {
            "task": self._task,
            "simplifications": self._simplifications,
            "max_steps": self._max_steps,
            "show_valid_actions": self._show_valid_actions,
        }

    @classmethod
    def factory(
        cls, task: str = "boil", simplifications: str = "easy", **kwargs: Any
    ) -> Callable[[], ScienceWorldEnvironment]:
        """A factory for `environment_factory`; same arguments as the class."""
        return partial(cls, task, simplifications, **kwargs)

    def reset(
        self,
        prompt: Any = None,
        task: str | None = None,
        variation: int = 0,
        simplifications: str | None = None,
        **row: Any,
    ) -> str:
        """
        Start a task.

        Args:
            prompt (`str` or `list[dict]`, *optional*):
                Task prompt as shown to the agent. If given, ScienceWorld's own description begins after a blank line.
            task (`str`, *optional*):
                Name of the task. `None` uses the task of the instance.
            variation (`int`, *optional*, defaults to `0`):
                Number of the variation of the task.
            simplifications (`str`, *optional*):
                Simplifications to apply. `None` uses those of the instance.
            **row:
                Further columns, not used.

        Returns:
            `str`: the task, the forms of actions, and the first observation.

        Raises:
            `ValueError`: if there is no such task, variation or simplification.
        """
        self._load(task, variation, simplifications, solve=False)
        observation, info = self._simulator.reset()
        self.done, self._score = False, 0.0
        forms = ", ".join(self._simulator.get_possible_actions())
        description = info["taskDesc"].replace("Task Description:", "").strip()
        return joined_prompt(
            prompt,
            f"{description}\nForms of actions, where OBJ is an object: {forms}.\n{self._told(observation, info['valid'])}",
        )

    def act(self, command: str) -> str:
        """
        Do something in the house.

        Args:
            command: What to do, such as look around, open door to kitchen or pick up thermometer.

        Returns:
            What happens.
        """
        simulator = self._playing()
        if self.done:
            return "The episode is over."
        observation, _, self.done, info = simulator.step(command.strip())
        self._score = info["score"] / 100
        return self._told(observation, info["valid"])

    @hidden_method
    def solution(self, **row: Any) -> list[str]:
        """The commands that solve the task of a row, for making demonstrations; takes seconds to minutes."""
        names = ("task", "variation", "simplifications")
        self._load(
            **{"task": None, "variation": 0, "simplifications": None, **{k: row[k] for k in names if k in row}},
            solve=True,
        )
        return list(self._simulator.get_gold_action_sequence())

    def _load(self, task: str | None, variation: int, simplifications: str | None, solve: bool) -> None:
        simulator = self._running()
        name = task or self._task
        count = simulator.get_max_variations(name) if name in simulator.get_task_names() else None
        if count is not None and not 0 <= variation < count:
            raise ValueError(f"variation must be between 0 and {count - 1} for the task {name!r}, got {variation}.")
        chosen = self._simplifications if simplifications is None else simplifications
        simulator.load(name, variation, chosen, generateGoldPath=solve)

    def _start(self) -> Any:
        package = require(self.module, "scienceworld", type(self).__name__)
        return package.ScienceWorldEnv("", envStepLimit=self._max_steps)
