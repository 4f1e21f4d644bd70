"""The turn loop: a batch of episodes is played in lockstep and becomes trajectories."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..environment_runtime.actions import ActionResult, run_calls
from ..environment_runtime.calls import EnvironmentCall, EnvironmentCaller, name_of_call
from ..environment_runtime.errors import describe_error
from ..protocol.encoding import decode, encode_text, tokens_of_span
from ..protocol.parsed_turn import ActionRequest, ParsedTurn
from ..trajectory import StopReason, Trajectory, Turn
from .context import next_context
from .episode import Episode
from .external_memory import Note
from .observations import ObservationEncoder
from .stopping import StopStrings
from .turn_rewards import reward_turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from ..protocol.protocol import Mem1Protocol
    from ..protocol.syntax import ActionSyntax
    from .generation import TurnGenerator
    from .settings import AgentSettings
    from .stopping import Completion


class Rollout:
    """
    Runs episodes in lockstep: each turn generates for all that still run, then calls all their actions simultaneously.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Encodes observations, decodes completions.
        protocol ([`Mem1Protocol`]):
            Tags, hints, templates.
        settings ([`AgentSettings`]):
            Budgets and rules.
        generate ([`TurnGenerator`]):
            The backend.
        running_anywhere (`Callable[[bool], bool]`, *optional*):
            Returns whether any process still plays, given whether this one does. For backends in which one call generates
            for all processes: a process whose episodes have ended still takes part, with no contexts of its own.
        on_turn (`Callable[[int, list[Episode]], None]`, *optional*):
            Called after every turn with the number of turns done and the episodes that still run.
        syntax ([`~mem1_trl.protocol.syntax.ActionSyntax`], *optional*):
            How actions are written and read. `None` makes the one of `protocol` for `tokenizer`.
        caller ([`EnvironmentCaller`], *optional*):
            Calls the environments, with its time limit and retries. `None` makes one with the default settings.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        protocol: Mem1Protocol,
        settings: AgentSettings,
        generate: TurnGenerator,
        running_anywhere: Callable[[bool], bool] = bool,
        on_turn: Callable[[int, list[Episode]], None] | None = None,
        syntax: ActionSyntax | None = None,
        caller: EnvironmentCaller | None = None,
    ):
        self.syntax = syntax or protocol.syntax(tokenizer)
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.settings = settings
        self.generate = generate
        self.running_anywhere = running_anywhere
        self.on_turn = on_turn
        self.caller = caller or EnvironmentCaller()
        self.observations = ObservationEncoder(self.syntax, settings)

    def run(self, episodes: Sequence[Episode]) -> list[Trajectory]:
        """
        Play all episodes to their end.

        Args:
            episodes (`Sequence[Episode]`):
                Fresh episodes, their environments reset.

        Returns:
            `list[Trajectory]`: In the order of `episodes`, not yet rewarded.
        """
        for episode in episodes:
            episode.record = self.syntax.new_record()
            if episode.stop_reason is None:
                self.settings.check_prompt(episode.prompt_ids)
        for turn in range(1, self.settings.max_turns + 1):
            running = [episode for episode in episodes if episode.stop_reason is None]
            if not self.running_anywhere(bool(running)):
                break
            self._play_turn(running, turn)
            if self.on_turn is not None:
                self.on_turn(turn, [episode for episode in running if episode.stop_reason is None])
        return [
            Trajectory(
                turns=episode.turns,
                stop_reason=episode.stop_reason or StopReason.MAX_TURNS,
                answer=episode.answer,
                metrics={"failed_actions": float(episode.failed_actions)},
                error=episode.error,
            )
            for episode in episodes
        ]

    def _play_turn(self, running: list[Episode], turn: int) -> None:
        turns_left = self.settings.max_turns - turn
        contexts, stops = [], []
        for episode in running:
            context = self._context(episode)
            contexts.append(context)
            stops.append(self._stops(episode, context, turns_left == 0))
        completions = self._generate(running, contexts, stops)

        asked: list[tuple[Episode, list[ActionRequest]]] = []
        for episode, context, completion in zip(running, contexts, completions, strict=True):
            if completion.error is not None:
                episode.error, episode.stop_reason = completion.error, StopReason.ERROR
                continue
            parsed = self._read(episode, context, completion, turns_left)
            requests = self._act(episode, parsed, completion)
            if requests:
                asked.append((episode, requests))
        calls = [(episode, self._calls(episode, requests)) for episode, requests in asked]
        outcomes = self._call(calls)
        acted = [episode for episode, made in calls if any(not isinstance(call, ActionResult) for call in made)]
        reward_turns(self.caller, [episode for episode in acted if episode.error is None])
        for (episode, requests), results in zip(asked, outcomes, strict=True):
            self._observe(episode, requests, results, turns_left)

    def _call(self, asked: list[tuple[Episode, list[Any]]]) -> list[list[ActionResult]]:
        """Results of all calls: those of different episodes run simultaneously, those of one in order, until its environment is done."""
        results: list[list[ActionResult]] = [[] for _ in asked]
        for place in range(max((len(calls) for _, calls in asked), default=0)):
            now = [
                (index, episode, calls[place])
                for index, (episode, calls) in enumerate(asked)
                if place < len(calls) and not (place and episode.stop_reason is not None)
            ]
            ready = [(call, episode.environment) for _, episode, call in now if not isinstance(call, ActionResult)]
            outcomes = iter(run_calls([call for call, _ in ready], self.caller, [owner for _, owner in ready]))
            for index, _, call in now:
                results[index].append(call if isinstance(call, ActionResult) else next(outcomes))
            self._end_finished([episode for _, episode, _ in now], [results[index][-1] for index, _, _ in now])
        return results

    def _generate(self, running: list[Episode], contexts: list[list[int]], stops: list[list[str]]) -> list[Completion]:
        """The next completion of each running episode."""
        return self.generate(contexts, stops)

    def _context(self, episode: Episode) -> list[int]:
        room = self._history_room(episode)
        return next_context(self.settings.context, episode.prompt_ids, episode.history, room, episode.recalled)

    def _history_room(self, episode: Episode) -> int | None:
        """Tokens that the past may take in a context."""
        limit = self.settings.max_context_length
        return None if limit is None else limit - len(episode.prompt_ids)

    def _stops(self, episode: Episode, context: list[int], last_turn: bool) -> list[str]:
        if episode.actions is None:
            return []
        stops = self.syntax.stop_strings(list(episode.actions.tags), last_turn)
        opened = self.syntax.opened(context)
        return StopStrings(stops, f"</{opened}>") if stops and opened else stops

    def _read(
        self, episode: Episode, context: list[int], completion: Completion, turns_left: int
    ) -> ParsedTurn | None:
        """Record the turn and return it parsed (`None` without an environment)."""
        text = decode(self.tokenizer, completion.ids)
        parsed = None
        if episode.actions is not None:
            parsed = self.syntax.parse(
                completion.ids,
                text,
                episode.actions,
                last_turn=turns_left == 0,
                ended=completion.ended,
                opened=self.syntax.opened(context),
            )
            episode.record.add_turn(parsed)
        begin = end = 0
        if parsed is not None and parsed.state_span is not None:
            begin, end = tokens_of_span(self.tokenizer, completion.ids, parsed.state_span)
        episode.turns.append(
            Turn(
                prompt_ids=tuple(context) if completion.prompt_ids is None else completion.prompt_ids,
                completion_ids=completion.ids,
                logprobs=completion.logprobs,
                text=text,
                action=parsed.action if parsed else None,
                action_input=parsed.action_input if parsed else None,
                state=parsed.state if parsed else None,
                state_tokens=end - begin,
                state_begin=begin,
                truncated_sampling=completion.truncated_sampling,
                messages=completion.messages,
            )
        )
        return parsed

    def _act(self, episode: Episode, parsed: ParsedTurn | None, completion: Completion) -> list[ActionRequest]:
        """End the episode if its turn does so, and return the requests of the turn, those that cannot be run included."""
        if parsed is None or episode.actions is None:  # no environment: the text is the answer
            episode.answer = decode(self.tokenizer, completion.ids, skip_special_tokens=True)
            episode.stop_reason = StopReason.ANSWER if completion.ended else StopReason.TRUNCATED
            return []
        if parsed.truncated:
            episode.stop_reason = StopReason.TRUNCATED
            return []
        if parsed.action is None:
            if self.protocol.on_invalid_action == "end":
                episode.stop_reason = StopReason.INVALID_ACTION
                return []
            # The result of a turn without a call needs the name of some action, too
            return [ActionRequest(next(iter(episode.actions.tags), "tool"), problem=parsed.problem)]
        if parsed.answer is not None:
            episode.answer = parsed.answer
            episode.stop_reason = StopReason.ANSWER
        return self.syntax.requests(parsed, episode.actions)

    def _calls(self, episode: Episode, requests: Sequence[ActionRequest]) -> list[Any]:
        """The calls of as many requests as their results fit into an observation, or a result where nothing can be called."""
        calls: list[Any] = []
        for request in requests[: self.observations.most_results([request.name for request in requests])]:
            if request.method is None:
                calls.append(ActionResult(f"Error: {request.problem}", failed=True))
            else:
                calls.append((getattr(episode.environment, request.method), request.arguments))
        return calls

    def _end_finished(self, episodes: list[Episode], results: list[ActionResult]) -> None:
        """End the episodes whose environment is done, or can no longer be used."""
        asked, calls = [], []
        for episode, result in zip(episodes, results):
            if result.fatal:
                episode.error = result.error
                episode.stop_reason = StopReason.ERROR
            elif isinstance(getattr(type(episode.environment), "done", None), property):
                # It runs code of the environment, which may raise or hang as an action may
                asked.append(episode)
                thread = self.caller.thread_of(episode.environment)
                calls.append(
                    EnvironmentCall(
                        thread,
                        partial(_read_done, episode.environment),
                        name=name_of_call(episode.environment, "done"),
                    )
                )
            elif episode.stop_reason is None and _is_done(episode.environment):
                episode.stop_reason = StopReason.DONE
        for episode, outcome in zip(asked, self.caller.run(calls, counted=False)):
            if outcome.error is not None:  # there is nothing to show to the agent
                episode.error = describe_error(outcome.error)
                episode.stop_reason = StopReason.ERROR
            elif episode.stop_reason is None and outcome.value:
                episode.stop_reason = StopReason.DONE

    def _observe(
        self, episode: Episode, requests: Sequence[ActionRequest], results: list[ActionResult], turns_left: int
    ) -> None:
        """Append the observation and decide whether the episode goes on."""
        texts = [result.text for result in results]
        names = [request.name for request in requests[: len(results)]]
        episode.failed_actions += sum(result.failed for result in results)
        episode.record.add_results(names, texts)
        if episode.stop_reason is None and turns_left == 0:
            episode.stop_reason = StopReason.MAX_TURNS
        if episode.stop_reason is not None:
            return
        if len(results) < len(requests):
            texts[-1] = f"[Only the first {len(results)} of {len(requests)} calls were run.]\n{texts[-1]}"
        assert episode.actions is not None
        observation = self.observations.encode_results(texts, names, turns_left, list(episode.actions.tags))
        before, body, after = observation.before, observation.body, observation.after
        observation_ids = [*before, *body, *after]
        turn = episode.turns[-1]
        episode.turns[-1] = dataclasses.replace(
            turn,
            observation=decode(self.tokenizer, observation_ids),
            observation_tokens=len(observation_ids),
        )
        episode.history.append([*self._carried(turn), *observation_ids])
        episode.record.add_observation(names, observation.results, turns_left)
        if self.settings.context == "external":
            failed = any(result.failed for result in results)
            recalled = self._recall(episode, turn.action_input or "", body, failed)
            episode.recalled, inside = episode.record.place_memory(recalled)
            if inside:
                episode.history[-1] = [*self._carried(turn), *before, *body, *inside, *after]
        limit = self.settings.max_context_length
        if limit is not None and len(self._context(episode)) > limit:
            episode.stop_reason = StopReason.CONTEXT_OVERFLOW

    def _carried(self, turn: Turn) -> Sequence[int]:
        """Token ids of a completion in the next context: its own, unless scratch is dropped from it."""
        text = self.syntax.drop_scratch(turn.text, self.syntax.opened(turn.prompt_ids))
        return turn.completion_ids if text == turn.text else encode_text(self.tokenizer, text)

    def _recall(self, episode: Episode, query: str, body: list[int], failed: bool) -> list[int]:
        """Token ids of the notes that go into the next context. Then add the newest observation, which is in that context anyway."""
        newest = Note(query, decode(self.tokenizer, body), tuple(body))
        task = decode(self.tokenizer, episode.prompt_ids, skip_special_tokens=True)
        top_k = self.settings.memory_top_k
        found = [note for note in episode.memory.recall(f"{task}\n{query}", top_k + 1) if note.text != newest.text]
        if not failed:
            episode.memory.add(newest)
        before, after = (encode_text(self.tokenizer, part) for part in self.protocol.memory_frame())
        newline = encode_text(self.tokenizer, "\n")
        room = self._history_room(episode)
        for count in range(min(top_k, len(found)), 0, -1):  # whole notes only, the best ones if not all fit
            notes = [token for note in found[:count] for token in (*note.ids, *newline)]
            recalled = [*before, *notes, *after]
            if room is None or len(recalled) + len(episode.history[-1]) <= room:
                return recalled
        return []


def _read_done(environment: Any) -> bool:
    return bool(environment.done)


def _is_done(environment: Any) -> bool:
    """The attribute `done` of an environment; a method of this name is an action."""
    try:
        done = getattr(environment, "done", False)
        return not callable(done) and bool(done)
    except Exception:  # an array, say
        return False
