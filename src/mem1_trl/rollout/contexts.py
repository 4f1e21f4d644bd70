"""What the context rule of a rollout means for an episode: its next context, its own actions, and what a summary has replaced."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING

from ..context_rules.rule import SUMMARY_REQUEST, NextTurn, Past
from ..environment_runtime.actions import ActionResult
from ..environment_runtime.errors import error_text
from ..environment_runtime.shown_text import shown_text
from ..protocol.encoding import decode
from ..protocol.untrusted import encode_untrusted
from ..trajectory import SUMMARY
from .external_memory import Note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..environment_runtime.actions import ActionSet
    from ..protocol.parsed_turn import ActionRequest
    from ..protocol.syntax import ActionSyntax
    from .episode import Episode
    from .settings import AgentSettings


class ContextBuilder:
    """
    Makes contexts of episodes by their rule.

    Args:
        syntax ([`~mem1_trl.protocol.syntax.ActionSyntax`]):
            Writes requests and notes.
        settings ([`AgentSettings`]):
            Gives the rule and the budgets.
    """

    def __init__(self, syntax: ActionSyntax, settings: AgentSettings):
        self.syntax = syntax
        self.settings = settings
        self.rule = settings.rule
        for name in self.rule.actions:
            method = getattr(self.rule, name, None)
            if not callable(method) or inspect.iscoroutinefunction(method):
                what = "is an asynchronous one" if callable(method) else "has none of this name"
                raise TypeError(
                    f"{type(self.rule).__name__}.actions must name methods of the rule that are called without `await`, got {name!r}: it {what}."
                )
        self._extended: dict[int, tuple[ActionSet, ActionSet]] = {}

    def past(self, episode: Episode, count: int | None = None) -> Past:
        """The past of an episode, or its first `count` turns."""
        lengths = [len(tokens) for tokens in episode.history[:count]]
        return Past(
            episode.prompt_ids, lengths, tuple(episode.turns[: len(lengths)]), self.settings.max_context_length
        )

    def next(self, episode: Episode, count: int | None = None) -> NextTurn:
        """
        What the rule says about the next turn, or about the one after `count` turns.

        Raises:
            `TypeError`: If the rule returns something else than a [`NextTurn`].
            `ValueError`: If the rule names turns that there are not, or others than the last one although it says that it keeps no others, or asks for a summary of nothing, or for two in a row.
        """
        past = self.past(episode, count)
        step, name = self.rule.next(past), type(self.rule).__name__
        if not isinstance(step, NextTurn):
            raise TypeError(f"{name}.next must return a NextTurn, got a {type(step).__name__}.")
        kept = list(step.kept)
        if kept and not len(past):
            raise ValueError(
                f"{name}.next must keep no turn before the first one, of which there is none yet, got {kept}."
            )
        if kept != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < len(past)):
            raise ValueError(
                f"{name}.next must keep turns by their indices, ascending and from 0 to {len(past) - 1}, got {kept}."
            )
        if self.rule.last_turn_only and kept and kept != [len(past) - 1]:
            raise ValueError(
                f"{name}.next must keep the last turn alone, {len(past) - 1}, since {name}.last_turn_only is True, got {kept}."
            )
        if step.summary and not (self.rule.asks and kept and past.turns[-1].context_action != SUMMARY):
            raise ValueError(
                f"{name}.next asked for a summary, which needs `asks = True`, a turn that is kept, and an action since the last summary."
            )
        return dataclasses.replace(step, kept=tuple(kept))  # an iterator would be used up

    def context(self, episode: Episode, step: NextTurn) -> list[int]:
        """Token ids of the context of a turn."""
        recalled = episode.recalled if self.rule.recalls else ()
        if not self.syntax.adds_inside:
            return self._asked(episode, step, joined(episode.prompt_ids, episode.history, step.kept, recalled))
        return self._asked(episode, step, joined(episode.prompt_ids, episode.history, step.kept), recalled)

    def overflows(self, episode: Episode) -> bool:
        """Whether the next context of an episode is too long."""
        limit = self.settings.max_context_length
        return limit is not None and len(self.context(episode, self.next(episode))) > limit

    def appended(self, episode: Episode, count: int) -> list[int]:
        """
        Token ids of the context of the turn after `count` turns had the rule kept all of them, as `"full"` does.

        A summary turn reads its request there, too; what an external memory put beside the turns is left out.

        Raises:
            `ValueError`: If the history of the episode is not known, since a program of its own played it.
        """
        if len(episode.history) < count:
            raise ValueError(
                f"The history of an episode must be known to append it, got {len(episode.history)} of {count} turns: where a program "
                "owns its loop (`GatewayEnvironment`), use teacher_context='same'."
            )
        step = dataclasses.replace(self.next(episode, count), kept=range(count))
        return self._asked(episode, step, joined(episode.prompt_ids, episode.history, step.kept))

    def _asked(self, episode: Episode, step: NextTurn, context: list[int], inside: Sequence[int] = ()) -> list[int]:
        """A context with notes `inside` its last result, and the request of a summary turn, in their places."""
        if not step.kept:
            return context
        in_result = not episode.reads_message(step.kept[-1])
        added = [*inside, *(self.syntax.encode_request(step.request, in_result) if step.summary else ())]
        if added:
            place = len(context) - (episode.tails[step.kept[-1]] if self.syntax.adds_inside else 0)
            context[place:place] = added
        return context

    def bound(self, prompt: int) -> int | None:
        """Tokens that a context needs at most after a task prompt of so many, within `max_context_length`; `None` if nobody knows."""
        settings = self.settings
        assert settings.max_context_length is not None
        lengths = settings.max_completion_length, settings.max_observation_length, settings.max_context_length
        bound = self.rule.bound(prompt, *lengths)
        if bound is None or not self.rule.asks:
            return bound
        return bound + max(len(self.syntax.encode_request(SUMMARY_REQUEST, inside)) for inside in (True, False))

    @property
    def bound_beyond_a_turn(self) -> str:
        """What else is in the longest context, for a message."""
        return ", and the turns and the request before a summary" if self.rule.asks else ""

    # Actions of the rule

    def actions(self, actions: ActionSet) -> ActionSet:
        """The actions of an environment and those of the rule."""
        if not self.rule.actions:
            return actions
        if id(actions) not in self._extended:
            own = {name: getattr(self.rule, name) for name in self.rule.actions}
            self._extended[id(actions)] = actions, actions.extended(own)
        return self._extended[id(actions)][1]

    def act(self, episode: Episode, request: ActionRequest) -> ActionResult:
        """Take an action of the rule, which the last turn of an episode asks for."""
        turn, action = episode.turns[-1], request.method
        assert action is not None
        problem = self.rule.refusal(action, self.past(episode, len(episode.turns) - 1))
        if turn.context_action is not None:
            problem = f"{turn.context_action} was called in this turn already: call one of {', '.join(self.rule.actions)} in a turn."
        if problem is not None:
            return ActionResult(f"Error: {problem}", failed=True)
        try:
            text = shown_text(getattr(self.rule, action)(**request.arguments))
        except Exception as error:  # as of an environment: the agent reads it
            return ActionResult(f"Error: {error_text(error)}", failed=True)
        turn = dataclasses.replace(turn, context_action=action)
        if action in self.rule.summaries:  # what stays of the past is the action itself
            begin = turn.state_begin if turn.state_tokens else 0
            turn = dataclasses.replace(turn, state_begin=begin, state_tokens=len(turn.completion_ids) - begin)
        episode.turns[-1] = turn
        return ActionResult(text)

    def measure(self, episode: Episode) -> None:
        """Note in the last turn of an episode, whose observation has just been added, which turns its summary replaces, if it is one."""
        turn, number = episode.turns[-1], len(episode.turns) - 1
        if turn.context_action != SUMMARY and turn.context_action not in self.rule.summaries:
            return
        after = set(self.next(episode).kept)
        replaced = tuple(index for index in self.next(episode, number).kept if index not in after)
        saved = sum(len(episode.history[index]) for index in replaced) - len(episode.history[number])
        episode.turns[-1] = dataclasses.replace(turn, replaced_turns=replaced, saved_tokens=saved)

    # External memory

    def recall(
        self, episode: Episode, query: str, results: Sequence[Sequence[int]], failed: Sequence[bool] = ()
    ) -> list[int]:
        """Token ids of the notes that go into the next context. Then add the newest results that did not fail, which are in that context anyway."""
        tokenizer = self.syntax.tokenizer
        in_result = not episode.reads_message(len(episode.turns) - 1)
        newline = self.syntax.encode_added("\n", in_result)
        # One below the other, since what a chat template writes between them would end the result that notes are in
        sound = [ids for number, ids in enumerate(results) if not (failed and failed[number])]
        body = [token for number, ids in enumerate(sound) for token in (*(newline if number else ()), *ids)]
        text = decode(tokenizer, body)
        newest = Note(query, self.syntax.read_result(text) if in_result else text, tuple(body))
        task = decode(tokenizer, episode.prompt_ids, skip_special_tokens=True)
        top_k = self.settings.memory_top_k
        past = self.past(episode)
        stays = self.next(episode).kept
        read = decode(tokenizer, [token for index in stays for token in episode.history[index]])
        matching = episode.memory.recall(f"{task}\n{query}", top_k + len(stays))
        found = [note for note in matching if not any(form in read for form in (note.text, self._written(note, True)))]
        if sound:
            episode.memory.add(newest)
        before, after = (self.syntax.encode_added(part, in_result) for part in self.syntax.protocol.memory_frame())
        kept = past.tokens(stays)
        for count in range(min(top_k, len(found)), 0, -1):  # whole notes only, the best ones if not all fit
            notes = [token for note in found[:count] for token in (*self._note_ids(note, in_result), *newline)]
            recalled = [*before, *notes, *after]
            if past.max_length is None or len(recalled) + kept <= past.max_length:
                return recalled
        return []

    def _written(self, note: Note, in_result: bool) -> str:
        """A note as it stands inside a result, or inside a message of a person."""
        return self.syntax.write_result(note.text) if in_result else note.text

    def _note_ids(self, note: Note, in_result: bool) -> Sequence[int]:
        """Token ids of a note for another result or message than the one it was made of: those that it had, unless it is written differently there."""
        text, tokenizer = self._written(note, in_result), self.syntax.tokenizer
        return note.ids if decode(tokenizer, note.ids) == text else encode_untrusted(tokenizer, text)


def joined(
    prompt_ids: Sequence[int], history: Sequence[Sequence[int]], kept: Sequence[int], recalled: Sequence[int] = ()
) -> list[int]:
    """The task prompt, the notes of an external memory, and the turns that are kept."""
    context = [*prompt_ids, *recalled]
    for index in kept:
        context.extend(history[index])
    return context
