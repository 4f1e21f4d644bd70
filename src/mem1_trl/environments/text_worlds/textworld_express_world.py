"""TextWorldExpress: eight text games (cooking, coins, maps, sorting, ...), thousands of steps per second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...optional_packages import require
from ..helpers import hidden_method, joined_prompt
from .java_world import JavaWorld

FOLDS = ("train", "dev", "test")


class TextWorldExpressEnvironment(JavaWorld):
    """
    Plays the games of TextWorldExpress (arXiv 2208.01174). Needs the extra `textworld-express` and Java 17 or later.

    The games are `"cookingworld"`, `"coin"`, `"twc"`, `"mapreader"`, `"arithmetic"`, `"sorting"`, `"simonsays"` and
    `"peckingorder"`; each is generated from parameters and a seed. Each instance runs a Java process from its first `reset` to
    `close`.

    Args:
        game (`str`, *optional*, defaults to `"cookingworld"`):
            Game for rows that do not name one.
        game_params (`str`, *optional*, defaults to `""`):
            Parameters of the game, such as `"numLocations=11,numIngredients=5"`.
        fold (`str`, *optional*, defaults to `"train"`):
            `"train"`, `"dev"` or `"test"`. It selects the wordings and places that the game may use.
        max_steps (`int`, *optional*, defaults to `100`):
            Steps after which the episode ends.
        show_valid_actions (`bool`, *optional*, defaults to `True`):
            Whether each observation lists the valid actions.

    Attributes:
        done (`bool`):
            Whether the game is won, lost, or out of steps.

    Example:

    ```python
    >>> make_env = TextWorldExpressEnvironment.factory("coin", "numLocations=5,numDistractorItems=0")
    ```
    """

    module = "textworld_express"

    def __init__(
        self,
        game: str = "cookingworld",
        game_params: str = "",
        fold: str = "train",
        max_steps: int = 100,
        show_valid_actions: bool = True,
    ) -> None:
        super().__init__(max_steps, show_valid_actions)
        if fold not in FOLDS:
            raise ValueError(f"fold must be one of {', '.join(map(repr, FOLDS))}, got {fold!r}.")
        self._game, self._params, self._fold = game, game_params, fold

    @property
    def mem1_settings(self) -> dict[str, Any]:
        """The settings that a model trained in this environment needs when it is run; they are saved with the model."""
        return {
            "game": self._game,
            "game_params": self._params,
            "fold": self._fold,
            "max_steps": self._max_steps,
            "show_valid_actions": self._show_valid_actions,
        }

    @classmethod
    def factory(
        cls, game: str = "cookingworld", game_params: str = "", **kwargs: Any
    ) -> Callable[[], TextWorldExpressEnvironment]:
        """A factory for `environment_factory`; same arguments as the class."""
        return partial(cls, game, game_params, **kwargs)

    def reset(
        self,
        prompt: Any = None,
        seed: int | None = None,
        game: str | None = None,
        game_params: str | None = None,
        fold: str | None = None,
        **row: Any,
    ) -> str:
        """
        Start a game.

        Args:
            prompt (`str` or `list[dict]`, *optional*):
                Task prompt as shown to the agent. If given, the game's own description begins after a blank line.
            seed (`int`, *optional*):
                Seed that selects the game. `None` draws one from the fold.
            game (`str`, *optional*):
                Name of the game. `None` uses the game of the instance.
            game_params (`str`, *optional*):
                Parameters of the game. `None` uses those of the instance if its game is played, else none.
            fold (`str`, *optional*):
                Fold of the game. `None` uses the fold of the instance.
            **row:
                Further columns, not used.

        Returns:
            `str`: the task and the first observation.

        Raises:
            `ValueError`: if the game or the fold does not exist, or the parameters are wrong.
        """
        observation, info = self._begin(seed, game, game_params, fold, solve=False)
        self.done, self._score = False, 0.0
        return joined_prompt(prompt, f"{info['taskDescription']}\n{self._told(observation, info['validActions'])}")

    def act(self, command: str) -> str:
        """
        Do something in the game.

        Args:
            command: What to do, such as open fridge, take knife, move north or look around.

        Returns:
            What happens.
        """
        simulator = self._playing()
        if self.done:
            return "The episode is over."
        observation, _, self.done, info = simulator.step(command.strip())
        self._score = float(info["score"])
        return self._told(observation, info["validActions"])

    @hidden_method
    def solution(
        self,
        seed: int | None = None,
        game: str | None = None,
        game_params: str | None = None,
        fold: str | None = None,
        **row: Any,
    ) -> list[str]:
        """The commands that win the game of a row, for making demonstrations. Call `reset` afterwards."""
        self._begin(seed, game, game_params, fold, solve=True)
        return list(self._simulator.getGoldActionSequence())

    def _begin(
        self, seed: int | None, game: str | None, game_params: str | None, fold: str | None, solve: bool
    ) -> tuple[str, dict[str, Any]]:
        simulator = self._running()
        simulator.seed = None  # the simulator would otherwise reuse the last seed
        if game_params is None:
            game_params = self._params if game in (None, self._game) else ""
        return simulator.reset(
            seed=seed,
            gameFold=fold or self._fold,
            gameName=game or self._game,
            gameParams=game_params,
            generateGoldPath=solve,
        )

    def _start(self) -> Any:
        package = require(self.module, "textworld-express", type(self).__name__)
        return package.TextWorldExpressEnv(envStepLimit=self._max_steps)
