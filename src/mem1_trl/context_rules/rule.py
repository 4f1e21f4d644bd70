"""The interface of context rules. A rule is a function of the turns so far, so an episode that is saved and loaded goes on the same."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..trajectory import SUMMARY

if TYPE_CHECKING:
    from ..trajectory import Turn

SUMMARY_REQUEST = (
    "All of the above will be removed. Write now, between <{state}> and </{state}>, one summary of all that you have found out and of "
    "what is left to do: it will take its place. Do not act yet."
)
"""What an agent reads before a summary turn, with the tag of its state."""

SUMMARY_REPLY = "The summary has taken the place of everything before it. Go on."
"""What an agent reads after its summary."""


@dataclass(frozen=True, slots=True)
class Past:
    """
    What a rule decides from.

    Attributes:
        prompt_ids (`Sequence[int]`):
            Token ids of the task prompt, which every context begins with.
        lengths (`Sequence[int]`):
            Tokens that each turn adds to a context: its completion, as it stays there, and its observation.
        turns (`Sequence[Turn]`):
            The turns, oldest first, with their texts, actions and observations.
        max_length (`int` or `None`):
            Maximum number of tokens of a context (`max_context_length`), the completion not counted; `None` if there is no limit.
    """

    prompt_ids: Sequence[int]
    lengths: Sequence[int]
    turns: Sequence[Turn] = ()
    max_length: int | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, kept: Sequence[int]) -> int:
        """Tokens of a context with these turns."""
        return len(self.prompt_ids) + sum(self.lengths[index] for index in kept)

    @property
    def room(self) -> int | None:
        """Tokens that turns may take in a context; `None` if there is no limit."""
        return None if self.max_length is None else self.max_length - len(self.prompt_ids)

    def done(self, action: str = SUMMARY) -> list[int]:
        """Indices of the turns that did this to the context: wrote a summary (`"summary"`), or took that action of the rule."""
        return [index for index, turn in enumerate(self.turns) if turn.context_action == action]


@dataclass(frozen=True, slots=True)
class NextTurn:
    """
    What the next turn reads, and what it is.

    Attributes:
        kept (`Sequence[int]`):
            Indices of the turns that the next context holds after the task prompt, ascending.
        summary (`bool`):
            Whether the next completion is a summary instead of an action.
        request (`str`):
            With `summary`, what the agent reads at the end of this one context, with `{state}` for the tag of its state.
    """

    kept: Sequence[int]
    summary: bool = False
    request: str = SUMMARY_REQUEST


class ContextRule(ABC):
    """
    Decides what the next turn reads. Subclass it for a rule of your own:

    ```python
    class FirstAndLast(ContextRule):
        def next(self, past):
            return NextTurn(sorted({0, len(past) - 1}) if len(past) else [])
    ```

    A rule has no state but its parameters: the same past gives the same answer, in training, in [`Mem1Agent`] and after an episode was
    loaded from a file. One with parameters is a frozen dataclass whose fields JSON can hold. It is saved with a model by its name and
    its parameters, and run as it will be loaded (a tuple is a list); a class of yours by its import path, so define it at the top level of a
    module.

    Attributes:
        actions (`tuple[str, ...]`):
            Names of its own methods that the agent may call as actions, beside those of the environment. Each takes what the agent
            writes, has type hints and a docstring, as an action of an environment, and returns the text that the agent reads.
        summaries (`tuple[str, ...]`):
            Those of `actions` whose turn takes the place of earlier ones, which are measured as summaries.
        asks (`bool`):
            Whether it may ask for a summary turn (`NextTurn.summary`).
        recalls (`bool`):
            Whether past observations that match the last action (BM25, at most `memory_top_k`) are put before the last turn, or with
            tool calls into its result.
        last_turn_only (`bool`):
            Whether a context never holds another turn than the last, so that the older ones need not be kept.
    """

    actions: ClassVar[tuple[str, ...]] = ()
    summaries: ClassVar[tuple[str, ...]] = ()
    asks: ClassVar[bool] = False
    recalls: ClassVar[bool] = False
    last_turn_only: ClassVar[bool] = False

    @abstractmethod
    def next(self, past: Past) -> NextTurn:
        """
        What the next turn reads, and whether it is a summary.

        Two summaries in a row, and a summary of no turn, are errors. Of `max_turns`, a summary turn counts for none.

        Args:
            past ([`Past`]):
                The task prompt, the turns so far, and the budget.
        """

    def refusal(self, action: str, past: Past) -> str | None:
        """
        Why one of `actions` cannot be taken now, phrased for the agent; `None` if it can.

        Args:
            action (`str`):
                Its name.
            past ([`Past`]):
                The past before the turn that asks for it.
        """
        return None

    def check(self, max_context_length: int | None) -> None:  # noqa: B027  # most rules need nothing
        """Raise a `ValueError` if the rule cannot work with this limit of a context, which is `None` if none was set."""

    def bound(self, prompt: int, completion: int, observation: int, max_context_length: int) -> int | None:
        """
        Tokens that a context needs at most; `None` if nothing is promised.

        A trainer refuses budgets that do not fit, before it plays.

        Args:
            prompt, completion, observation, max_context_length (`int`):
                Maximum lengths in tokens.
        """
        return None

    @property
    def memory(self) -> str:
        """Where its agents remember: in the `"state"` that the last turn wrote, or in a `"context"` that holds more than that turn."""
        return "state" if self.last_turn_only and not self.recalls else "context"

    @property
    def measured(self) -> bool:
        """Whether its trajectories have metrics of summaries."""
        return self.asks or bool(self.summaries)

    @property
    def parameters(self) -> dict[str, Any]:
        """What the rule is made with, by name, where it is not the default."""
        if not dataclasses.is_dataclass(self):
            return {}
        values = {one.name: (getattr(self, one.name), one.default) for one in dataclasses.fields(self) if one.init}
        return {name: value for name, (value, default) in values.items() if value != default}
