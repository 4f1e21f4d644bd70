"""One running episode, and the settings it is played with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..environment_runtime.actions import ActionSet
from ..trajectory import StopReason, Turn
from .external_memory import ExternalMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


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
        memory ([`ExternalMemory`]):
            Past observations; filled only with `context="external"`.
        recalled (`list[int]`):
            Token ids of what the memory puts into the next context.
        exchange (`list[dict]`):
            All turns and results as chat messages, as TRL's reward functions know them; filled only with tool calls.
        shown (`list[list[dict]]`):
            For each turn its message and its results as the agent reads them, cut and with the hint; only with tool calls.
        inside (`list[int]`):
            Token ids of what the memory has put into the last result; only with tool calls.
        prompt (`str` or `list[dict]`):
            The rendered task prompt: a text, or chat messages.
    """

    prompt_ids: list[int]
    environment: Any = None
    actions: ActionSet | None = None
    prompt: str | list[dict[str, Any]] = ""
    memory: ExternalMemory = field(default_factory=ExternalMemory)
    recalled: list[int] = field(default_factory=list)
    exchange: list[dict[str, Any]] = field(default_factory=list)
    shown: list[list[dict[str, Any]]] = field(default_factory=list)
    inside: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    history: list[list[int]] = field(default_factory=list)
    stop_reason: StopReason | None = None
    answer: str | None = None
    failed_actions: int = 0
    error: str | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The task prompt as chat messages; only an endpoint that takes no token ids reads them."""
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return list(self.prompt)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """Text of token ids."""
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)
    return text


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text that we wrote: tags are tags, special tokens special."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
