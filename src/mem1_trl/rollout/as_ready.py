"""
Episodes that do not wait for each other: each goes on as soon as its own actions have returned.

A local model generates for all episodes that are ready by then, in one call; where it can be left, the call returns when some turns have
ended, and the next goes on with the others and those that have become ready. A server is asked by each episode alone, as soon as it is
ready. Actions run in the background meanwhile. Everything else (contexts, parsing, observations) happens in the thread that plays.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from ..waiting import LONGEST_SLEEP
from .acting import Acting, BackgroundActions

if TYPE_CHECKING:
    from .episode import Episode
    from .stopping import Completion
    from .turn_loop import Rollout
    from .turn_request import TurnRequest

LEAVE_AT = 4
"""A call of the model returns when one in so many turns has ended."""


def play_asynchronously(rollout: Rollout, episodes: Sequence[Episode]) -> None:
    """
    Play episodes to their end, each at its own pace.

    Args:
        rollout ([`Rollout`]):
            Takes the single turns.
        episodes (`Sequence[Episode]`):
            Fresh episodes.

    Raises:
        `KeyboardInterrupt`: If the user, or an environment, interrupts. Running actions are not waited for.
        `Exception`: What the backend raises, and what ends a run, see [`EnvironmentCaller.run`].
    """
    playing = _Playing(rollout, episodes)
    try:
        playing.play()
    finally:
        playing.close()


class _Playing:
    """The episodes of one rollout: those that wait for their turn to begin, that are ready, that act."""

    def __init__(self, rollout: Rollout, episodes: Sequence[Episode]):
        self.rollout = rollout
        self.places = {id(episode): place for place, episode in enumerate(episodes)}
        self.waiting = deque(episode for episode in episodes if episode.stop_reason is None)
        self.running: dict[int, Episode] = {}
        self.ready: list[Episode] = []
        self.begun: list[tuple[TurnRequest, Completion]] = []  # turns that the model has not ended yet
        self.returned = 0.0  # when the last call of the model did
        self.ready_since = 0.0  # when the first of them became so
        self.acting = 0
        self.events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.actions = BackgroundActions(rollout.caller, self._acted, self._failed)
        self.requests = rollout.open_turns(self._answered, self._failed)

    def close(self) -> None:
        self.actions.close()
        if self.requests is not None:
            self.requests.close()

    def play(self) -> None:
        while self.waiting or self.running:
            self._begin_more()
            if self.requests is not None:
                self._ask()
            elif self.ready or self.begun:
                self._gather()
                self._generate()
                continue
            if self.running:
                self._handle_events(LONGEST_SLEEP)

    def _begin_more(self) -> None:
        """Let episodes begin, as many as may be played at once."""
        at_once = self.rollout.at_once or len(self.waiting) + len(self.running)
        while self.waiting and len(self.running) < at_once:
            episode = self.waiting.popleft()
            self.running[id(episode)] = episode
            self._add_ready(episode, time.monotonic())

    def _add_ready(self, episode: Episode, moment: float) -> None:
        if not self.ready:
            self.ready_since = moment
        self.ready.append(episode)

    # Generation

    def _gather(self) -> None:
        """
        Wait a little for those that are about to become ready, if any could, also where other turns could go on: with quick actions the
        same turns are then generated together in every run.
        """
        self._handle_events(0.0)
        while self.acting and (left := self._waits_until() - time.monotonic()) > 0:
            self._handle_events(left)

    def _waits_until(self) -> float:
        return (self.ready_since if self.ready else self.returned) + self.rollout.batch_wait

    def _generate(self) -> None:
        ready, self.ready = self.ready, []
        ready.sort(key=lambda episode: self.places[id(episode)])  # the same batch in the same order, whoever was first
        turns: list[tuple[TurnRequest, Completion | None]] = [
            *self.begun,
            *((self.rollout.next_request(episode), None) for episode in ready),
        ]
        requests, begun = [request for request, _ in turns], [completion for _, completion in turns]
        leave = -(-len(turns) // LEAVE_AT) if self.rollout.returns_early else None
        completions = self.rollout.generate_turns(requests, begun, leave)
        self.returned = time.monotonic()
        pairs = list(zip(requests, completions, strict=True))
        self.begun = [pair for pair in pairs if pair[1].unfinished]
        for request, completion in pairs:
            if not completion.unfinished:
                self._take(request, completion)

    def _ask(self) -> None:
        """Send the request of each episode that is ready."""
        assert self.requests is not None
        for episode in self.ready:
            self.requests.send(self.rollout.next_request(episode))
        self.ready = []

    def _answered(self, request: TurnRequest, read: Callable[[], Completion]) -> None:
        """Called from other threads."""
        self.events.put(lambda: self._take(request, read()))

    def _failed(self, error: BaseException) -> None:
        """Called from other threads."""

        def fail() -> None:
            raise error

        self.events.put(fail)

    def _take(self, request: TurnRequest, completion: Completion) -> None:
        action = self.rollout.read(request, completion)
        if action is None:
            self._end_turn(request.episode, time.monotonic())
        else:
            self.acting += 1
            self.actions.begin(action)

    # Actions

    def _acted(self, action: Acting) -> None:
        """Called from another thread."""
        moment = time.monotonic()
        self.events.put(lambda: self._observe(action, moment))

    def _observe(self, action: Acting, moment: float) -> None:
        self.acting -= 1
        self.rollout.observe(action)
        self._end_turn(action.episode, moment)

    def _end_turn(self, episode: Episode, moment: float) -> None:
        if episode.stop_reason is None:
            self._add_ready(episode, moment)
        else:
            del self.running[id(episode)]
        if self.rollout.on_turn is not None:
            self.rollout.on_turn(len(episode.turns), list(self.running.values()))

    def _handle_events(self, seconds: float) -> None:
        """Do what has to be done about all that has happened; wait for something to happen, at most so long."""
        try:
            handle = self.events.get(timeout=min(seconds, LONGEST_SLEEP)) if seconds > 0 else self.events.get_nowait()
            while True:
                handle()
                handle = self.events.get_nowait()
        except Empty:
            pass
