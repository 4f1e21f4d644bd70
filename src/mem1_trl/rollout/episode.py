"""One running episode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..environment_runtime.actions import ActionSet
from ..trajectory import StopReason, Turn
from .external_memory import ExternalMemory

if TYPE_CHECKING:
    from ..protocol.syntax import EpisodeRecord
    from .turn_listener import TurnListener


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
        memory ([`ExternalMemory`]):
            Past observations; filled only with `context="external"`.
        recalled (`list[int]`):
            Token ids that the memory puts into the next context, and into no later one.
        record ([`~mem1_trl.protocol.syntax.EpisodeRecord`]):
            Record of the action syntax about the episode. Set by [`Rollout.run`].
        prompt (`str` or `list[dict]`):
            The rendered task prompt: a text, or chat messages.
        began (`float` or `None`):
            When it began, in seconds since the epoch: a chat template may write the date.
        max_turns (`int` or `None`):
            Most turns of this task, if it may take fewer than the settings say.
        rounds (`list[int]`):
            Numbers of turns after which a message of a person let the episode go on; each gives `max_turns` turns more.
        forgotten_turns (`int`):
            Turns that acted before the first of `turns`, and count for the same message: of an episode that was kept without its past.
        budgets (`list[tuple[int, int]]`):
            Where the settings had another `max_turns` before: the number of turns until then, and what it was.
        tails (`list[int]`):
            For each entry of `history`, how many tokens at its end frame its observation; a request to summarize goes before them with
            tool calls, where the agent's own turn is open after them.
        seed (`int` or `None`):
            Seed of what it samples, see [`uniform_draws`]. `None` if the backend draws from a generator that all episodes share.
        listener ([`TurnListener`] or `None`):
            Is told the text of the present turn while it is generated.
    """

    prompt_ids: list[int]
    environment: Any = None
    actions: ActionSet | None = None
    prompt: str | list[dict[str, Any]] = ""
    began: float | None = field(default=None, compare=False)
    memory: ExternalMemory = field(default_factory=ExternalMemory)
    recalled: list[int] = field(default_factory=list)
    record: EpisodeRecord = field(init=False, repr=False, compare=False)
    turns: list[Turn] = field(default_factory=list)
    history: list[list[int]] = field(default_factory=list)
    stop_reason: StopReason | None = None
    answer: str | None = None
    failed_actions: int = 0
    error: str | None = None
    seed: int | None = None
    max_turns: int | None = None
    rounds: list[int] = field(default_factory=list)
    forgotten_turns: int = 0
    budgets: list[tuple[int, int]] = field(default_factory=list)
    tails: list[int] = field(default_factory=list)
    listener: TurnListener | None = field(default=None, repr=False, compare=False)

    def most_turns(self, max_turns: int) -> int:
        """Turns that a message allows it: those of the settings, or fewer if its task has a limit of its own."""
        return max_turns if self.max_turns is None else min(max_turns, self.max_turns)

    def turns_left(self, max_turns: int) -> int:
        """Turns that it may still play before it needs another message: one at least, where more were allowed before."""
        return max(self.most_turns(max_turns) - self.turns_taken(), 1)

    def turns_taken(self, before: int | None = None) -> int:
        """Turns that acted since the last message, or since the beginning; of its first `before` turns."""
        forgotten = 0 if self.rounds else self.forgotten_turns
        return forgotten + sum(turn.acts for turn in self.turns[self.rounds[-1] if self.rounds else 0 : before])

    def budget_of(self, number: int, max_turns: int) -> int:
        """What `max_turns` was when a turn, counted from 1, was played; `max_turns` is what it is now."""
        return next((before for turns, before in self.budgets if number <= turns), max_turns)

    def reads_message(self, number: int) -> bool:
        """Whether what follows a turn, counted from 0, is a message of a person and not the results of its actions."""
        return number + 1 in self.rounds or not self.turns[number].acts

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The task prompt as chat messages; only an endpoint that takes no token ids reads them."""
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return list(self.prompt)
