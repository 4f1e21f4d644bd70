"""
Episodes that do not wait for each other: each goes on as soon as its own actions have returned.

A local model generates for all episodes that are ready by then, in one call. A server is asked by each episode alone, as soon as it is
ready. Actions run in the background meanwhile. Everything else (contexts, parsing, observations) happens in the thread that plays.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from ..environment_runtime.running_calls import LONGEST_SLEEP
from .acting import Acting, BackgroundActions

if TYPE_CHECKING:
    from .episode import Episode
    from .stopping import Completion
    from .turn_loop import Rollout
    from .turn_request import TurnRequest


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
            elif self.ready:
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
        """Wait a little for those that are about to become ready, if any could."""
        until = self.ready_since + self.rollout.batch_wait
        self._handle_events(0.0)
        while self.acting and (left := until - time.monotonic()) > 0:
            self._handle_events(left)

    def _generate(self) -> None:
        ready, self.ready = self.ready, []
        ready.sort(key=lambda episode: self.places[id(episode)])  # the same batch in the same order, whoever was first
        requests = [self.rollout.next_request(episode) for episode in ready]
        completions = self.rollout.generate_turns(requests)
        for request, completion in zip(requests, completions, strict=True):
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
