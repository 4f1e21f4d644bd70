"""An episode in progress: played turn by turn, read, edited, talked to and saved."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

from ..environment_runtime.actions import ActionResult
from ..environment_runtime.shown_text import shown_text
from ..json_text import as_json
from ..metrics import peak_tokens
from ..rollout.interventions import add_message, edit_state
from ..rollout.turn_listener import TurnListener
from ..rollout.turn_loop import trajectory_of
from ..trajectory import Trajectory
from .episode_file import episode_record, write_episode
from .token_stream import pieces_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from ..environment_runtime.pool import GivenEnvironments
    from ..protocol.parsed_turn import ActionRequest
    from ..rollout.acting import Acting
    from ..rollout.episode import Episode
    from ..rollout.play import EpisodePlayer
    from ..rollout.settings import AgentSettings
    from ..trajectory import Turn


@dataclass(frozen=True, slots=True)
class EpisodeCost:
    """
    What an episode has cost so far.

    Attributes:
        turns (`int`):
            Calls of the model.
        read_tokens (`int`):
            Tokens of the contexts of all turns, in sum.
        generated_tokens (`int`):
            Tokens that were sampled.
        peak_tokens (`int`):
            Tokens of the longest context with its completion.
        seconds (`float`):
            Wall time of the turns, actions included.
    """

    turns: int = 0
    read_tokens: int = 0
    generated_tokens: int = 0
    peak_tokens: int = 0
    seconds: float = 0.0


class AgentEpisode:
    """
    An episode that [`Mem1Agent.start`] began or [`Mem1Agent.load`] read from a file.

    Example:

    ```python
    episode = agent.start("What is the capital of France?", tools=[search])
    while not episode.done:
        turn = episode.step()
        print(turn.text, turn.observation)
    print(episode.trajectory.answer, episode.cost)
    ```

    Not safe from several threads; several episodes of one agent are.

    Args:
        player ([`EpisodePlayer`]):
            Plays and scores it.
        episode ([`Episode`]):
            Its state.
        environments ([`GivenEnvironments`]):
            Has its environment.
        row (`Mapping`):
            What the environment was reset with.
        playing (`Callable`):
            Returns a context manager that is held while turns are generated.
        reward (`float`, *optional*):
            Reward of an episode that has ended.
        seconds (`float`, *optional*, defaults to `0.0`):
            Wall time of the turns so far.
        schemas (`Sequence[dict]`, *optional*):
            Tools that run elsewhere, see [`~AgentEpisode.calls`].
        waiting ([`Acting`], *optional*):
            The calls of the last turn, if their results are still to be given.
        settings ([`AgentSettings`], *optional*):
            Those of the agent, where the episode is played with others.
        options (`Mapping`, *optional*):
            Those others, by their names.

    Attributes:
        scored (`bool`):
            Whether the environment is asked for its reward when the episode ends, `True` unless it is set. A conversation has none.
    """

    def __init__(
        self,
        player: EpisodePlayer,
        episode: Episode,
        environments: GivenEnvironments,
        row: Mapping[str, Any],
        playing: Callable[[], AbstractContextManager[Any]],
        reward: float | None = None,
        seconds: float = 0.0,
        schemas: Sequence[Mapping[str, Any]] | None = None,
        waiting: Acting | None = None,
        settings: AgentSettings | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        self.row = dict(row)
        self.scored = True
        self._player = player
        self._episode = episode
        self._environments = environments
        self._playing = playing
        self._reward = reward
        self._seconds = seconds
        self._schemas = schemas
        self._waiting = waiting
        self._settings = settings
        self._options = dict(options or {})

    # Reading

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self._episode.stop_reason is not None

    @property
    def answer(self) -> str | None:
        """The answer, or the reply to the last message; `None` if there is none (yet)."""
        return self._episode.answer

    @property
    def calls(self) -> list[ActionRequest]:
        """
        Calls of the last turn that are to be made elsewhere, by whoever plays the episode (`schemas=` of [`Mem1Agent.start`]): `method`
        and `arguments` say which. Their results go to [`~AgentEpisode.give`] before the next turn.
        """
        if self._waiting is None:
            return []
        waiting = zip(self._waiting.requests, self._waiting.calls)
        return [request for request, call in waiting if not isinstance(call, ActionResult)]

    @property
    def trajectory(self) -> Trajectory:
        """The episode so far, with its metrics. Its `stop_reason` is `None` while it goes on."""
        trajectory = trajectory_of(self._episode)
        trajectory.reward = self._reward
        if trajectory.turns:
            trajectory.metrics.update(self._player.metrics(trajectory))
            trajectory.metrics["seconds"] = self._seconds
        return trajectory

    @property
    def cost(self) -> EpisodeCost:
        """Tokens and time so far."""
        trajectory = trajectory_of(self._episode)
        if not trajectory.turns:
            return EpisodeCost()
        return EpisodeCost(
            turns=len(trajectory.turns),
            read_tokens=sum(len(turn.prompt_ids) for turn in trajectory.turns),
            generated_tokens=trajectory.num_generated_tokens,
            peak_tokens=peak_tokens(trajectory),
            seconds=self._seconds,
        )

    @property
    def memory(self) -> str | None:
        """
        The internal state that the next turn will read; `None` before the first turn, or if the last one wrote none.

        It can be set between turns: the next context then holds the new text in its place. The record of the turn keeps what was
        sampled, and its `edited_state` says what replaced it.
        """
        if not self._episode.turns:
            return None
        last = self._episode.turns[-1]
        return last.state if last.edited_state is None else last.edited_state

    @memory.setter
    def memory(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"The memory must be a text, got a {type(text).__name__}.")
        if not self._episode.turns:
            raise RuntimeError(
                "The agent has written no state yet: put what it should know into the task, or play a turn first."
            )
        if text != self.memory:
            edit_state(self._player.rollout, self._episode, text)

    @property
    def opened(self) -> str | None:
        """The tag that the next context has opened, in which the next turn begins, such as `"think"`; `None` if there is none."""
        if self.done:
            return None
        rollout = self._player.rollout
        return rollout.syntax.opened(rollout.next_request(self._episode).context)

    # Playing

    def step(self, on_text: Callable[[str], object] | None = None) -> Turn:
        """
        Play one turn, its action included.

        Args:
            on_text (`Callable[[str], object]`, *optional*):
                Called with each piece of the turn's `text` as it is generated, here or on a server. An error that it raises stops the
                generation and is raised here; the turn has not been played then.

        Returns:
            [`Turn`]: With the observation that the next turn will read, if there is one.

        Raises:
            `RuntimeError`: If the episode has ended; if its environment fails, which ends it; or if the model's server gives no
                answer, after which the turn can be played again.
        """
        with self._playing():
            return self._play_turn(on_text)

    def run(self, on_text: Callable[[str], object] | None = None) -> Trajectory:
        """Play the episode to its end. `on_text` is called as in [`~AgentEpisode.step`]."""
        with self._playing():
            while not self.done and not self.calls:
                self._play_turn(on_text)
        return self.trajectory

    @overload
    def stream(self, tokens: Literal[False] = False) -> Iterator[Turn]: ...

    @overload
    def stream(self, tokens: bool) -> Iterator[Turn | str]: ...

    def stream(self, tokens: bool = False) -> Iterator[Turn | str]:
        """
        Play the episode to its end, and yield each turn as soon as it has ended.

        Args:
            tokens (`bool`, *optional*, defaults to `False`):
                Whether to yield the text of each turn, too, in pieces as it is generated and before the turn itself. The pieces of a
                turn, one after the other, are its `text`. Whoever leaves the loop stops the generation; the turn can be played again.
        """
        while not self.done and not self.calls:
            if tokens:
                yield from pieces_of(self.step)
            else:
                yield self.step()

    def send(self, text: str, on_text: Callable[[str], object] | None = None) -> str | None:
        """
        Write to the agent after it has answered, and play until it has answered again.

        The message is the observation of the turn before. It gives the agent `max_turns` turns more, and what was said earlier is
        in its memory only, so that its context does not grow.

        Args:
            text (`str`):
                The message; one longer than `max_observation_length` is cut, and says so.
            on_text (`Callable[[str], object]`, *optional*):
                As in [`~AgentEpisode.step`].

        Returns:
            `str` or `None`: The reply, which is `answer` too; `None` if the agent used all its turns without one.
        """
        self.add_message(text)
        return self.run(on_text).answer

    def give(self, results: Sequence[Any]) -> None:
        """
        Let the agent read the results of [`~AgentEpisode.calls`], one for each, in their order. What is no text is shown as a result of an
        environment's action would be.

        Raises:
            `TypeError`: If one cannot be shown as text, or `results` is not a list.
            `ValueError`: If there are not as many.
        """
        calls = self.calls
        if isinstance(results, (str, Mapping)) or not isinstance(results, Sequence):
            raise TypeError(f"Results are a list, one for each call, got a {type(results).__name__}.")
        if self._waiting is None or len(results) != len(calls):
            raise ValueError(f"There must be one result for each of {len(calls)} calls, got {len(results)}.")
        given, acting = iter([shown_text(result) for result in results]), self._waiting
        acting.results = [one if isinstance(one, ActionResult) else ActionResult(next(given)) for one in acting.calls]
        self._player.rollout.observe(acting)
        self._waiting = None

    def add_message(self, text: str) -> None:
        """Write to the agent after it has answered, as [`~AgentEpisode.send`], but leave the turns to `step()`, `run()` or `stream()`."""
        add_message(self._player.rollout, self._episode, text)
        self._reward = None

    def _play_turn(self, on_text: Callable[[str], object] | None = None) -> Turn:
        episode = self._episode
        if episode.stop_reason is not None:
            raise RuntimeError(
                f"The episode has ended ({episode.stop_reason.value}): start another, or `send` a message."
            )
        if self._waiting is not None:
            raise RuntimeError(f"{len(self.calls)} calls wait for their results: `give` them before the next turn.")
        started, played = time.perf_counter(), len(episode.turns)
        listener = None if on_text is None else TurnListener(self._player.rollout.tokenizer, on_text)
        episode.listener = listener
        try:
            if self._schemas is None:
                self._player.rollout.play_turn([episode])
            else:
                self._waiting = self._player.rollout.play_turn_outside(episode)
        finally:
            episode.listener = None
        self._seconds += time.perf_counter() - started
        if len(episode.turns) == played:  # the server failed, and nothing has changed
            error, episode.error, episode.stop_reason = episode.error, None, None
            if listener is not None and listener.error is not None:
                raise listener.error
            raise RuntimeError(f"The model gave no turn: {error}")
        if self.done:
            trajectory = trajectory_of(episode)
            if self.scored or trajectory.error is not None:  # which `score` raises
                self._player.score([episode], [trajectory], self._environments)
                self._reward = trajectory.reward
        return episode.turns[-1]

    # Keeping

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the episode to a JSON file, from which [`Mem1Agent.load`] goes on. A kill while it is written leaves the earlier file.

        An environment with a property `mem1_state` (JSON values, with a setter) has it saved; see [`Mem1Agent.load`] for others.

        Args:
            path (`str` or `os.PathLike`):
                The file.

        Raises:
            `ValueError`: If the row or the state of the environment cannot be written as JSON.
        """
        write_episode(path, self.to_dict())

    def draw_from(self, seed: int) -> None:
        """Choose what the coming turns sample by another seed, where episodes have seeds of their own."""
        if self._player.rollout.seeds is not None:
            self._episode.seed = seed % 2**62

    def to_dict(self, past: bool = True) -> dict[str, Any]:
        """
        What [`~AgentEpisode.save`] writes, which [`Mem1Agent.resume`] takes.

        Args:
            past (`bool`, *optional*, defaults to `True`):
                Whether turns that no later context holds are kept. Without them an episode goes on as well, and stays as small as its
                context.
        """
        state = None if self._schemas is not None else self._environments.state_of(self._episode.environment)
        record = episode_record(
            self._player.rollout, self._episode, self.row, self._reward, self._seconds, state, past
        )
        if self._settings is not None:
            record["settings"] = self._settings.to_dict()
        if self._options:
            record["options"] = as_json(self._options)
        if self._schemas is not None:
            record["schemas"] = list(self._schemas)
        if self._waiting is not None:
            record["calls"] = [dataclasses.asdict(request) for request in self._waiting.requests]
            record["results"] = [
                dataclasses.asdict(call) if isinstance(call, ActionResult) else None for call in self._waiting.calls
            ]
            record["turns_left"] = self._waiting.turns_left
        return record

    def close(self) -> None:
        """Let the thread of the environment end. The environment itself is the caller's, unless it was made for the episode: it is closed."""
        self._environments.release()
