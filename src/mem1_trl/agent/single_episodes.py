"""What an agent does with one episode: play it, begin it, or read it from a file."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from abc import ABC, abstractmethod
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..environment_runtime.actions import owns_loop
from ..environment_runtime.made_environment import MadeEnvironment
from ..environment_runtime.pool import GivenEnvironments
from ..environment_runtime.tools import environment_of
from ..rollout.interventions import repeat_actions
from ..rollout.play import EpisodePlayer
from ..rollout.settings import AgentSettings
from .episode import AgentEpisode
from .episode_file import OtherAgentError, read_episode, saved_episode
from .outside_tools import environment_of_schemas

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from ..environment_runtime.calls import EnvironmentCaller
    from ..environment_runtime.pool import EnvironmentFactory
    from ..protocol.protocol import Mem1Protocol
    from ..protocol.syntax import ActionSyntax
    from ..rollout.turn_loop import Rollout
    from ..trajectory import Trajectory

_MISSPELT = 0.84
"""Share of its letters that a misspelt name has in common with what is meant; that of `secret` and `seed` is less."""


class SingleEpisodes(ABC):
    """The part of [`Mem1Agent`] that plays one episode."""

    protocol: Mem1Protocol
    settings: AgentSettings
    syntax: ActionSyntax
    _caller: EnvironmentCaller

    def run(
        self, task: Any, environment: Any = None, tools: Sequence[Callable[..., Any]] | None = None, **row: Any
    ) -> Trajectory:
        """
        Play one episode.

        Args:
            task (`str` or `list[dict]`):
                The task: a text, or messages whose last one is the user's. A text is spoken as it was in training
                (`settings.conversational`): as a message through the chat template, or as it is.
            environment (`Any`, *optional*):
                An environment; its `reset` is called with `prompt=task` and `row`, if it has one.
            tools (`Sequence[Callable]`, *optional*):
                Instead of an environment, functions that the agent may call, synchronous or not, with docstrings as in
                [`~trl.GRPOTrainer`]. Without either, the agent can only answer.
            row (*optional*):
                What else `reset` wants, for instance `answers`, by any name. Without an environment there is none.

        Returns:
            [`Trajectory`]: Rewarded if the environment has `get_reward`.

        Raises:
            `TypeError`: If `row` has what nothing reads: without an environment anything, and with one that has no `reset` what is, or is misspelt,
                a setting or another argument.
        """
        episode = self._start({"prompt": task, **row}, environment, tools)
        try:
            return episode.run()
        finally:
            episode.close()

    def stream(
        self,
        task: Any,
        environment: Any = None,
        tools: Sequence[Callable[..., Any]] | None = None,
        tokens: bool = False,
        **row: Any,
    ) -> Iterator[Any]:
        """
        Play one episode, as [`~Mem1Agent.run`], and yield each turn, with its observation, as soon as it has ended; with `tokens`,
        before each turn also its text, in pieces as it is generated, see [`AgentEpisode.stream`].
        """
        episode = self._start({"prompt": task, **row}, environment, tools)
        try:
            yield from episode.stream(tokens)
        finally:
            episode.close()

    async def arun(
        self, task: Any, environment: Any = None, tools: Sequence[Callable[..., Any]] | None = None, **row: Any
    ) -> Trajectory:
        """Play one episode, as [`~Mem1Agent.run`], in a thread, while the event loop goes on. Several share the model."""
        return await asyncio.to_thread(self.run, task, environment, tools, **row)

    def start(
        self,
        task: Any,
        environment: Any = None,
        tools: Sequence[Callable[..., Any]] | None = None,
        schemas: Sequence[dict[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        environment_factory: EnvironmentFactory | None = None,
        **row: Any,
    ) -> AgentEpisode:
        """
        Begin an episode: the environment is reset and the task is rendered, no turn is played yet.

        Args:
            task, environment, tools, row:
                As in [`~Mem1Agent.run`].
            schemas (`Sequence[dict]`, *optional*):
                In place of functions, tools that run elsewhere, as OpenAI's API describes them: a turn that calls some ends in
                `episode.calls`, and `episode.give(results)` lets the agent go on.
            options (`Mapping`, *optional*):
                Fields of [`AgentSettings`] for this episode, such as `{"temperature": 0.0}`.
            environment_factory (`Callable`, *optional*):
                In place of an environment, what makes one, in the thread in which it is called. `episode.close()` closes it.

        Returns:
            [`AgentEpisode`]: To be played by `step()` or `run()`, talked to by `send()`, and saved by `save()`.
        """
        return self._start({"prompt": task, **row}, environment, tools, schemas, options, environment_factory)

    def _start(
        self,
        row: dict[str, Any],
        environment: Any,
        tools: Sequence[Callable[..., Any]] | None,
        schemas: Sequence[dict[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        environment_factory: EnvironmentFactory | None = None,
    ) -> AgentEpisode:
        """Begin an episode of a row, whose columns may have any names if a `reset` reads them; the rest is as in [`~Mem1Agent.start`]."""
        given, player = self._prepare(environment, tools, schemas, options, environment_factory)
        try:
            (made,) = given.environments
            if not callable(getattr(made, "reset", None)):
                _refuse_unread(row, environment is None and environment_factory is None, type(self))
            (episode,) = player.start([row], given)
            _refuse_own_loop(episode.environment)
            player.rollout.begin([episode])
        except BaseException:
            given.release()
            raise
        return AgentEpisode(
            player, episode, given, row, self._holding, schemas=schemas, settings=self.settings, options=options
        )

    def load(
        self,
        path: str | os.PathLike[str],
        environment: Any = None,
        tools: Sequence[Callable[..., Any]] | None = None,
        repeat: bool = True,
        options: Mapping[str, Any] | None = None,
        environment_factory: EnvironmentFactory | None = None,
    ) -> AgentEpisode:
        """
        An episode that [`AgentEpisode.save`] wrote, which goes on where it was: decoded greedily, or sampled with
        `rollout_mode="async"`, exactly as if it had never stopped.

        Args:
            path (`str` or `os.PathLike`):
                The file.
            environment (`Any`, *optional*):
                An environment of the same kind. If the file holds its `mem1_state`, that is set. Otherwise, if it has a `reset`, it is
                reset with the row of the episode, and the actions of the episode are called again; they must have the same
                results.
            tools (`Sequence[Callable]`, *optional*):
                The same functions, if the episode had those. They are not called again.
            repeat (`bool`, *optional*, defaults to `True`):
                Whether actions may be called again. With `False` the environment is used as it is; for those whose actions
                have an effect elsewhere, and have no `mem1_state`.
            options (`Mapping`, *optional*):
                As in [`~Mem1Agent.start`]. `None` takes those that the episode was begun with.
            environment_factory (`Callable`, *optional*):
                As in [`~Mem1Agent.start`]. What it makes is reset before anything else, whatever `repeat` is.

        Raises:
            `ValueError`: If the file holds no episode, or that of an agent with other settings, protocol, tokenizer or tools. Only
                `max_turns` may be another from here on.
            `RuntimeError`: If an action that is called again has another result.
        """
        return self.resume(
            read_episode(path), environment, tools, repeat, options, environment_factory, name=str(path)
        )

    def resume(
        self,
        record: Mapping[str, Any],
        environment: Any = None,
        tools: Sequence[Callable[..., Any]] | None = None,
        repeat: bool = True,
        options: Mapping[str, Any] | None = None,
        environment_factory: EnvironmentFactory | None = None,
        name: str = "the record",
    ) -> AgentEpisode:
        """
        An episode from what [`AgentEpisode.to_dict`] returned; the other arguments, and errors, are those of [`~Mem1Agent.load`]. Tools that
        run elsewhere are in the record.
        """
        path = name
        options = record.get("options") if options is None else options
        most = (options or {}).get("max_turns", self.settings.max_turns)
        saved = saved_episode(record, path, self.settings, self.protocol.to_dict(), most)
        given, player = self._prepare(environment, tools, saved.schemas, options, environment_factory)
        episode = saved.episode
        try:
            episode.environment = given.environments[0]
            episode.actions = player.rollout.contexts.actions(given.actions[0])
            if player.encode(episode.prompt, episode.actions, episode.began) != episode.prompt_ids:
                raise OtherAgentError(
                    f"The task of {path} must have the token ids that it had, but the tokenizer or the tools are others now."
                )
            described = episode.actions.describe()
            if saved.actions is not None and saved.actions != described:
                raise OtherAgentError(
                    f"The episode of {path} must have the actions that it had, which were {saved.actions}, but now they are {described}: pass the "
                    "same environment or `tools`."
                )
            episode.record = self.syntax.new_record()
            episode.record.restore(saved.record)
            has_reset = saved.schemas is None and callable(getattr(episode.environment, "reset", None))
            again = repeat and has_reset and saved.environment_state is None
            if again or (has_reset and environment_factory is not None):
                (started,) = given.start([saved.row])
                if started.error is not None:
                    raise started.error
                episode.environment = started.environment
            _refuse_own_loop(episode.environment)
            if saved.environment_state is not None:
                given.set_state(episode.environment, saved.environment_state)
            elif again:
                repeat_actions(player.rollout, episode)
        except BaseException:
            given.release()
            raise
        waiting = None
        if saved.calls:
            waiting = player.rollout.waiting_actions(episode, saved.calls, saved.turns_left, saved.results)
        parts = (saved.row, self._holding, saved.reward, saved.seconds, saved.schemas, waiting, self.settings)
        return AgentEpisode(player, episode, given, *parts, options=options)

    def _prepare(
        self,
        environment: Any,
        tools: Sequence[Callable[..., Any]] | None,
        schemas: Sequence[dict[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        environment_factory: EnvironmentFactory | None = None,
    ) -> tuple[GivenEnvironments, EpisodePlayer]:
        """The environment of one episode, made of `tools` or `schemas` if those are given, and the player of the episode."""
        if sum(one is not None for one in (environment, tools, schemas, environment_factory)) > 1:
            raise TypeError(
                "Pass `environment_factory`, `environment`, `tools` or `schemas`, not two of them: a tool beside an environment is a method "
                "of it."
            )
        player = EpisodePlayer(self._rollout(self._caller, options))
        if environment_factory is not None:
            return MadeEnvironment(environment_factory, self.protocol, self._caller), player
        if schemas is not None:
            environment = environment_of_schemas(schemas)
        environment = environment_of(tools or []) if environment is None else environment
        given = GivenEnvironments([environment], self.protocol, self._caller)
        if schemas is not None and given.actions[0].schemas:
            given.actions[0].schemas = [dict(one) for one in schemas]  # as the client describes them
        return given, player

    @abstractmethod
    def _rollout(self, caller: EnvironmentCaller, options: Mapping[str, Any] | None = None) -> Rollout: ...

    @abstractmethod
    def _holding(self) -> AbstractContextManager[Any]: ...


def _refuse_unread(row: Mapping[str, Any], only_tools: bool, kind: type[SingleEpisodes]) -> None:
    """
    Refuse columns that no `reset` is given. An environment without one may still have some, if their rows are those of others, too.

    Raises:
        `TypeError`: If one has the name of what is passed otherwise, or nearly, or if there are only tools.
    """
    for name, value in row.items():
        instead = _instead(name, kind)
        if instead is None and only_tools:
            instead = "leave it out, or pass an environment whose `reset` takes it"
        if instead is not None and name != "prompt":
            raise TypeError(
                f"{name}={value!r:.60} is a column of the task here, and there is no `reset` that would be given it: {instead}."
            )


def _instead(name: str, kind: type[SingleEpisodes]) -> str | None:
    """Where a name belongs that is no column, or one that it is close to; `None` if there is none."""
    places = _places(kind)
    if name in places:
        return places[name]
    close = get_close_matches(name, places, n=1, cutoff=_MISSPELT)
    return f"did you mean {close[0]!r}? Then {places[close[0]]}" if close else None


def _places(kind: type[SingleEpisodes]) -> dict[str, str]:
    """Where each setting belongs, and each argument of an agent and of what it does."""
    arguments = inspect.signature(kind).parameters.values()
    places = {p.name: f"pass it to `{kind.__name__}`" for p in arguments if p.kind is not p.VAR_KEYWORD}
    for one in dataclasses.fields(AgentSettings):
        places[one.name] = f"pass `options={{{one.name!r}: ...}}` to `start`"
    for name in ("schemas", "options", "environment_factory"):
        places[name] = f"pass it to `start`, and play by `start({name}=...).run()`"
    for name in ("environment", "tools"):  # those of `run`, which are only here if they are misspelt
        places[name] = "pass it by that name"
    places |= {
        "seed": "use `run_batch(seeds=[...])`",
        "seeds": "use `run_batch(seeds=[...])`",
        "rows": "use `run_batch(rows, environments)`",
        "environments": "use `run_batch(rows, environments)`",
        "keep_failures": "use `run_batch(keep_failures=...)`",
        "tokens": "pass it to `stream`",
        "on_text": "pass it to the episode, `start(...).run(on_text=...)`",
    }
    return places


def _refuse_own_loop(environment: Any) -> None:
    """
    Refuse an environment whose turns a program plays.

    Raises:
        `ValueError`: If it is one.
    """
    if owns_loop(environment):
        raise ValueError(
            f"{type(environment).__name__} plays its episodes itself, not turn by turn: play them with "
            "`agent.run_batch(rows, [factory() for _ in rows])`."
        )
