"""One life of an episode: started, rendered, checked, played, scored, marked if it failed. Trainer and agent call this."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..curriculum import MAX_TURNS, turn_limit
from ..environment_runtime.errors import describe_error
from ..environment_runtime.shown_text import text_of_blocks
from ..metrics import summary_metrics, trajectory_metrics
from ..protocol.untrusted import sanitize_prompt
from ..trajectory import StopReason, Trajectory
from .episode import Episode
from .settings import AgentSettings, resolve_conversational

if TYPE_CHECKING:
    from ..environment_runtime.actions import ActionSet
    from ..environment_runtime.pool import EnvironmentPool, GivenEnvironments, StartedEpisode
    from .turn_loop import Rollout

TOLERATE = ("nothing", "environment", "everything")
"""
Which failures end an episode instead of raising: none; those of an environment (it raised, hangs, died, or returned a task that is
too long); or also a task of the data set that is too long or cannot be rendered.
"""

NO_TASK = ""
"""The prompt of a row whose task the environment returns from `reset`: a text, which needs no chat template."""


class EpisodePlayer:
    """
    Plays episodes from dataset rows to scored trajectories.

    Args:
        rollout ([`Rollout`]):
            Plays the turns; its protocol, syntax, tokenizer and settings render the tasks.
        timed (`bool`, *optional*, defaults to `False`):
            Whether the metric `seconds` of a trajectory is its share of the wall time: at any moment it is split evenly among the
            episodes that are played.
    """

    def __init__(self, rollout: Rollout, timed: bool = False):
        self.rollout = rollout
        self.timed = timed

    def start(
        self,
        rows: Sequence[Mapping[str, Any]],
        environments: EnvironmentPool | GivenEnvironments | None,
        tolerate: str = "nothing",
    ) -> list[Episode]:
        """
        Fresh episodes, one for each row: environments are reset, tasks are rendered, encoded and checked.

        Args:
            rows (`Sequence[Mapping]`):
                Dataset rows: `prompt` (a text, messages, or messages of typed text blocks) and whatever `reset` wants. Without
                `prompt`, `reset` has to return the task.
            environments ([`EnvironmentPool`] or [`GivenEnvironments`], *optional*):
                An environment for each row. `None` for tasks that are one completion of their prompt.
            tolerate (`str`, *optional*, defaults to `"nothing"`):
                One of [`TOLERATE`]. An episode that failed has `stop_reason` and `error`, and is not played.

        Raises:
            `ValueError`: If a row has no task, or its task is too long.
        """
        rows = [dict(row) for row in rows]
        if environments is not None:
            started = environments.start(rows)
            return [self._begin(row, start, tolerate) for row, start in zip(rows, started, strict=True)]
        for row in rows:
            if "prompt" not in row:
                raise ValueError(
                    f"A row of the data set has no 'prompt' (it has {', '.join(row)}): rename the field with the task."
                )
            check_prompt(row["prompt"])
        return [Episode(self.encode(row["prompt"]), prompt=row["prompt"]) for row in rows]

    def _begin(self, row: Mapping[str, Any], started: StartedEpisode, tolerate: str) -> Episode:
        error, observation = started.error, started.observation
        if "prompt" not in row and not observation and error is None:
            raise ValueError(
                f"A row has no 'prompt' (it has {', '.join(row)}) and `reset` of {type(started.environment).__name__} "
                "returned no task: rename the column with the task to 'prompt', or return the task from `reset`."
            )
        actions = self.rollout.contexts.actions(started.actions)
        episode = Episode(
            [],
            environment=started.environment,
            actions=actions,
            max_turns=turn_limit(row.get(MAX_TURNS)),
            began=time.time(),
        )
        fatal = tolerate == "nothing"
        try:
            if error is None:
                self.rollout.settings.check_characters(observation)
        except ValueError as too_long:
            error = too_long
        try:
            added = None if error is not None else observation
            episode.prompt = self.render(row.get("prompt", NO_TASK), actions, added)
            episode.prompt_ids = self.encode(episode.prompt, actions, episode.began)
            if error is None:
                self.rollout.settings.check_prompt(episode.prompt_ids)
        except Exception as own:
            # Without what `reset` added, the task of the data set is at fault
            fatal = fatal or (tolerate == "environment" and not added)
            error = own
        if error is not None:
            if fatal:
                raise error
            episode.stop_reason, episode.error = StopReason.ERROR, describe_error(error)
        return episode

    def render(
        self, task: str | Sequence[Mapping[str, Any]], actions: ActionSet, observation: str | None = None
    ) -> str | list[dict[str, Any]]:
        """
        The task prompt: the task, and what `reset` added to it, inside the instructions of the protocol.

        The task of the data set is the user's own and stays as it is. What `reset` returned may come from anywhere: it cannot end
        the message or begin another. Tags it may hold, since an environment explains its answer format there.

        Args:
            task (`str` or `list[dict]`):
                A text, or messages whose last one is the user's; their content may be a list of typed text blocks.
            actions ([`ActionSet`]):
                Actions that the instructions list.
            observation (`str`, *optional*):
                What `reset` returned.

        Returns:
            `str` or `list[dict]`: A text if the task is one and is not spoken as chat, messages otherwise.

        Raises:
            `ValueError`: If the task is neither, or messages for a tokenizer without a chat template.
        """
        added = sanitize_prompt(self.rollout.tokenizer, observation) if observation else ""
        protocol, lines = self.rollout.protocol, actions.describe()
        check_task(task)
        if not isinstance(task, str):
            resolve_conversational(AgentSettings(conversational=True), self.rollout.tokenizer)
        task = self.rollout.syntax.as_prompt(task)
        if isinstance(task, str):
            text = protocol.render_task(task + added, lines)
            return [{"role": "user", "content": text}] if self.rollout.settings.conversational else text
        *before, last = [{**message, "content": text_of_blocks(message.get("content"))} for message in task]
        return [*before, {**last, "content": protocol.render_task((last["content"] or "") + added, lines)}]

    def encode(
        self, prompt: str | Sequence[Mapping[str, Any]], actions: ActionSet | None = None, at: float | None = None
    ) -> list[int]:
        """Token ids of a rendered task prompt; a template that writes the date writes that of the time `at`, in seconds since the epoch."""
        return self.rollout.syntax.encode_task(prompt, [] if actions is None else actions.schemas, at)

    def play(self, episodes: Sequence[Episode]) -> list[Trajectory]:
        """Trajectories of episodes that were started, in their order, with their metrics and not yet scored."""
        clock = _TurnClock(episodes)
        if self.timed:
            self.rollout.on_turn = clock
        trajectories = self.rollout.run(episodes)
        for episode, trajectory in zip(episodes, trajectories, strict=True):
            if trajectory.turns:
                trajectory.metrics.update(self.metrics(trajectory))
                if self.timed:
                    trajectory.metrics["seconds"] = clock.seconds[id(episode)]
        return trajectories

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Metrics of an episode, those of its summaries included if the context rule makes some."""
        own = summary_metrics(trajectory) if self.rollout.contexts.rule.measured else {}
        return {**trajectory_metrics(trajectory), **own}

    def score(
        self,
        episodes: Sequence[Episode],
        trajectories: Sequence[Trajectory],
        environments: EnvironmentPool | GivenEnvironments,
        tolerate: str = "nothing",
    ) -> None:
        """
        Ask the environments for their rewards, of episodes that could be played to their end; environments that failed are used
        no more.

        Args:
            episodes (`Sequence[Episode]`):
                What was played.
            trajectories (`Sequence[Trajectory]`):
                Those of `episodes`; their `reward` and `error` are set.
            environments ([`EnvironmentPool`] or [`GivenEnvironments`]):
                Where the episodes came from.
            tolerate (`str`, *optional*, defaults to `"nothing"`):
                One of [`TOLERATE`].

        Raises:
            `Exception`: With `"nothing"`, the failure of the first `get_reward` that failed, or a `RuntimeError` with that of an
                environment, or of the model's server, on the way.
        """
        sound = [index for index, trajectory in enumerate(trajectories) if trajectory.error is None]
        scores = environments.score([episodes[index].environment for index in sound])
        for index, (reward, failure) in zip(sound, scores, strict=True):
            of_turns = trajectories[index].turn_rewards
            trajectories[index].reward = reward if of_turns is None else (reward or 0.0) + sum(of_turns)
            if failure is not None:
                trajectories[index].error = describe_error(failure)
        failures = {index: failure for index, (_, failure) in zip(sound, scores) if failure is not None}
        for index, (episode, trajectory) in enumerate(zip(episodes, trajectories)):
            if trajectory.error is not None:
                environments.discard(episode.environment)
                if tolerate == "nothing":
                    raise failures.get(index) or RuntimeError(f"The episode of row {index} failed: {trajectory.error}")


def check_task(task: Any) -> None:
    """Raise a `ValueError` for what an agent cannot be given as a task: what is no prompt, and messages whose last one is not the user's."""
    check_prompt(task)
    if not isinstance(task, str) and task[-1]["role"] != "user":
        raise ValueError(f"The last message of a task must be the user's, got one of the role {task[-1]['role']!r}.")


def check_prompt(task: Any) -> None:
    """Raise a `ValueError` for what no prompt can be made of: what is neither a text nor messages with a text each."""
    if isinstance(task, str):
        return
    messages = isinstance(task, Sequence) and all(isinstance(one, Mapping) and "role" in one for one in task)
    if not messages or not task:
        raise ValueError(
            f"A task must be a text or a list of messages, got {'no message' if messages else f'a {type(task).__name__}'}: a message is "
            '{"role": "user", "content": ...}.'
        )
    for number, one in enumerate(task, start=1):
        if not isinstance(one.get("content"), str | list) and not one.get("tool_calls"):
            raise ValueError(f"Message {number} of a task must have a text as its 'content', got {dict(one)!r:.100}.")


class _TurnClock:
    """Splits the wall time between two ends of turns evenly among the episodes that were played meanwhile."""

    def __init__(self, episodes: Sequence[Episode]):
        self.running = [episode for episode in episodes if episode.stop_reason is None]
        self.seconds = {id(episode): 0.0 for episode in episodes}
        self.last = time.perf_counter()

    def __call__(self, turn: int, still_running: Sequence[Episode]) -> None:
        now = time.perf_counter()
        for episode in self.running:
            self.seconds[id(episode)] += (now - self.last) / len(self.running)
        self.running, self.last = list(still_running), now
