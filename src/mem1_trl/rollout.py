"""Tasks, a generator and environments become trajectories: the turn loop, in lockstep over a batch of episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .actions import ActionResult, ActionSet, run_calls
from .context import CONTEXT_RULES, next_context
from .environment_calls import EnvironmentCall, EnvironmentCaller
from .external_memory import ExternalMemory, Note
from .faults import describe_error
from .trajectory import StopReason, Trajectory, Turn
from .untrusted import encode_untrusted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from .generation import Completion, TurnGenerator
    from .protocol import Mem1Protocol, ParsedTurn

# Characters of an observation that are tokenized for each token of room: what suffices for prose, and more if it did not
# No tokenizer packs more of prose into a token than the last
_CHARACTERS_PER_TOKEN = (8, 32, 128)


@dataclass(slots=True)
class Episode:
    """
    One running episode.

    Attributes:
        prompt_ids (`list[int]`):
            Token ids of the task prompt.
        environment (`Any` or `None`):
            Already reset. `None` for a task without environment: one turn, whose whole text is the answer. An episode that
            could not be started has a `stop_reason` from the beginning, and is not played.
        actions ([`ActionSet`] or `None`):
            The environment's actions.
        messages (`list[dict]` or `None`):
            The task prompt as chat messages. Only an endpoint that takes no token ids reads them.
        memory ([`ExternalMemory`]):
            Past observations; filled only with `context="external"`.
        recalled (`list[int]`):
            Token ids of what the memory puts into the next context.
        extended (`bool`):
            Whether the environment added to the task prompt, so that its length is not the data set's.
    """

    prompt_ids: list[int]
    environment: Any = None
    actions: ActionSet | None = None
    messages: list[dict[str, Any]] | None = None
    memory: ExternalMemory = field(default_factory=ExternalMemory)
    recalled: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    history: list[list[int]] = field(default_factory=list)
    stop_reason: StopReason | None = None
    answer: str | None = None
    failed_actions: int = 0
    error: str | None = None
    extended: bool = False


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """
    Budgets and rules of a rollout.

    Attributes:
        max_turns (`int`):
            Most turns of an episode.
        max_observation_length (`int`):
            Most tokens of one observation, tags and hint included.
        context (`str`):
            Rule of the next context: `"mem1"`, `"full"`, `"truncate"` or `"external"`.
        max_context_length (`int` or `None`):
            Most tokens of one context, its completion not counted. `None` sets no limit.
        memory_top_k (`int`):
            Most past observations that `"external"` puts back.
    """

    max_turns: int = 6
    max_observation_length: int = 1000
    context: str = "mem1"
    max_context_length: int | None = None
    memory_top_k: int = 3

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise ValueError(f"max_turns={self.max_turns} leaves no turn to act in: use 1 or more.")
        if self.max_observation_length < 1:
            raise ValueError(f"max_observation_length={self.max_observation_length} must be 1 token or more.")
        if self.context not in CONTEXT_RULES:
            raise ValueError(
                f"context={self.context!r} is not a rule: use one of {', '.join(map(repr, CONTEXT_RULES))}."
            )
        if self.memory_top_k < 1:
            raise ValueError(f"memory_top_k={self.memory_top_k} puts nothing back: use 1 or more, or context='mem1'.")
        if self.context == "truncate" and self.max_context_length is None:
            raise ValueError("context='truncate' needs a length to truncate to: set `max_context_length`.")

    def check_characters(self, observation: str | None) -> None:
        """Raise a `ValueError` if what `reset` returned cannot fit into the context, however it is tokenized."""
        limit = self.max_context_length
        if limit is not None and observation is not None and len(observation) > limit * _CHARACTERS_PER_TOKEN[-1]:
            raise ValueError(
                f"`reset` returned {len(observation)} characters, which cannot fit into a context of {limit} tokens."
            )

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Raise a `ValueError` if a task prompt leaves no room in the context."""
        limit = self.max_context_length
        if limit is not None and len(prompt_ids) > limit:
            raise ValueError(
                f"A task prompt has {len(prompt_ids)} tokens but max_context_length is {limit}, and the task prompt is "
                "never truncated: raise max_context_length or drop the row."
            )


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """Text of token ids."""
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)
    return text


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text that we wrote: tags are tags, special tokens special."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


class Rollout:
    """
    Runs episodes in lockstep: each turn generates for all that still run, then calls all their actions at once.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Encodes observations, decodes completions.
        protocol ([`Mem1Protocol`]):
            Tags, hints, templates.
        settings ([`RolloutSettings`]):
            Budgets and rules.
        generate ([`TurnGenerator`]):
            The backend.
        running_anywhere (`Callable[[bool], bool]`, *optional*):
            Whether some process still plays, given whether this one does. For backends in which one call generates for all
            processes: a process whose episodes have ended then goes on taking part, with no contexts of its own.
        on_turn (`Callable[[int, list[Episode]], None]`, *optional*):
            Called after every turn with the number of turns done and the episodes that still run.
        caller ([`EnvironmentCaller`], *optional*):
            Calls the environments, with its time limit and retries. `None` makes one with the default settings.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        protocol: Mem1Protocol,
        settings: RolloutSettings,
        generate: TurnGenerator,
        running_anywhere: Callable[[bool], bool] = bool,
        on_turn: Callable[[int, list[Episode]], None] | None = None,
        caller: EnvironmentCaller | None = None,
    ):
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

        calls, callers = [], []
        for episode, context, completion in zip(running, contexts, completions, strict=True):
            parsed = self._read(episode, context, completion, turns_left)
            call = self._act(episode, parsed, completion)
            if call is not None:
                callers.append((episode, parsed))
                calls.append(call)
        ready = [call for call in calls if not isinstance(call, ActionResult)]
        owners = [e.environment for (e, _), call in zip(callers, calls) if not isinstance(call, ActionResult)]
        outcomes = iter(run_calls(ready, self.caller, owners))
        results = [call if isinstance(call, ActionResult) else next(outcomes) for call in calls]
        self._end_finished([episode for episode, _ in callers], results)
        for (episode, parsed), result in zip(callers, results):
            self._observe(episode, parsed, result, turns_left)

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
        if episode.actions is not None:
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
            )
        )
        return parsed

    def _act(self, episode: Episode, parsed: ParsedTurn | None, completion: Completion) -> Any:
        """End the episode, or return the call that the turn asks for (or its result, if there is nothing to call)."""
        if parsed is None or episode.actions is None:  # no environment: the text is the answer
            episode.answer = decode(self.tokenizer, completion.ids, skip_special_tokens=True)
            episode.stop_reason = StopReason.ANSWER if completion.ended else StopReason.TRUNCATED
            return None
        if parsed.action is None:
            if not completion.ended:
                episode.stop_reason = StopReason.TRUNCATED
            elif self.protocol.on_invalid_action == "end":
                episode.stop_reason = StopReason.INVALID_ACTION
            else:
                tags = ", ".join((*episode.actions.tags, self.protocol.answer_tag))
                return ActionResult(f"Error: no complete action. Use one of the tags {tags}.", failed=True)
            return None
        text = parsed.action_input or ""
        if parsed.action == self.protocol.answer_tag:
            episode.answer = text
            episode.stop_reason = StopReason.ANSWER
            if episode.actions.answer_method is None:
                return None
            method = episode.actions.answer_method
        else:
            method = episode.actions.tags[parsed.action]
        try:
            arguments = episode.actions.arguments(method, text)
        except ValueError as error:
            return ActionResult(f"Error: {error}", failed=True)
        return getattr(episode.environment, method), arguments

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
                calls.append(EnvironmentCall(seat, lambda environment=episode.environment: bool(environment.done)))
            elif episode.stop_reason is None and _is_done(episode.environment):
                episode.stop_reason = StopReason.DONE
        for episode, outcome in zip(asked, self.caller.run(calls, counted=False)):
            if outcome.error is not None:  # there is nothing to show to the agent
                episode.error = describe_error(outcome.error)
                episode.stop_reason = StopReason.ERROR
            elif episode.stop_reason is None and outcome.value:
                episode.stop_reason = StopReason.DONE

    def _observe(self, episode: Episode, parsed: ParsedTurn | None, result: ActionResult, turns_left: int) -> None:
        """Append the observation and decide whether the episode goes on."""
        episode.failed_actions += result.failed
        if episode.stop_reason is None and turns_left == 0:
            episode.stop_reason = StopReason.MAX_TURNS
        if episode.stop_reason is not None:
            return
        observation_ids = self.encode_observation(result.text, turns_left, list(episode.actions.tags))  # type: ignore[union-attr]
        turn = episode.turns[-1]
        episode.turns[-1] = dataclasses.replace(
            turn,
            observation=decode(self.tokenizer, observation_ids),
            observation_tokens=len(observation_ids),
        )
        episode.history.append([*self._carried(turn), *observation_ids])
        if self.settings.context == "external":
            self._recall(episode, turn.action_input or "", result, turns_left)
        limit = self.settings.max_context_length
        if limit is not None and len(self._context(episode)) > limit:
            episode.stop_reason = StopReason.CONTEXT_OVERFLOW

    def _carried(self, turn: Turn) -> Sequence[int]:
        """What a completion leaves in the next context: its own ids, unless scratch is dropped from it."""
        text = self.protocol.drop_scratch(turn.text)
        return turn.completion_ids if text == turn.text else encode_text(self.tokenizer, text)

    def encode_observation(self, text: str, turns_left: int, action_tags: Sequence[str] = ()) -> list[int]:
        """
        Token ids of an observation within its budget. It is cut by tokens; tags and hint stay whole.

        Args:
            text (`str`):
                What the environment returned.
            turns_left (`int`):
                Turns that remain, for the hint.
            action_tags (`Sequence[str]`, *optional*):
                Tags to defuse besides the protocol's own.
        """
        before, body, after = self._encode_parts(text, turns_left, action_tags)
        return [*before, *body, *after]

    def _encode_parts(
        self, text: str, turns_left: int, action_tags: Sequence[str]
    ) -> tuple[list[int], list[int], list[int]]:
        before, after = self.protocol.observation_frame(turns_left)
        frame = self._encode_own(before), self._encode_own(after)
        marker = self._encode_own(self.protocol.truncation_marker)
        room = self.settings.max_observation_length - len(frame[0]) - len(frame[1])
        if room < len(marker):
            raise ValueError(
                f"max_observation_length={self.settings.max_observation_length} is less than the tags, hint and "
                f"truncation marker of an observation need ({len(frame[0]) + len(frame[1]) + len(marker)} tokens): "
                "raise it."
            )
        ids: list[int] = []
        whole = False
        for characters in _CHARACTERS_PER_TOKEN:  # what does not fit need not be tokenized
            part = text[: room * characters]
            whole = len(part) == len(text)
            ids = encode_untrusted(self.tokenizer, self.protocol.defuse(part, action_tags))
            if whole or len(ids) > room:
                break
        if len(ids) > room or not whole:
            ids = [*ids[: room - len(marker)], *marker]
        return frame[0], ids, frame[1]

    def _encode_own(self, text: str) -> list[int]:
        """Token ids of a piece of the protocol, which stands in every observation: encoded once."""
        if text not in self._own_pieces:
            self._own_pieces[text] = encode_text(self.tokenizer, text)
        return self._own_pieces[text]

    def _recall(self, episode: Episode, query: str, result: ActionResult, turns_left: int) -> None:
        """Look up what the next context gets back, then keep the newest observation, which stands in it anyway."""
        assert episode.actions is not None
        _, body, _ = self._encode_parts(result.text, turns_left, [*episode.actions.tags, self.protocol.memory_tag])
        newest = Note(query, decode(self.tokenizer, body), tuple(body))
        task = decode(self.tokenizer, episode.prompt_ids, skip_special_tokens=True)
        top_k = self.settings.memory_top_k
        found = [note for note in episode.memory.recall(f"{task}\n{query}", top_k + 1) if note.text != newest.text]
        if not result.failed:
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


def _is_done(environment: Any) -> bool:
    """The attribute `done` of an environment; a method of this name is an action."""
    try:
        done = getattr(environment, "done", False)
        return not callable(done) and bool(done)
    except Exception:  # an array, say
        return False
