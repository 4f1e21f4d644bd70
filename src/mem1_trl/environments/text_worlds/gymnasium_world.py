"""Gymnasium environments in text: observations are described in words, actions have names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...optional_packages import require
from ..helpers import hidden_method, joined_prompt
from ..recipe import Recipe, recipe_of_call

if TYPE_CHECKING:
    import gymnasium

Describe = Callable[[Any, Mapping[str, Any]], str]
"""Returns an observation in words; takes the observation and Gymnasium's `info`."""


class GymnasiumEnvironment:
    """
    Plays a [Gymnasium](https://gymnasium.farama.org) environment in text. Needs the extra `gymnasium`.

    An observation is shown as it is if it is text, one value per line if it is a dictionary, or as the environment renders it
    with `render_mode="ansi"`; every other kind needs `describe`. An action is the agent's text as it is (`Text` spaces), or the
    name or number of an action of a `Discrete` space. An unknown action costs no step: the agent is shown the list of actions.

    Args:
        env (`str` or `Callable[[], gymnasium.Env]`):
            Id of a registered environment, or a function that makes one.
        describe (`Callable[[Any, Mapping], str]`, *optional*):
            Returns an observation in words; takes the observation and `info`.
        actions (`Sequence[str]` or `Mapping[str, Any]`, *optional*):
            Names of the actions: in the order of a `Discrete` space, or as a mapping from each name to its action.
        env_kwargs (*optional*):
            Arguments of `gymnasium.make`.

    Attributes:
        done (`bool`):
            Whether the episode has ended (terminated or truncated).

    Example:

    ```python
    >>> from mem1_trl.environments import GymnasiumEnvironment

    >>> make_env = GymnasiumEnvironment.factory(
    ...     "FrozenLake-v1", actions=["left", "down", "right", "up"], render_mode="ansi", is_slippery=False
    ... )
    ```
    """

    def __init__(
        self,
        env: str | Callable[[], gymnasium.Env],
        describe: Describe | None = None,
        actions: Sequence[str] | Mapping[str, Any] | None = None,
        **env_kwargs: Any,
    ) -> None:
        gym = require("gymnasium", "gymnasium", "GymnasiumEnvironment")
        if not isinstance(env, str) and env_kwargs:
            raise TypeError(
                f"{sorted(env_kwargs)[0]!r} is an argument of gymnasium.make, but `env` is a function: pass it inside that function."
            )
        self._made_with: dict[str, Any] = {"env": env, "describe": describe, "actions": actions, **env_kwargs}
        self._env = gym.make(env, **env_kwargs) if isinstance(env, str) else env()
        self._describe: Describe = describe or self._default_describe(gym)
        self._actions = self._read_actions(gym, actions)
        self.done = False
        self._reward = 0.0
        self._started = False

    @property
    def _recipe(self) -> Recipe:
        given = {name: value for name, value in self._made_with.items() if value is not None}
        return recipe_of_call("GymnasiumEnvironment", **given)

    @classmethod
    def factory(
        cls,
        env: str | Callable[[], gymnasium.Env],
        describe: Describe | None = None,
        actions: Sequence[str] | Mapping[str, Any] | None = None,
        **env_kwargs: Any,
    ) -> Callable[[], GymnasiumEnvironment]:
        """A factory for `environment_factory`; same arguments as the class. Each instance makes its own environment."""
        return partial(cls, env, describe, actions, **env_kwargs)

    def reset(
        self,
        prompt: Any = None,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
        **row: Any,
    ) -> str:
        """
        Start an episode.

        Args:
            prompt (`str` or `list[dict]`, *optional*):
                Task prompt as shown to the agent. If given, the first observation begins after a blank line.
            seed (`int`, *optional*):
                Passed to Gymnasium. Equal seeds start equal episodes, which the members of a GRPO group should have.
            options (`dict`, *optional*):
                Passed to Gymnasium.
            **row:
                Further columns, not used.

        Returns:
            `str`: the first observation, and the names of the actions if they have any.
        """
        observation, info = self._env.reset(seed=seed, options=options)
        self.done, self._reward, self._started = False, 0.0, True
        text = self._describe(observation, info)
        return joined_prompt(prompt, text if self._actions is None else f"{text}\n{self._choices()}")

    def act(self, action: str) -> str:
        """
        Do something in the world.

        Args:
            action: One of the actions that the world knows.

        Returns:
            What is observed then.
        """
        if not self._started:
            raise RuntimeError("No episode has been started: call `reset` first.")
        if self.done:
            return "The episode is over."
        chosen: Any = action.strip()
        if self._actions is not None:
            if _folded(chosen) not in self._actions:
                return f"There is no action {chosen!r:.80}. {self._choices()}"
            chosen = self._actions[_folded(chosen)]
        observation, reward, terminated, truncated, info = self._env.step(chosen)
        self._reward += float(reward)
        self.done = bool(terminated or truncated)
        return self._describe(observation, info)

    def get_reward(self) -> float:
        """The sum of the rewards of the episode."""
        return self._reward

    @hidden_method
    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _choices(self) -> str:
        return f"Actions: {', '.join(self._actions or ())}."

    def _read_actions(self, gym: Any, actions: Sequence[str] | Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Name -> action; `None` if every text is an action."""
        space = self._env.action_space
        if actions is not None:
            _check_names(actions)
        if isinstance(actions, Mapping):
            for name, action in actions.items():
                if isinstance(space, gym.spaces.Discrete) and action not in space:
                    raise ValueError(f"The action {name!r} must be one of {space}, got {action!r:.80}.")
            return {_folded(name): action for name, action in actions.items()}
        if isinstance(space, gym.spaces.Text):
            if actions is not None:
                return {_folded(name): name for name in actions}
            return None
        if not isinstance(space, gym.spaces.Discrete):
            raise ValueError(
                f"The actions of this environment are a {type(space).__name__} and have no names: pass `actions=`, a "
                "dictionary from name to action."
            )
        first, count = int(space.start), int(space.n)
        names = [str(first + step) for step in range(count)] if actions is None else list(map(_folded, actions))
        if len(names) != count:
            raise ValueError(
                f"`actions` must name every action of the environment, got {len(names)} names for {count} actions."
            )
        return {name: first + step for step, name in enumerate(names)}

    def _default_describe(self, gym: Any) -> Describe:
        space = self._env.observation_space
        if isinstance(space, gym.spaces.Text):
            return lambda observation, info: observation
        if isinstance(space, gym.spaces.Dict) and any(isinstance(part, gym.spaces.Text) for part in space.values()):
            return lambda observation, info: "\n".join(f"{name}: {value}" for name, value in observation.items())
        if self._env.render_mode == "ansi":
            return lambda observation, info: str(self._env.render())
        raise ValueError(
            f"The observations of this environment are a {type(space).__name__}, not text: pass `describe=`, a function that "
            'takes an observation and its info and returns text, or render_mode="ansi" if the environment supports it.'
        )


def _folded(name: str) -> str:
    """The name of an action as it is compared with what an agent writes."""
    return name.strip().lower()


def _check_names(names: Sequence[str] | Mapping[str, Any]) -> None:
    """Refuse names of which an agent could never write one, or not know which it writes."""
    folded = list(map(_folded, names))
    if isinstance(names, str) or not all(folded) or len(set(folded)) < len(folded):
        raise ValueError(
            f"`actions` must be names of which no two differ in case or space alone, and none is empty, got {names!r:.200}."
        )
    if not folded:
        raise ValueError("`actions` must name at least one action, got none.")
