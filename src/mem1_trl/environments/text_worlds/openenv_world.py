"""OpenEnv environments in text: a client of the server that runs the environment."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ...optional_packages import require
from ..helpers import hidden_method, joined_prompt
from ..recipe import Recipe, recipe_of_call

_BOOKKEEPING = ("done", "reward", "metadata")


class OpenEnvEnvironment:
    """
    Plays an [OpenEnv](https://github.com/meta-pytorch/OpenEnv) environment through its client. Needs the extra `openenv`.

    Any client works whose `reset()` and `step(action)` return an object with `observation`, `reward` and `done`; an asynchronous
    `EnvClient` is used through its `sync()`. Each instance holds one client and therefore one session on the server, which must
    allow as many sessions as episodes run concurrently (`max_concurrent_envs`).

    Args:
        client (`str` or `Callable[[], Any]`):
            Address of the server, such as `"http://localhost:8000"`, to be reached with a `GenericEnvClient`; or a function
            that makes a client.
        action (`str` or `Callable[[str], Any]`):
            How the agent's text becomes an action: the name of the field of the action that holds the text, such as `"message"`,
            or a function that returns the action, such as `lambda text: EchoAction(message=text)`.
        describe (`str` or `Callable[[Any], str]`, *optional*):
            How an observation becomes text: the name of the field to show, or a function. `None` shows all fields but `done`,
            `reward` and `metadata`, one per line (a single field is shown without its name).
        reset_columns (`Sequence[str]`, *optional*, defaults to `("seed", "episode_id")`):
            Columns of the dataset that are passed to the `reset` of the environment if a row has them.
        reward (`str`, *optional*, defaults to `"sum"`):
            Reward of an episode: the `"sum"` of the rewards of its steps, or the `"last"` one.

    Attributes:
        done (`bool`):
            Whether the environment reported the end of the episode.

    Example:

    ```python
    >>> make_env = OpenEnvEnvironment.factory("http://localhost:8000", action="message")
    ```
    """

    def __init__(
        self,
        client: str | Callable[[], Any],
        action: str | Callable[[str], Any],
        describe: str | Callable[[Any], str] | None = None,
        reset_columns: Sequence[str] = ("seed", "episode_id"),
        reward: str = "sum",
    ) -> None:
        if isinstance(reset_columns, str):
            raise ValueError(
                f"reset_columns must be a list of columns, got {reset_columns!r}: pass [{reset_columns!r}]."
            )
        if reward not in ("sum", "last"):
            raise ValueError(f"reward must be 'sum' or 'last', got {reward!r}.")
        if isinstance(client, str):
            require("openenv.core", "openenv", "OpenEnvEnvironment")
        self._made_with: dict[str, Any] = {
            "client": client,
            "action": action,
            "describe": describe,
            "reset_columns": tuple(reset_columns),
            "reward": reward,
        }
        self._make_client = partial(_generic_client, client) if isinstance(client, str) else client
        self._action = action
        self._describe = describe
        self._reset_columns = tuple(reset_columns)
        self._reward_rule = reward
        self._client: Any = None
        self.done = False
        self._reward = 0.0

    @property
    def _recipe(self) -> Recipe:
        return recipe_of_call("OpenEnvEnvironment", **self._made_with)

    @classmethod
    def factory(
        cls, client: str | Callable[[], Any], action: str | Callable[[str], Any], **kwargs: Any
    ) -> Callable[[], OpenEnvEnvironment]:
        """A factory for `environment_factory`; same arguments as the class."""
        return partial(cls, client, action, **kwargs)

    def reset(self, prompt: Any = None, **row: Any) -> str:
        """
        Start an episode on the server.

        Args:
            prompt (`str` or `list[dict]`, *optional*):
                Task prompt as shown to the agent. If given, the first observation begins after a blank line.
            **row:
                Columns of the dataset; those in `reset_columns` go to the server.

        Returns:
            `str`: the first observation.

        Raises:
            `ConnectionError`: if the server does not answer.
        """
        arguments = {name: row[name] for name in self._reset_columns if row.get(name) is not None}
        if self._client is None:
            self._client = _synchronous(self._make_client())
        try:
            result = self._client.reset(**arguments)
        except Exception:
            self.close()  # a broken connection stays broken; the next episode opens another
            raise
        self.done, self._reward = bool(result.done), 0.0
        return joined_prompt(prompt, self._told(result.observation))

    def act(self, action: str) -> str:
        """
        Do something in the environment.

        Args:
            action: What to do, in the words that the environment understands.

        Returns:
            What is observed then.
        """
        if self._client is None:
            raise RuntimeError("No episode has been started: call `reset` first.")
        if self.done:
            return "The episode is over."
        chosen = {self._action: action} if isinstance(self._action, str) else self._action(action)
        result = self._client.step(chosen)
        if result.reward is not None:
            self._reward = float(result.reward) + (self._reward if self._reward_rule == "sum" else 0.0)
        self.done = bool(result.done)
        return self._told(result.observation)

    def get_reward(self) -> float:
        """The reward of the episode: the sum of the rewards of its steps, or the last one."""
        return self._reward

    @hidden_method
    def close(self) -> None:
        """Close the connection; the next `reset` opens a new one."""
        client, self._client = self._client, None
        if client is not None and hasattr(client, "close"):
            with contextlib.suppress(Exception):  # the connection may already be broken
                client.close()

    def _told(self, observation: Any) -> str:
        if callable(self._describe):
            return self._describe(observation)
        fields = _fields(observation)
        if self._describe is not None:
            if self._describe not in fields:
                raise ValueError(
                    f"The observation has no field {self._describe!r} (it has {', '.join(map(repr, fields))}): correct `describe`."
                )
            return _plain(fields[self._describe])
        shown = {
            name: _plain(value) for name, value in fields.items() if name not in _BOOKKEEPING and value is not None
        }
        if len(shown) == 1:
            return next(iter(shown.values()))
        return "\n".join(f"{name}: {value}" for name, value in shown.items())


def _generic_client(address: str) -> Any:
    return require("openenv.core", "openenv", "OpenEnvEnvironment").GenericEnvClient(base_url=address)


def _synchronous(client: Any) -> Any:
    """A client whose `reset` and `step` can be called from threads."""
    if not inspect.iscoroutinefunction(client.reset):
        return client
    if not hasattr(client, "sync"):
        raise TypeError(f"{type(client).__name__} is asynchronous and has no `sync()`: pass a synchronous client.")
    return client.sync()


def _fields(observation: Any) -> dict[str, Any]:
    if isinstance(observation, Mapping):
        return dict(observation)
    if hasattr(observation, "model_dump"):
        return observation.model_dump()
    if dataclasses.is_dataclass(observation) and not isinstance(observation, type):
        return dataclasses.asdict(observation)
    return {"observation": observation}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
