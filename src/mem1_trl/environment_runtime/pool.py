"""Environment instances for a batch of episodes: made once, reset often, chosen by the row, replaced when they fail."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .actions import ActionSet, owns_loop
from .call_records import EnvironmentCall
from .calls import EnvironmentCaller, call_then, name_of_call
from .environment_thread import EnvironmentThread
from .errors import may_repeat
from .faults import FaultSettings, as_reward, seconds_to_wait
from .rows import own_copy
from .shown_text import is_blocks, text_of_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..protocol.protocol import Mem1Protocol

EnvironmentFactory = Callable[[], Any]
"""Makes one environment: `reset(**row) -> str | None`, actions, optionally `get_reward() -> float`, `get_turn_reward() -> float`, `done`, `close()`."""


@dataclass(frozen=True, slots=True)
class StartedEpisode:
    """
    Result of resetting one environment.

    Attributes:
        environment (`Any`):
            The instance; `None` if it could not be made.
        actions ([`ActionSet`]):
            Actions of the environment.
        observation (`str` or `None`):
            Return value of `reset`.
        error (`Exception` or `None`):
            Error that prevented the episode.
    """

    environment: Any
    actions: ActionSet
    observation: str | None = None
    error: Exception | None = None


class EnvironmentPool:
    """
    Provides one environment per episode, as `GRPOTrainer(environment_factory=...)` does.

    Args:
        factory (`EnvironmentFactory` or `dict[str, EnvironmentFactory]`):
            Makes an environment. With a dictionary, each row names its environment in the column `environment`.
        protocol ([`Mem1Protocol`]):
            Protocol that defines the tags of actions.
        faults ([`FaultSettings`], *optional*):
            Time limit, retries and concurrency of calls.

    Attributes:
        caller ([`EnvironmentCaller`]):
            Runs the calls and counts the failed ones.
    """

    def __init__(
        self,
        factory: EnvironmentFactory | Mapping[str, EnvironmentFactory],
        protocol: Mem1Protocol,
        faults: FaultSettings | None = None,
    ):
        self.caller = EnvironmentCaller(faults)
        self.routed = isinstance(factory, Mapping)
        self.factories: dict[str | None, EnvironmentFactory] = {}
        if isinstance(factory, Mapping):
            self.factories.update(factory)
        else:
            self.factories[None] = factory
        if not self.factories:
            raise ValueError("`environment_factory` must have at least one environment, got an empty dictionary.")
        for name, make in self.factories.items():
            if not callable(make):
                raise TypeError(
                    f"`environment_factory`{'' if name is None else f'[{name!r}]'} must be a class or function without arguments "
                    f"that returns a new environment, got {type(make).__name__}."
                )
            _check_takes_nothing(make)
        self._threads = {name: [EnvironmentThread(factory=make)] for name, make in self.factories.items()}
        first = [threads[0] for threads in self._threads.values()]
        try:
            for error in self.caller.make(first):
                if error is not None:  # an error of the first instance would occur for every row
                    raise error
            self._examples = {name: threads[0].environment for name, threads in self._threads.items()}
            _refuse_several_loops(self._examples.values())
            self.actions = {name: ActionSet(environment, protocol) for name, environment in self._examples.items()}
        except BaseException:
            self.close()
            raise
        self._rewards: dict[int, float | None] = {}

    @property
    def names(self) -> list[str]:
        """Names of the environments; empty if there is a single one without a name."""
        return [name for name in self.factories if name is not None]

    def name_of(self, row: Mapping[str, Any]) -> str | None:
        """Name of the environment that a dataset row asks for."""
        if not self.routed:
            return None
        name = row.get("environment")
        if name not in self.factories:
            raise ValueError(
                f"The column `environment` must be one of {', '.join(map(repr, self.factories))} in every row, got {name!r}."
            )
        return name

    def gives_reward(self, row: Mapping[str, Any]) -> bool:
        """Whether the environment of a row has `get_reward` or `get_turn_reward`."""
        kind = type(self._examples[self.name_of(row)])
        return any(_has(kind, method) for method in ("get_reward", "get_turn_reward"))

    def gives_answers(self, row: Mapping[str, Any]) -> bool:
        """Whether what an episode of a row ends with is an answer, which an environment denies by a property `mem1_gives_answers`."""
        return bool(getattr(self._examples[self.name_of(row)], "mem1_gives_answers", True))

    def made_with(self) -> dict[str, Any]:
        """JSON-serializable settings of the environments, from their property `mem1_settings` if they have it."""
        found = {name: getattr(example, "mem1_settings", None) for name, example in self._examples.items()}
        known = {name: dict(settings) for name, settings in found.items() if settings}
        return known.get(None, {}) if not self.routed else {str(name): settings for name, settings in known.items()}

    def example_of(self, name: str | None) -> Any:
        """The environment of this name that is there for inspection."""
        return self._examples[name]

    def example(self) -> tuple[Any, ActionSet]:
        """One environment with its actions, for inspection only."""
        name = next(iter(self.factories))
        return self._examples[name], self.actions[name]

    def start(self, rows: Sequence[Mapping[str, Any]]) -> list[StartedEpisode]:
        """
        Start one episode for each row, concurrently, each in its own environment.

        An instance that failed in its last episode is replaced first. A reset that fails is repeated with a new instance.

        Args:
            rows (`Sequence[Mapping]`):
                Dataset rows, whose columns are the arguments of `reset`.

        Returns:
            `list[StartedEpisode]`: In the order of `rows`.

        Raises:
            `ValueError`: If a row names an environment that does not exist.
        """
        names = [self.name_of(row) for row in rows]
        taken: dict[str | None, int] = {}
        threads = []
        for name in names:
            index = taken[name] = taken.get(name, -1) + 1
            if index == len(self._threads[name]):
                self._threads[name].append(EnvironmentThread(factory=self.factories[name]))
            threads.append(self._threads[name][index])
        for thread in threads:
            if thread.dead or thread.failed:
                self.caller.renew(thread)
        arguments = [{k: v for k, v in row.items() if not (self.routed and k == "environment")} for row in rows]
        started = reset_all(self.caller, threads, arguments)
        return [
            StartedEpisode(thread.environment, self.actions[name], observation, error)
            for name, thread, (observation, error) in zip(names, threads, started)
        ]

    def score(self, environments: Sequence[Any]) -> list[tuple[float | None, Exception | None]]:
        """
        The rewards of environments, asked for concurrently. The reward functions of this pool report them.

        Args:
            environments (`Sequence`):
                Environments of episodes that have ended.

        Returns:
            `list[tuple[float | None, Exception | None]]`: The reward of each, `None` if it has none, and why it failed.
        """
        scores = ask_rewards(self.caller, environments)
        self._rewards = {id(environment): reward for environment, (reward, _) in zip(environments, scores)}
        return scores

    def discard(self, environment: Any) -> None:
        """Stop using an environment, for instance because it failed; a new one replaces it."""
        for threads in self._threads.values():
            for thread in threads:
                if thread.environment is environment:
                    thread.failed = True

    def close(self) -> None:
        """Close all environments, by calling their method `close` if they have one. The next episodes get new environments."""
        self.caller.close([thread for threads in self._threads.values() for thread in threads])

    def reward_functions(self) -> list[Callable[..., Any]]:
        """
        One TRL reward function, named after its class, for each class of environment that has `get_reward`, and one for
        each that has `get_turn_reward`.

        They return the rewards that [`~EnvironmentPool.score`] found, and those that the turns have.
        """
        functions: list[Callable[..., Any]] = []
        for kind in {_class_of(type(example)): type(example) for example in self._examples.values()}.values():
            if _has(kind, "get_reward"):
                functions.append(self._reward_function(kind))
            if _has(kind, "get_turn_reward"):
                functions.append(_turn_reward_function(kind))
        return functions

    def _reward_function(self, kind: type) -> Callable[..., Any]:
        def read(environments: list[Any], **kwargs: Any) -> list[float | None]:
            return [self._rewards.get(id(e)) if _class_of(type(e)) == _class_of(kind) else None for e in environments]

        read.__name__ = kind.__name__
        return read


def _turn_reward_function(kind: type) -> Callable[..., Any]:
    def read(environments: list[Any], trajectories: list[Any], **kwargs: Any) -> list[list[float | None] | None]:
        return [
            [turn.reward for turn in trajectory.turns] if _class_of(type(e)) == _class_of(kind) else None
            for e, trajectory in zip(environments, trajectories, strict=True)
        ]

    read.__name__ = f"{kind.__name__}.get_turn_reward"
    return read


def _class_of(kind: type) -> tuple[str, str]:
    """What a class is known by: one that is defined inside a factory is another object in each environment."""
    return kind.__module__, kind.__qualname__


def _has(kind: type, method: str) -> bool:
    return callable(getattr(kind, method, None))


def own_loop(environment: Any) -> Callable[..., Any] | None:
    """What plays the turns of an environment, if that is not the turn loop."""
    return environment.mem1_plays if owns_loop(environment) else None


def _refuse_several_loops(environments: Iterable[Any]) -> None:
    """Refuse environments of which some play their own turns: a batch is played by one loop."""
    owners = {}
    for environment in environments:
        play = own_loop(environment)
        owners[getattr(play, "__func__", play)] = type(environment).__name__
    if len(owners) > 1:
        raise ValueError(
            f"Environments that are used together must be played by one loop, but a program owns that of some ({', '.join(owners.values())}): "
            "use each kind by itself."
        )


def _check_takes_nothing(make: Callable[..., Any]) -> None:
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # built in C
        return
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        name = getattr(make, "__name__", type(make).__name__)
        raise TypeError(
            f"`environment_factory` must be callable without arguments, got {name}, which needs {', '.join(map(repr, needed))}: "
            f"pass `functools.partial({name}, {', '.join(f'{one}=...' for one in needed)})`."
        )


class GivenEnvironments:
    """
    Environments that belong to the caller, one for each episode; they are reset, played and scored, never made or closed. One
    without `reset` is used as it is.

    Args:
        environments (`Sequence`):
            One environment for each row.
        protocol ([`Mem1Protocol`]):
            Protocol that defines the tags of actions.
        caller ([`EnvironmentCaller`]):
            Runs the calls.
        threads (`Sequence[EnvironmentThread]`, *optional*):
            Where they live. `None` begins a thread for each.

    Raises:
        `TypeError`: If they are no list, or one is a class or a factory.
        `ValueError`: If one is given twice, or some own their loop and others do not.
    """

    def __init__(
        self,
        environments: Sequence[Any],
        protocol: Mem1Protocol,
        caller: EnvironmentCaller,
        threads: Sequence[EnvironmentThread] | None = None,
    ):
        if not isinstance(environments, Collection):
            kind = environments if inspect.isclass(environments) else type(environments)
            given = f"the class {kind.__name__}" if kind is environments else f"an instance of {kind.__name__}"
            makes = kind.__name__ if not callable(environments) or kind is environments else "factory"
            raise TypeError(
                f"environments must be a list with an instance for each row, got {given}: pass [{makes}() for _ in rows]."
            )
        for environment in environments:
            if isinstance(environment, (list, tuple, dict, str, bytes, int, float)):
                raise TypeError(
                    f"An environment must be an instance of a class whose methods are actions, got a {type(environment).__name__}: functions are "
                    "passed as `tools=[...]`."
                )
            if inspect.isclass(environment):
                raise TypeError(
                    f"An environment must be an instance, got the class {environment.__name__}: pass {environment.__name__}()."
                )
            if inspect.isroutine(environment) or isinstance(environment, partial):
                given = (
                    f"the function {environment.__name__}" if inspect.isroutine(environment) else "a functools.partial"
                )
                raise TypeError(
                    f"An environment must be an instance, got {given}: a factory makes environments, so call it, `factory()`."
                )
        if len({id(environment) for environment in environments}) < len(environments):
            raise ValueError("Each row must have an environment of its own, got one twice: make another for each row.")
        _refuse_several_loops(environments)
        self.caller = caller
        self.environments = environments
        self.actions = [ActionSet(environment, protocol, needs_reset=False) for environment in environments]
        self._threads = list(threads or map(EnvironmentThread, environments))
        for thread in self._threads:
            caller.adopt(thread)

    def start(self, rows: Sequence[Mapping[str, Any]]) -> list[StartedEpisode]:
        """Start one episode for each row, as in [`EnvironmentPool.start`]."""
        if len(rows) != len(self.environments):
            raise ValueError(
                f"There must be one environment per row, got {len(rows)} rows and {len(self.environments)} environments."
            )
        results = reset_all(self.caller, self._threads, rows)
        return [
            StartedEpisode(thread.environment, actions, observation, error)
            for thread, actions, (observation, error) in zip(self._threads, self.actions, results)
        ]

    def score(self, environments: Sequence[Any]) -> list[tuple[float | None, Exception | None]]:
        """The rewards of environments, as in [`EnvironmentPool.score`]."""
        return ask_rewards(self.caller, environments)

    def discard(self, environment: Any) -> None:
        """Mark an environment as failed."""
        self.caller.thread_of(environment).failed = True

    def set_state(self, environment: Any, state: Any) -> None:
        """Set the property `mem1_state` of an environment, in its own thread."""
        self._in_its_thread(environment, partial(setattr, environment, "mem1_state", state))

    def state_of(self, environment: Any) -> Any:
        """
        The property `mem1_state` of an environment, read in its own thread; `None` without one.

        Raises:
            `TypeError`: If it could not be set again.
        """
        found = inspect.getattr_static(type(environment), "mem1_state", None)
        if isinstance(found, property) and found.fset is None:
            raise TypeError(
                f"mem1_state of {type(environment).__name__} must have a setter (@mem1_state.setter), or the episode could not go on from its file."
            )
        return self._in_its_thread(environment, partial(getattr, environment, "mem1_state", None))

    def _in_its_thread(self, environment: Any, function: Callable[[], Any]) -> Any:
        # A released environment has no thread any more: this call gets a temporary one, which needs no release
        thread = next((one for one in self._threads if one.environment is environment), EnvironmentThread(environment))
        call = EnvironmentCall(thread, function, name=name_of_call(environment, "mem1_state"))
        (outcome,) = self.caller.run([call], counted=False)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def release(self) -> None:
        """Release the environments; their threads end."""
        for thread in self._threads:
            self.caller.release(thread)


def reset_all(
    caller: EnvironmentCaller, threads: Sequence[EnvironmentThread], rows: Sequence[Mapping[str, Any]]
) -> list[tuple[str | None, Exception | None]]:
    """
    Call `reset` of all environments concurrently, and again for those that failed, with a new instance if one can be made.

    Returns:
        `list[tuple[str | None, Exception | None]]`: For each thread, the return value of `reset`, or the last error.
    """
    results: list[tuple[str | None, Exception | None]] = [(None, None)] * len(threads)
    left = list(range(len(threads)))
    for attempt in range(1, caller.settings.retries + 2):
        made = caller.make([threads[index] for index in left])
        for index, error in zip(left, made):
            results[index] = (None, error)
        ready = [index for index, error in zip(left, made) if error is None]
        calls = [
            EnvironmentCall(
                threads[index],
                _reset(threads[index].environment, rows[index]),
                retries=None,
                name=name_of_call(threads[index].environment, "reset"),
            )
            for index in ready
        ]
        for index, outcome in zip(ready, caller.run(calls, counted=False)):
            results[index] = (outcome.value, outcome.error)
        again = []
        for index in left:
            error, thread = results[index][1], threads[index]
            if error is None:
                continue
            thread.failed = True
            replaceable = thread.factory is not None
            if (replaceable or not thread.dead) and (thread.dead or may_repeat(error, repeatable=True)):
                again.append(index)
        left = again
        if not left or attempt > caller.settings.retries:
            break
        caller.counts.retries += len(left)
        time.sleep(seconds_to_wait(attempt, caller.jitter))
        for index in left:
            if threads[index].factory is not None:
                caller.renew(threads[index])
            threads[index].failed = False
    errors = [(thread, error) for thread, (_, error) in zip(threads, results) if error is not None]
    caller.counts.calls += len(threads)
    caller.counts.errors += len(errors)
    caller.counts.reset_errors += len(errors)
    for thread, error in errors:
        begun = thread.environment is not None
        caller.failures.note(name_of_call(thread.environment, "reset") if begun else "`environment_factory`", error)
    return results


def _reset(environment: Any, row: Mapping[str, Any]) -> Callable[[], Any]:
    def checked(observation: Any) -> str | None:
        observation = text_of_blocks(observation) if is_blocks(observation) else observation
        if observation is not None and not isinstance(observation, str):
            raise TypeError(
                f"`reset` of {type(environment).__name__} must return None or a string that is appended to the task prompt, got a "
                f"{type(observation).__name__}. Images are not supported."
            )
        return observation

    reset = getattr(environment, "reset", None)
    return call_then(reset, checked, **own_copy(dict(row))) if callable(reset) else lambda: None


def reward_call(caller: EnvironmentCaller, environment: Any, method: str) -> EnvironmentCall | None:
    """The call of `get_reward`, or `get_turn_reward`, whose value is a checked number; `None` without such a method."""
    if not _has(type(environment), method):
        return None
    return EnvironmentCall(
        caller.thread_of(environment),
        call_then(getattr(environment, method), partial(as_reward, source=method)),
        repeatable=True,
        name=name_of_call(environment, method),
    )


def ask_rewards(caller: EnvironmentCaller, environments: Sequence[Any]) -> list[tuple[float | None, Exception | None]]:
    """
    Call `get_reward` of all environments concurrently.

    Returns:
        `list[tuple[float | None, Exception | None]]`: For each environment, the reward, which is `None` without such a method or
        without a score, and the error.
    """
    made = [reward_call(caller, environment, "get_reward") for environment in environments]
    calls = {index: call for index, call in enumerate(made) if call is not None}
    scores: list[tuple[float | None, Exception | None]] = [(None, None)] * len(environments)
    for (index, call), outcome in zip(calls.items(), caller.run(list(calls.values()))):
        call.thread.failed = call.thread.failed or outcome.error is not None
        scores[index] = (outcome.value, outcome.error)
    return scores
