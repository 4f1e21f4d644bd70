"""One running episode, and the settings it is played with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..environment_runtime.actions import ActionSet
from ..trajectory import StopReason, Turn
from .context import CONTEXT_RULES
from .external_memory import ExternalMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..protocol.syntax import EpisodeRecord


# Characters of an observation that are tokenized for each token of room: enough for prose first, and more if it was not
# The last value exceeds what any tokenizer fits into one token of prose
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
            Token ids that the memory puts into the next context.
        record ([`~mem1_trl.protocol.syntax.EpisodeRecord`]):
            Record of the action syntax about the episode. Set by [`Rollout.run`].
        extended (`bool`):
            Whether the environment added to the task prompt, so that its length is not the data set's.
    """

    prompt_ids: list[int]
    environment: Any = None
    actions: ActionSet | None = None
    messages: list[dict[str, Any]] | None = None
    memory: ExternalMemory = field(default_factory=ExternalMemory)
    recalled: list[int] = field(default_factory=list)
    record: EpisodeRecord = field(init=False, repr=False, compare=False)
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
