"""What a person does to an episode between two turns: write a message, or another state. And what is done again after a restart."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING

from ..trajectory import StopReason
from .episode import Episode
from .stopping import Completion
from .turn_loop import Rollout

if TYPE_CHECKING:
    from .endpoint import ChatRollout

_MAY_GO_ON = (StopReason.ANSWER, StopReason.MAX_TURNS, StopReason.INVALID_ACTION, StopReason.TRUNCATED)


def add_message(rollout: Rollout | ChatRollout, episode: Episode, text: str) -> None:
    """
    Let an episode that has ended go on with a message of a person, which the agent reads as the result of its last turn.

    Args:
        rollout ([`Rollout`]):
            Plays the episode.
        episode ([`Episode`]):
            It gets `max_turns` turns more.
        text (`str`):
            The message; it is escaped and cut as every observation.

    Raises:
        `TypeError`: If it is not a text.
        `RuntimeError`: If the episode has not ended, or not in a way after which it can go on.
        `ValueError`: If the message leaves no room in the context.
    """
    if not isinstance(text, str):
        raise TypeError(f"A message must be a text, got a {type(text).__name__}.")
    if episode.stop_reason is None:
        raise RuntimeError(
            "A message follows an answer, and this episode has not ended: play it on with `step()` or `run()` first."
        )
    if episode.stop_reason not in _MAY_GO_ON or not episode.turns:
        raise RuntimeError(f"The episode ended by {episode.stop_reason.value!r} and cannot go on: start another.")
    before = dataclasses.replace(
        episode,
        turns=list(episode.turns),
        history=list(episode.history),
        rounds=list(episode.rounds),
        tails=list(episode.tails),
        memory=dataclasses.replace(episode.memory),
    )
    turns_left = episode.most_turns(rollout.settings.max_turns)
    tags = list(episode.actions.tags) if episode.actions is not None else []
    cut = episode.stop_reason is StopReason.TRUNCATED
    observation = rollout.observations.encode_message(text, turns_left, tags, cut)
    episode.stop_reason = episode.answer = None
    episode.rounds.append(len(episode.turns))
    rollout.show(episode, observation)
    if episode.stop_reason is not None:
        for one in ("turns", "history", "rounds", "tails", "memory", "recalled", "stop_reason", "answer"):
            setattr(episode, one, getattr(before, one))
        raise ValueError(
            f"The context with the message must have at most {rollout.settings.max_context_length} tokens: lower "
            "`max_observation_length`, raise `max_context_length`, or write less."
        )
    episode.record.add_message(text, observation.results[0], turns_left)


def edit_state(rollout: Rollout, episode: Episode, state: str) -> None:
    """
    Put another text in place of the state that the last turn wrote, for the contexts that follow.

    What the turn sampled stays recorded as it is; `edited_state` says what replaced it.

    Args:
        rollout ([`Rollout`]):
            Plays the episode.
        episode ([`Episode`]):
            An episode with a turn.
        state (`str`):
            The new state.

    Raises:
        `ValueError`: If the next context would be too long.
    """
    old = episode.turns[-1]
    new = episode.turns[-1] = dataclasses.replace(old, edited_state=state)
    if len(episode.history) < len(episode.turns):
        return  # the turn has no observation yet, and enters the history with it
    before = episode.history[-1]
    episode.history[-1] = [*rollout.carried(new), *before[len(rollout.carried(old)) :]]
    if rollout.contexts.overflows(episode):
        episode.turns[-1], episode.history[-1] = old, before
        raise ValueError(
            f"The context with this memory must have at most {rollout.settings.max_context_length} tokens: write a shorter one."
        )


def forgettable_turns(rollout: Rollout, episode: Episode) -> int:
    """How many turns, oldest first, no later context can hold: all but the last where only that is carried."""
    return max(len(episode.turns) - 1, 0) if rollout.contexts.rule.last_turn_only else 0


def repeat_actions(rollout: Rollout, episode: Episode) -> None:
    """
    Bring a fresh environment to where that of a saved episode was: its actions are called again, in their order.

    Args:
        rollout ([`Rollout`]):
            Calls the environment. Its model is not asked.
        episode ([`Episode`]):
            Saved and read again; its environment was reset.

    Raises:
        `RuntimeError`: If an action has another result than it had, or the environment fails.
    """
    given: list[Completion] = []

    @cache
    def with_budget(max_turns: int) -> Rollout:
        return Rollout(
            rollout.tokenizer,
            rollout.protocol,
            dataclasses.replace(rollout.settings, max_turns=max_turns),
            lambda prompts, stops: given,
            syntax=rollout.syntax,
            caller=rollout.caller,
        )

    most = rollout.settings.max_turns
    copy = Episode(
        episode.prompt_ids,
        episode.environment,
        episode.actions,
        episode.prompt,
        max_turns=episode.max_turns,
        forgotten_turns=episode.forgotten_turns,
    )
    with_budget(most).begin([copy])
    for number, turn in enumerate(episode.turns, 1):
        whole = rollout.protocol.action_syntax != "tool_calls" or _has_ended(rollout, episode, number)
        given[:] = [
            Completion(turn.completion_ids, turn.logprobs, whole, prompt_ids=turn.prompt_ids, messages=turn.messages)
        ]
        with_budget(episode.budget_of(number, most)).play_turn([copy])
        same = number in episode.rounds or copy.turns[-1].observation == turn.observation
        if copy.error is not None or not same:
            reason = copy.error or f"it was {turn.observation!r:.200} and is now {copy.turns[-1].observation!r:.200}"
            raise RuntimeError(
                f"The actions of the saved episode cannot be repeated in this environment, turn {number} differs: {reason}. Give the "
                "environment a property `mem1_state`, or bring it to its state yourself and pass `repeat=False`."
            )
        copy.history, copy.tails = episode.history[:number], episode.tails[:number]
        copy.rounds = [one for one in episode.rounds if one <= number]
        if number < len(episode.turns):
            copy.stop_reason = None


def _has_ended(rollout: Rollout, episode: Episode, number: int) -> bool:
    """Whether a turn of an episode ended by itself, at whichever end token of its model, and was not cut."""
    if number in episode.rounds:  # a message let the episode go on, which it may after a turn that was cut
        ends = [rollout.tokenizer.eos_token_id, *rollout.tokenizer.all_special_ids]
        return episode.turns[number - 1].completion_ids[-1] in ends
    return number < len(episode.turns) or episode.stop_reason is not StopReason.TRUNCATED
