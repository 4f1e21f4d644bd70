"""Tasks, a generator and environments become trajectories: the turn loop, in lockstep over a batch of episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..environment_runtime.actions import ActionResult, run_calls
from ..environment_runtime.calls import EnvironmentCall, EnvironmentCaller
from ..environment_runtime.errors import describe_error
from ..protocol.parsed_turn import ParsedTurn
from ..protocol.tool_calls import ToolCallFormat, share_budget
from ..protocol.untrusted import encode_untrusted
from ..trajectory import StopReason, Trajectory, Turn
from .context import next_context
from .episode import _CHARACTERS_PER_TOKEN, Episode, decode, encode_text
from .external_memory import Note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from ..protocol.protocol import Mem1Protocol
    from .generation import TurnGenerator
    from .settings import AgentSettings
    from .stopping import Completion


# Tokens that the result of a tool call needs to be worth showing; calls that leave less are not run
_LEAST_RESULT = 16


class Rollout:
    """
    Runs episodes in lockstep: each turn generates for all that still run, then calls all their actions at once.

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
            Whether some process still plays, given whether this one does. For backends in which one call generates for all
            processes: a process whose episodes have ended then goes on taking part, with no contexts of its own.
        on_turn (`Callable[[int, list[Episode]], None]`, *optional*):
            Called after every turn with the number of turns done and the episodes that still run.
        tool_calls ([`ToolCallFormat`], *optional*):
            How the model calls tools, if the protocol is `Mem1Protocol.tool_calls()`. `None` asks the tokenizer's chat template.
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
        syntax=None,
        caller: EnvironmentCaller | None = None,
    ):
        self.syntax = syntax or protocol.syntax(tokenizer)
        self.tool_calls = self.syntax if isinstance(self.syntax, ToolCallFormat) else None
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.settings = settings
        self.generate = generate
        self.running_anywhere = running_anywhere
        self.on_turn = on_turn
        self.caller = caller or EnvironmentCaller()
        self._own_pieces: dict[str, list[int]] = {}

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
            contexts.append(self._context(episode))
            stops.append(self._stops(episode, turns_left == 0))
        completions = self._generate(running, contexts, stops)

        asked: list[tuple[Episode, ParsedTurn | None, list[Any]]] = []
        for episode, context, completion in zip(running, contexts, completions, strict=True):
            parsed = self._read(episode, context, completion, turns_left)
            calls = self._act(episode, parsed, completion)
            if calls:
                asked.append((episode, parsed, calls))
        outcomes = self._call([(episode, calls) for episode, _, calls in asked])
        for (episode, parsed, _), results in zip(asked, outcomes, strict=True):
            self._observe(episode, parsed, results, turns_left)

    def _call(self, asked: list[tuple[Episode, list[Any]]]) -> list[list[ActionResult]]:
        """Results of all calls: those of different episodes run at once, those of one in order, until its environment is done."""
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
        """What each running episode says next."""
        return self.generate(contexts, stops)

    def _context(self, episode: Episode) -> list[int]:
        room = self._history_room(episode)
        return next_context(self.settings.context, episode.prompt_ids, episode.history, room, episode.recalled)

    def _history_room(self, episode: Episode) -> int | None:
        """Tokens that the past may take in a context."""
        limit = self.settings.max_context_length
        return None if limit is None else limit - len(episode.prompt_ids)

    def _stops(self, episode: Episode, last_turn: bool) -> list[str]:
        if episode.actions is None:
            return []
        return self.protocol.stop_strings(list(episode.actions.tags), last_turn)

    def _read(
        self, episode: Episode, context: list[int], completion: Completion, turns_left: int
    ) -> ParsedTurn | None:
        """Record the turn and return what it said (`None` without an environment)."""
        text = decode(self.tokenizer, completion.ids)
        parsed = None
        if episode.actions is not None and self.tool_calls is not None:
            parsed = self.tool_calls.parse(completion.ids, text, episode.actions.schemas)
            episode.exchange.append(parsed.message or {})
        elif episode.actions is not None:
            parsed = self.protocol.parse(text, list(episode.actions.tags), last_turn=turns_left == 0)
        state_tokens = 0
        if parsed is not None and parsed.state_span is not None:
            begin, end = parsed.state_span
            state_tokens = len(encode_text(self.tokenizer, text[begin:end]))
        episode.turns.append(
            Turn(
                prompt_ids=tuple(context),
                completion_ids=completion.ids,
                logprobs=completion.logprobs,
                text=text,
                action=parsed.action if parsed else None,
                action_input=parsed.action_input if parsed else None,
                state=parsed.state if parsed else None,
                state_tokens=state_tokens,
                truncated_sampling=completion.truncated_sampling,
            )
        )
        return parsed

    def _act(self, episode: Episode, parsed: ParsedTurn | None, completion: Completion) -> list[Any]:
        """End the episode, or return the calls that the turn asks for (or their results, where there is nothing to call)."""
        if parsed is None or episode.actions is None:  # no environment: the text is the answer
            episode.answer = decode(self.tokenizer, completion.ids, skip_special_tokens=True)
            episode.stop_reason = StopReason.ANSWER if completion.ended else StopReason.TRUNCATED
            return []
        if not completion.ended and (parsed.action is None or self.tool_calls is not None):
            episode.stop_reason = StopReason.TRUNCATED
            return []
        if parsed.action is None:
            if self.protocol.on_invalid_action == "end":
                episode.stop_reason = StopReason.INVALID_ACTION
                return []
            problem = parsed.problem
            if problem is None:
                tags = [self.protocol.answer_tag]
                if self.protocol.action_syntax == "tags":
                    tags = [*episode.actions.tags, *tags]
                problem = f"no complete action. Use one of the tags {', '.join(tags)}."
            return [ActionResult(f"Error: {problem}", failed=True)]
        if parsed.calls:
            return self._tool_calls(episode, parsed)
        text = parsed.action_input or ""
        if parsed.action == self.protocol.answer_tag and self.protocol.action_syntax != "brackets":
            episode.answer = text
            episode.stop_reason = StopReason.ANSWER
            if episode.actions.answer_method is None:
                return []
            method = episode.actions.answer_method
        else:
            method = episode.actions.tags[parsed.action]
        try:
            arguments = episode.actions.arguments(method, text)
        except ValueError as error:
            return [ActionResult(f"Error: {error}", failed=True)]
        return [(getattr(episode.environment, method), arguments)]

    def _tool_calls(self, episode: Episode, parsed: ParsedTurn) -> list[Any]:
        """The native tool calls of a turn, as many as their results fit into an observation."""
        assert episode.actions is not None
        calls: list[Any] = []
        for call in parsed.calls[: self._most_results([call.name for call in parsed.calls])]:
            try:
                if call.name not in episode.actions.tags:
                    known = ", ".join(episode.actions.tags) or "none"
                    raise ValueError(f"there is no tool {call.name!r:.80}; there are {known}.")
                arguments = episode.actions.typed_arguments(call.name, call.arguments)
                calls.append((getattr(episode.environment, call.name), arguments))
            except ValueError as error:
                calls.append(ActionResult(f"Error: {error}", failed=True))
        return calls

    def _result_names(self, episode: Episode, parsed: ParsedTurn | None, results: Sequence[ActionResult]) -> list[str]:
        """Names of the tools that results are of; one of a turn without a call needs some name, too."""
        names = [call.name for call in parsed.calls] if parsed is not None else []
        return names[: len(results)] or [next(iter(episode.actions.tags if episode.actions else ()), "tool")]

    def _end_finished(self, episodes: list[Episode], results: list[ActionResult]) -> None:
        """End the episodes whose environment is done, or can be played in no more."""
        asked, calls = [], []
        for episode, result in zip(episodes, results):
            if result.fatal:
                episode.error = result.error
                episode.stop_reason = StopReason.ERROR
            elif isinstance(getattr(type(episode.environment), "done", None), property):
                # It runs code of the environment, which may raise or hang as an action may
                asked.append(episode)
                seat = self.caller.seat_of(episode.environment)
                calls.append(EnvironmentCall(seat, partial(_read_done, episode.environment)))
            elif episode.stop_reason is None and _is_done(episode.environment):
                episode.stop_reason = StopReason.DONE
        for episode, outcome in zip(asked, self.caller.run(calls, counted=False)):
            if outcome.error is not None:  # there is nothing to show to the agent
                episode.error = describe_error(outcome.error)
                episode.stop_reason = StopReason.ERROR
            elif episode.stop_reason is None and outcome.value:
                episode.stop_reason = StopReason.DONE

    def _observe(
        self, episode: Episode, parsed: ParsedTurn | None, results: list[ActionResult], turns_left: int
    ) -> None:
        """Append the observation and decide whether the episode goes on."""
        episode.failed_actions += sum(result.failed for result in results)
        names = self._result_names(episode, parsed, results)
        if self.tool_calls is not None:
            episode.exchange += [
                {"role": "tool", "name": name, "content": result.text} for name, result in zip(names, results)
            ]
        if episode.stop_reason is None and turns_left == 0:
            episode.stop_reason = StopReason.MAX_TURNS
        if episode.stop_reason is not None:
            return
        texts = [result.text for result in results]
        if parsed is not None and len(results) < len(parsed.calls):
            texts[-1] = f"[Only the first {len(results)} of {len(parsed.calls)} calls were run.]\n{texts[-1]}"
        assert episode.actions is not None
        pieces, bodies = self._encode_results(texts, names, turns_left, list(episode.actions.tags))
        before, body, after = self._join(pieces, bodies)
        observation_ids = [*before, *body, *after]
        turn = episode.turns[-1]
        episode.turns[-1] = dataclasses.replace(
            turn,
            observation=decode(self.tokenizer, observation_ids),
            observation_tokens=len(observation_ids),
        )
        episode.history.append([*self._carried(turn), *observation_ids])
        if self.tool_calls is not None:
            contents = [self.tool_calls.plain(decode(self.tokenizer, ids)) for ids in bodies]
            contents[0] = self.protocol.observation_frame(turns_left)[0] + contents[0]
            shown = [{"role": "tool", "name": name, "content": text} for name, text in zip(names, contents)]
            episode.shown.append([episode.exchange[-len(results) - 1], *shown])
        if self.settings.context == "external":
            self._recall(episode, turn.action_input or "", body, any(result.failed for result in results))
            if (
                self.tool_calls is not None and episode.recalled
            ):  # inside the result, since the agent's turn is open behind it
                episode.history[-1] = [*self._carried(turn), *before, *body, *episode.recalled, *after]
                episode.inside, episode.recalled = episode.recalled, []
        limit = self.settings.max_context_length
        if limit is not None and len(self._context(episode)) > limit:
            episode.stop_reason = StopReason.CONTEXT_OVERFLOW

    def _carried(self, turn: Turn) -> Sequence[int]:
        """What a completion leaves in the next context: its own ids, unless scratch is dropped from it."""
        text = self.protocol.drop_scratch(turn.text)
        return turn.completion_ids if text == turn.text else encode_text(self.tokenizer, text)

    def encode_observation(self, text: str, turns_left: int, action_tags: Sequence[str] = ()) -> list[int]:
        """
        Token ids of an observation within its budget. It is cut by tokens; tags, hint and what a chat template writes around
        it stay whole.

        Args:
            text (`str`):
                What the environment returned.
            turns_left (`int`):
                Turns that remain, for the hint.
            action_tags (`Sequence[str]`, *optional*):
                Tags to defuse besides the protocol's own; the names of the tools, with tool calls.
        """
        pieces, bodies = self._encode_results([text], [*action_tags, "tool"][:1], turns_left, action_tags)
        return [*pieces[0], *bodies[0], *pieces[1]]

    def _pieces(self, names: Sequence[str], turns_left: int) -> list[list[int]]:
        """Token ids of what stands around the results of one turn, one piece more than there are results."""
        before, after = self.protocol.observation_frame(turns_left)
        texts = [before, after]
        if self.tool_calls is not None:
            texts = list(self.tool_calls.frame(names))
            texts[0], texts[1] = texts[0] + before, after + texts[1]  # the hint stands once
        return [self._encode_own(text) for text in texts]

    def _most_results(self, names: Sequence[str]) -> int:
        """How many results of these tools fit into one observation: the first always does, others if there is room to speak."""
        least = len(self._encode_own(self.protocol.truncation_marker)) + _LEAST_RESULT
        for count in range(len(names), 1, -1):
            # Of all hints that of the first turn is about the longest
            frame = sum(map(len, self._pieces(names[:count], self.settings.max_turns)))
            if frame + count * least <= self.settings.max_observation_length:
                return count
        return 1

    def _encode_results(
        self, texts: Sequence[str], names: Sequence[str], turns_left: int, action_tags: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of what stands around the results of one turn, and of the results, all of them within the budget."""
        pieces = self._pieces(names, turns_left)
        marker = self._encode_own(self.protocol.truncation_marker)
        fixed = sum(map(len, pieces))
        room = self.settings.max_observation_length - fixed
        if room < len(marker) * len(texts):
            raise ValueError(
                f"max_observation_length={self.settings.max_observation_length} is less than the tags, hint and "
                f"truncation marker of an observation need ({fixed + len(marker)} tokens): raise it."
            )
        encoded = [self._encode_result(text, room, action_tags) for text in texts]
        budgets = share_budget(room, [len(ids) + len(marker) * cut for ids, cut in encoded])
        return pieces, [
            [*ids[: budget - len(marker)], *marker] if cut or len(ids) > budget else ids
            for (ids, cut), budget in zip(encoded, budgets, strict=True)
        ]

    @staticmethod
    def _join(pieces: list[list[int]], bodies: list[list[int]]) -> tuple[list[int], list[int], list[int]]:
        """What stands before the results of one turn, they with what stands between them, and what follows."""
        first, *between, last = pieces
        body = [token for ids, behind in zip(bodies, [*between, []], strict=True) for token in (*ids, *behind)]
        return first, body, last

    def _encode_result(self, text: str, room: int, action_tags: Sequence[str]) -> tuple[list[int], bool]:
        """Token ids of what the environment returned, and whether so much of it was cut that it need not be tokenized."""
        if self.settings.context == "external":  # what is shown now may be put back later
            action_tags = [*action_tags, self.protocol.memory_tag]
        ids: list[int] = []
        whole = False
        for characters in _CHARACTERS_PER_TOKEN:  # what does not fit need not be tokenized
            part = text[: room * characters]
            whole = len(part) == len(text)
            safe = self.protocol.defuse(part, action_tags) if self.tool_calls is None else self.tool_calls.defuse(part)
            ids = encode_untrusted(self.tokenizer, safe)
            if whole or len(ids) > room:
                break
        return ids, not whole

    def _encode_own(self, text: str) -> list[int]:
        """Token ids of a piece of the protocol, which stands in every observation: encoded once."""
        if text not in self._own_pieces:
            self._own_pieces[text] = encode_text(self.tokenizer, text)
        return self._own_pieces[text]

    def _recall(self, episode: Episode, query: str, body: list[int], failed: bool) -> None:
        """Look up what the next context gets back, then keep the newest observation, which stands in it anyway."""
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
            episode.recalled = [*before, *notes, *after]
            if room is None or len(episode.recalled) + len(episode.history[-1]) <= room:
                return
        episode.recalled = []


def _read_done(environment: Any) -> bool:
    return bool(environment.done)


def _is_done(environment: Any) -> bool:
    """The attribute `done` of an environment; a method of this name is an action."""
    try:
        done = getattr(environment, "done", False)
        return not callable(done) and bool(done)
    except Exception:  # an array, say
        return False
