"""The record of an episode: turns, each with a context and a completion, and one reward. It does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from .json_text import with_nan
from .typed_fields import check_fields

SUMMARY, UNFINISHED_SUMMARY = "summary", "unfinished_summary"
"""What a summary turn does to the context: its text takes the place of earlier turns; or it was cut, and nothing follows."""


class StopReason(StrEnum):
    """Why an episode ended."""

    ANSWER = "answer"
    """The agent closed its answer tag."""

    DONE = "done"
    """The environment set its `done` attribute."""

    MAX_TURNS = "max_turns"
    """The agent used all its turns without an answer."""

    INVALID_ACTION = "invalid_action"
    """A turn did not contain a complete action, and the protocol ends the episode in this case."""

    TRUNCATED = "truncated"
    """A turn reached `max_completion_length` before it closed an action."""

    CONTEXT_OVERFLOW = "context_overflow"
    """The next context would not have fit into the budget (only with an appended history)."""

    ERROR = "error"
    """
    The environment, or the server of the model, failed, so that the episode could not be started or continued; it is excluded
    from the update.
    """


@dataclass(frozen=True, slots=True)
class Turn:
    """
    One call of the model: the exact token ids it read and the exact token ids it sampled.

    A policy update is exact only if it scores `completion_ids` given `prompt_ids`, so both are stored unchanged and are never
    decoded and encoded again.

    Attributes:
        prompt_ids (`tuple[int, ...]`):
            Token ids of the whole context of this turn: the task prompt and the text that the context rule kept.
        completion_ids (`tuple[int, ...]`):
            Token ids as sampled, the token that closed the action (or the end-of-sequence token) included.
        logprobs (`tuple[float, ...]` or `None`):
            Log-probability in nats of each token of `completion_ids` under the sampler, or `None` if it did not return any.
        text (`str`):
            `completion_ids` decoded, for people and parsers.
        observation (`str` or `None`):
            Answer of the environment, as it was shown to the agent (hint and tags included, after truncation), but a result without the
            escapes of a chat template that writes it as JSON.
            `None` if the episode ended with this turn.
        observation_tokens (`int`):
            Number of tokens of the observation; 0 if there is none.
        action (`str` or `None`):
            Name of the tag of the turn's action, or `None` if the turn did not contain a complete action.
        action_input (`str` or `None`):
            Text inside that tag.
        state (`str` or `None`):
            Text of the internal state that the turn wrote, or `None` if it did not write one.
        state_tokens (`int`):
            Number of tokens of `completion_ids` that belong to the state, its tags included.
        state_begin (`int`):
            Number of tokens of `completion_ids` before the state.
        reward (`float` or `None`):
            Reward of this turn alone, which the reward of the episode includes, or `None` if nothing scored it. What `get_turn_reward`
            of the environment gave; after a trainer has scored it, the weighted sum of that and of what reward functions gave.
        truncated_sampling (`bool`):
            Whether the sampler could not draw every token with its probability under the policy: greedy decoding, top-k, top-p,
            min-p, a penalty. Then `logprobs` are those of the policy, not of the sampler.
        edited_state (`str` or `None`):
            Text that a person put in place of the state for the contexts after this turn; `None` if they hold what was sampled.
        context_action (`str` or `None`):
            What the turn did to the contexts after it, under its context rule: `"summary"` if it was asked for a summary, which takes the
            place of earlier turns (`"unfinished_summary"` if it was cut), or the name of an action of the rule, such as `"rewrite"`.
        replaced_turns (`tuple[int, ...]` or `None`):
            Indices of the turns that it has read and that its summary takes the place of; `None` if it wrote no summary, or nothing was
            to be read after it.
        saved_tokens (`int`):
            By how many tokens the contexts became shorter by that: the tokens of those turns minus those of this one. Negative if a
            summary is longer than what it replaces.
        messages (`tuple[dict, ...]` or `None`):
            What was sent, if it was chat messages that a server rendered with a template of its own; `prompt_ids` then say the
            same in the format of this tokenizer. `None` if `prompt_ids` themselves were read.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    text: str = ""
    observation: str | None = None
    observation_tokens: int = 0
    action: str | None = None
    action_input: str | None = None
    state: str | None = None
    state_tokens: int = 0
    truncated_sampling: bool = False
    messages: tuple[dict[str, Any], ...] | None = None
    edited_state: str | None = None
    state_begin: int = 0
    reward: float | None = None
    context_action: str | None = None
    replaced_turns: tuple[int, ...] | None = None
    saved_tokens: int = 0

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(
                "A turn needs at least one prompt token: the first completion token is predicted from it."
            )
        if not self.completion_ids:
            raise ValueError("A turn needs at least one completion token: drop turns in which nothing was sampled.")
        if self.logprobs is not None and len(self.logprobs) != len(self.completion_ids):
            raise ValueError(
                f"A turn has {len(self.completion_ids)} completion tokens but {len(self.logprobs)} log-probs: pass one "
                "per sampled token, or None."
            )

    @property
    def acts(self) -> bool:
        """Whether it was to act; a summary turn was not, and counts for none of `max_turns`."""
        return self.context_action not in (SUMMARY, UNFINISHED_SUMMARY)

    @property
    def acts_as_state(self) -> bool:
        """Whether its action belongs to its state, since that is what stays of the turns before it, as `rewrite(summary)` does."""
        end = self.state_begin + self.state_tokens
        return (
            self.acts and self.context_action is not None and self.state_tokens > 0 and end == len(self.completion_ids)
        )

    @property
    def kept_text(self) -> str:
        """What it wrote to remember: its state, and what its action says if that belongs to it."""
        said = self.action_input if self.acts_as_state else None
        return "\n".join(text for text in (self.state, said) if text)


@dataclass(slots=True)
class Trajectory:
    """
    An episode: its turns in order, and its result.

    Attributes:
        turns (`list[Turn]`):
            At least one turn, unless the episode could not be started (`stop_reason` `"error"`) or has just begun.
        reward (`float` or `None`):
            Reward of the whole episode, those of its turns included, or `None` while it is not scored.
        stop_reason ([`StopReason`] or `None`):
            Why the episode ended; `None` while it goes on.
        answer (`str` or `None`):
            Text inside the answer tag of the last turn, or `None` if the agent did not answer.
        metrics (`dict[str, float]`):
            Metrics of the episode, such as peak tokens; see [`mem1_trl.metrics`].
        error (`str` or `None`):
            Why the environment or the server of the model failed, if one did.
        task (`str` or `None`):
            Checksum of the row that was played, where [`~mem1_trl.demonstrations.collect_trajectories`] played it: the same for all samples of
            a row.
    """

    turns: list[Turn]
    reward: float | None = None
    stop_reason: StopReason | None = StopReason.ANSWER
    answer: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        if not self.turns and self.stop_reason not in (StopReason.ERROR, None):
            raise ValueError("A trajectory needs at least one turn.")

    def __repr__(self) -> str:
        """What it is at a glance; its tokens would fill pages."""
        ended = None if self.stop_reason is None else str(self.stop_reason)
        error = "" if self.error is None else f", error={self.error!r}"
        return f"Trajectory(turns=[{len(self.turns)}], reward={self.reward}, stop_reason={ended!r}, answer={self.answer!r}{error})"

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Token ids of the task prompt, which is the context of the first turn; empty if there was none."""
        return self.turns[0].prompt_ids if self.turns else ()

    @property
    def turn_rewards(self) -> list[float] | None:
        """The reward of each turn, 0 for one that nothing scored; `None` if nothing scored any."""
        if all(turn.reward is None for turn in self.turns):
            return None
        return [turn.reward or 0.0 for turn in self.turns]

    @property
    def num_generated_tokens(self) -> int:
        """Tokens the model sampled over all turns."""
        return sum(len(turn.completion_ids) for turn in self.turns)

    def to_dict(self) -> dict[str, Any]:
        """The trajectory as JSON-serializable lists, numbers and strings."""
        return {
            "turns": [
                {
                    "prompt_ids": list(turn.prompt_ids),
                    "completion_ids": list(turn.completion_ids),
                    "logprobs": None if turn.logprobs is None else list(turn.logprobs),
                    "text": turn.text,
                    "observation": turn.observation,
                    "observation_tokens": turn.observation_tokens,
                    "action": turn.action,
                    "action_input": turn.action_input,
                    "state": turn.state,
                    "state_tokens": turn.state_tokens,
                    "truncated_sampling": turn.truncated_sampling,
                    "messages": None if turn.messages is None else list(turn.messages),
                    "edited_state": turn.edited_state,
                    "state_begin": turn.state_begin,
                    "reward": turn.reward,
                    "context_action": turn.context_action,
                    "replaced_turns": None if turn.replaced_turns is None else list(turn.replaced_turns),
                    "saved_tokens": turn.saved_tokens,
                }
                for turn in self.turns
            ],
            "reward": self.reward,
            "stop_reason": None if self.stop_reason is None else str(self.stop_reason),
            "answer": self.answer,
            "metrics": dict(self.metrics),
            "error": self.error,
            **({} if self.task is None else {"task": self.task}),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Trajectory:
        """
        The trajectory from the result of [`~Trajectory.to_dict`].

        Raises:
            `ValueError`: If the record is not one of a trajectory; the message names the field.
        """
        if not isinstance(record, Mapping) or not isinstance(record.get("turns"), list):
            raise ValueError(f"The trajectory has no list of 'turns': {_ADVICE}")
        turns = [_read_turn(turn, f"Turn {number}") for number, turn in enumerate(record["turns"], start=1)]
        values = {"error": None, **record, "turns": turns}
        if isinstance(values.get("stop_reason"), str):
            values["stop_reason"] = StopReason(values["stop_reason"])
        missing = [name for name in ("reward", "stop_reason", "answer", "metrics") if name not in values]
        if missing:
            raise ValueError(f"The trajectory has no {missing[0]!r}: {_ADVICE}")
        known = {one.name for one in fields(cls)}  # a file may say more about an episode, such as its prompt
        values = {name: value for name, value in values.items() if name in known}
        values["metrics"] = with_nan(values["metrics"])
        check_fields(values, cls, "The trajectory", _ADVICE)
        return cls(**values)


_ADVICE = "it is not a record that mem1-trl wrote."


def _read_turn(record: Any, where: str) -> Turn:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is {record!r:.60}: {_ADVICE}")
    values = {**record, "logprobs": with_nan(record.get("logprobs"))}
    check_fields(values, Turn, where, _ADVICE)
    logprobs = values["logprobs"]
    return Turn(
        **{
            **values,
            "prompt_ids": tuple(values["prompt_ids"]),
            "completion_ids": tuple(values["completion_ids"]),
            "logprobs": None if logprobs is None else tuple(logprobs),
            "messages": None if values.get("messages") is None else tuple(values["messages"]),
            "replaced_turns": None if values.get("replaced_turns") is None else tuple(values["replaced_turns"]),
        }
    )
