"""What episodes do after a turn: their actions, those of one episode in order and those of different episodes simultaneously."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..environment_runtime.actions import ActionResult, action_call, action_result
from ..environment_runtime.call_records import EnvironmentCall, Outcome
from ..environment_runtime.calls import name_of_call
from ..environment_runtime.errors import describe_error
from ..environment_runtime.pool import reward_call
from ..environment_runtime.running_calls import RunningCalls
from ..trajectory import StopReason
from .turn_rewards import note_turn_reward

if TYPE_CHECKING:
    from ..environment_runtime.calls import EnvironmentCaller
    from ..protocol.parsed_turn import ActionRequest
    from .episode import Episode

_PATIENCE = (
    2.0  # seconds for which the end of the background thread is waited for; what it waits for is given up anyway
)

_Steps = Generator[tuple[EnvironmentCall, bool], Outcome, None]


@dataclass(slots=True, eq=False)
class Acting:
    """
    The actions of one turn of an episode.

    Attributes:
        episode ([`Episode`]):
            Whose turn it was.
        requests (`list[ActionRequest]`):
            All actions of the turn.
        calls (`list`):
            For as many of them as are run, the method with its arguments, or an [`ActionResult`] where nothing can be called.
        turns_left (`int`):
            Turns after this one.
        results (`list[ActionResult]`):
            Results so far.
    """

    episode: Episode
    requests: list[ActionRequest]
    calls: list[Any]
    turns_left: int
    results: list[ActionResult] = field(default_factory=list)

    def steps(self, caller: EnvironmentCaller) -> _Steps:
        """
        Each call that is to be made, and whether it counts; the outcome of one is sent in before the next.

        The actions end early if the environment becomes done, or can no longer be used. One that was done before them goes on, since its
        agent was sent a message after that. At the end the environment is asked for the reward of the turn, if something of it was called.
        """
        episode = self.episode
        has_property = isinstance(getattr(type(episode.environment), "done", None), property)
        was_done = False
        if episode.rounds and has_property:
            was_done = bool((yield from self._ask_done(caller)).value)
        elif episode.rounds:
            was_done = _is_done(episode.environment)
        for place, call in enumerate(self.calls):
            if place and episode.stop_reason is not None:
                break
            if isinstance(call, ActionResult):
                result = call
            else:
                method, arguments = call
                action = action_call(method, arguments, caller, episode.environment)
                result = action_result(action, (yield action, True), caller)
            self.results.append(result)
            unread = episode.stop_reason is StopReason.ANSWER and result.error is not None
            if (
                result.fatal or unread
            ):  # a failed answer is none, and no turn is left in which the agent could read why
                episode.error, episode.stop_reason = result.error, StopReason.ERROR
            elif has_property:
                outcome = yield from self._ask_done(caller)
                if outcome.error is not None:  # there is nothing to show to the agent
                    episode.error, episode.stop_reason = describe_error(outcome.error), StopReason.ERROR
                elif episode.stop_reason is None and outcome.value and not was_done:
                    episode.stop_reason = StopReason.DONE
            elif episode.stop_reason is None and not was_done and _is_done(episode.environment):
                episode.stop_reason = StopReason.DONE
        if episode.error is None and not all(isinstance(call, ActionResult) for call in self.calls):
            reward = reward_call(caller, episode.environment, "get_turn_reward")
            if reward is not None:
                note_turn_reward(episode, reward, (yield reward, True))

    def _ask_done(self, caller: EnvironmentCaller) -> Generator[tuple[EnvironmentCall, bool], Outcome, Outcome]:
        """
        The outcome of a property `done`, which runs code of the environment that may raise or hang as an action may.

        It is a part of the action before it and counts as a call of its own only if it fails.
        """
        environment = self.episode.environment
        call = EnvironmentCall(
            caller.thread_of(environment), partial(_read_done, environment), name=name_of_call(environment, "done")
        )
        outcome = yield call, False
        if outcome.error is not None:
            caller.count(call, outcome)
        return outcome


class _Progress:
    """Takes actions from call to call as the calls end."""

    def __init__(self, caller: EnvironmentCaller, finished: Callable[[Acting], None]):
        self.caller = caller
        self.calls = RunningCalls(caller)
        self.finished = finished
        self._steps: dict[Acting, _Steps] = {}

    def begin(self, action: Acting) -> None:
        self._steps[action] = action.steps(self.caller)
        self._go_on(action, None)

    def step(self) -> None:
        for action, outcome in self.calls.step():
            self._go_on(action, outcome)

    def _go_on(self, action: Acting, outcome: Outcome | None) -> None:
        try:
            call, counted = self._steps[action].send(outcome)  # type: ignore[arg-type]  # a generator begins with None
        except StopIteration:
            del self._steps[action]
            self.finished(action)
        else:
            self.calls.add(action, call, counted)


def run_actions(acting: Sequence[Acting], caller: EnvironmentCaller) -> None:
    """Run all actions and wait for their results."""
    progress = _Progress(caller, lambda action: None)
    try:
        for action in acting:
            progress.begin(action)
        while len(progress.calls):
            progress.step()
    except BaseException:
        progress.calls.abandon()
        raise


class BackgroundActions:
    """
    Runs actions in a thread of its own, so that time limits, repetitions and the number of simultaneous calls are kept while the
    thread that plays generates.

    Args:
        caller ([`EnvironmentCaller`]):
            Calls the environments.
        finished (`Callable[[Acting], None]`):
            Called in that thread with the actions of a turn when they have all their results.
        failed (`Callable[[BaseException], None]`):
            Called in that thread with an error that ends the run.
    """

    def __init__(
        self,
        caller: EnvironmentCaller,
        finished: Callable[[Acting], None],
        failed: Callable[[BaseException], None],
    ):
        self._progress = _Progress(caller, finished)
        self._failed = failed
        self._inbox: SimpleQueue[Acting | None] = SimpleQueue()
        self._over = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="mem1-actions")
        self._thread.start()

    def begin(self, action: Acting) -> None:
        """Run the actions of a turn."""
        self._inbox.put(action)
        self._progress.calls.wake()

    def close(self) -> None:
        """End the thread. Environments of which a call still runs cannot be used again."""
        self._over = True
        self._inbox.put(None)
        self._progress.calls.wake()
        self._thread.join(_PATIENCE)

    def _work(self) -> None:
        try:
            while not self._over:
                self._begin_new(wait=not len(self._progress.calls))
                if len(self._progress.calls):
                    self._progress.step()
        except BaseException as error:  # an interrupt of an environment, too, is raised where the episodes are played
            self._failed(error)
        finally:
            self._progress.calls.abandon()

    def _begin_new(self, wait: bool) -> None:
        try:
            while (action := self._inbox.get(block=wait)) is not None:
                self._progress.begin(action)
                wait = False
        except Empty:
            pass


def _read_done(environment: Any) -> bool:
    return bool(environment.done)


def _is_done(environment: Any) -> bool:
    """The attribute `done` of an environment; a method of this name is an action."""
    try:
        done = getattr(environment, "done", False)
        return not callable(done) and bool(done)
    except Exception:  # an array, say
        return False
