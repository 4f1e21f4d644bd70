"""Episodes that programs play: their requests are generated together, as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..environment_runtime.errors import describe_error
from ..protocol.encoding import decode
from ..rollout.draws import uniform_draws
from ..trajectory import StopReason, Turn
from ..waiting import LONGEST_SLEEP
from ..wire.errors import WireError
from .hub import Asked, GatewayHub, as_wire, refuse
from .program import RunningProgram
from .turns import ChatTurns

if TYPE_CHECKING:
    from ..rollout.episode import Episode
    from ..rollout.turn_loop import Rollout


class _Play:
    """One episode and its program."""

    def __init__(self, episode: Episode, hub: GatewayHub, put: Callable[[Callable[[], None]], None]):
        environment = episode.environment
        self.episode = episode
        self.hub = hub
        self.asked = 0
        self.token, base_url = hub.open(lambda asked: put(lambda: self.waiting.append(asked)))
        self.waiting: list[Asked] = []
        self.until = time.monotonic() + environment._timeout
        self.over = False
        self.program = RunningProgram(
            environment._program,
            environment._row,
            base_url,
            lambda result, error: put(lambda: self.end(result, error)),
        )

    def end(self, result: Any, error: BaseException | None) -> None:
        """The program has ended, or is not waited for any more."""
        if self.over:
            return
        self.over = True
        self.hub.close(self.token)
        for asked in self.waiting:
            refuse(asked, WireError(410, "The episode of this address has ended.", "episode_ended"))
        self.waiting = []
        episode = self.episode
        if isinstance(error, KeyboardInterrupt):
            raise error
        if error is None and not episode.turns:
            error = RuntimeError("the program ended without a request to the model")
        if error is not None:
            episode.error, episode.stop_reason = f"The program failed: {describe_error(error)}", StopReason.ERROR
            return
        episode.environment._result, episode.environment._played = result, True
        episode.answer, episode.stop_reason = None if result is None else str(result), StopReason.DONE


def play_programs(rollout: Rollout, episodes: Sequence[Episode]) -> None:
    """
    Let the programs of episodes run to their end, and write down what they ask as turns.

    Args:
        rollout ([`Rollout`]):
            Its backend generates for all requests that wait, in one call.
        episodes (`Sequence[Episode]`):
            Fresh episodes, each with a [`GatewayEnvironment`].

    Raises:
        `ValueError`: If the backend generates in lockstep, for several processes together.
    """
    if rollout.mode != "async":
        raise ValueError(
            'Programs ask when they like, so a GatewayEnvironment needs rollout_mode="async", max_turns above 1, and a backend in '
            "which each process generates alone (no sharded model, no vLLM for several processes)."
        )
    chat, hub = ChatTurns(rollout.tokenizer, rollout.settings), GatewayHub.shared()
    events: SimpleQueue[Callable[[], None]] = SimpleQueue()
    left = deque(episode for episode in episodes if episode.stop_reason is None)
    at_once = rollout.at_once or len(left)
    running: list[_Play] = []
    try:
        while left or running:
            while left and len(running) < at_once:
                running.append(_Play(left.popleft(), hub, events.put))
            playing = list(running)
            _handle(events, min([LONGEST_SLEEP, *(play.until - time.monotonic() for play in running)]))
            if any(play.waiting for play in running) and rollout.batch_wait:
                until = time.monotonic() + rollout.batch_wait
                while (
                    not all(play.waiting or play.over for play in running) and (rest := until - time.monotonic()) > 0
                ):
                    _handle(events, rest)
            _play_turns(rollout, chat, running)
            _handle(events, 0)  # a program may have ended in time while another one's turn was generated
            for play in running:
                if not play.over and time.monotonic() > play.until:
                    play.end(
                        None, TimeoutError(f"it did not end within {play.episode.environment._timeout:g} seconds")
                    )
                    play.program.stop()
            running = [play for play in running if not play.over]
            if rollout.on_turn is not None:
                rollout.on_turn(max(len(play.episode.turns) for play in playing), [play.episode for play in running])
    finally:
        for play in running:
            play.hub.close(play.token)
            play.program.stop()


def _handle(events: SimpleQueue[Callable[[], None]], seconds: float) -> None:
    """Do what has to be done about all that has happened; wait for something to happen, at most so long."""
    try:
        events.get(timeout=max(seconds, 0.001))()
        while True:
            events.get_nowait()()
    except Empty:
        pass


def _play_turns(rollout: Rollout, chat: ChatTurns, running: Sequence[_Play]) -> None:
    """Answer all requests that wait, in one call of the model."""
    ready: list[tuple[_Play, Asked, list[int]]] = []
    for play in running:
        waiting, play.waiting = play.waiting, []
        for asked in waiting:
            if asked.given_up:
                continue
            try:
                most = play.episode.environment._max_requests
                if play.asked >= most:
                    raise WireError(429, f"An episode may make at most {most} requests.", "max_requests")
                ready.append((play, asked, chat.context(asked.request, play.episode.turns)))
                play.asked += 1
            except Exception as error:
                refuse(asked, as_wire(error))
    if not ready:
        return
    more: dict[str, Any] = {}
    if ready[0][0].episode.seed is not None:
        longest = rollout.settings.max_completion_length
        numbers = {id(play): len(play.episode.turns) for play, *_ in ready}
        more["draws"] = []
        for play, *_ in ready:
            assert play.episode.seed is not None
            more["draws"].append(uniform_draws(play.episode.seed, numbers[id(play)], longest))
            numbers[id(play)] += 1  # several of one program at once
    completions = rollout.generate(
        [context for *_, context in ready], [list(asked.request.stop) for _, asked, _ in ready], **more
    )
    for (play, asked, context), completion in zip(ready, completions, strict=True):
        if completion.error is not None:
            refuse(asked, WireError(502, completion.error))
            continue
        ids, logprobs, ended = chat.cut(asked.request, completion)
        if asked.given_up:  # the program never reads it
            continue
        play.episode.turns.append(
            Turn(
                prompt_ids=tuple(context),
                completion_ids=tuple(ids),
                logprobs=logprobs,
                text=decode(rollout.tokenizer, ids),
                truncated_sampling=completion.truncated_sampling,
            )
        )
        asked.answer.set_result(chat.answer(asked.request, context, ids, ended))
