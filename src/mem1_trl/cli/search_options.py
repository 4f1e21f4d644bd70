"""What `mem1 eval`, `mem1 chat` and `mem1 serve` share: how many passages one search of a trained agent finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .options import CommandError

DEFAULT_PASSAGES = 3


@dataclass
class SearchArguments:
    """
    Arguments about the searches of an agent that was trained.

    Parameters:
        top_k (`int`, *optional*):
            Passages per search. `None` takes what the model was trained with, or else 3.
    """

    top_k: int | None = field(
        default=None,
        metadata={"help": "Passages per search. `None` takes what the model was trained with, or else 3."},
    )

    def passages(self: Any) -> int:
        """
        Passages of one search: as was asked for, or as saved with the model.

        Raises:
            `CommandError`: If what was saved is not a number of passages.
        """
        if self.top_k is not None or self.environment is not None:  # an environment of one's own has its own settings
            return self.top_k or DEFAULT_PASSAGES
        from ..hub.agent_settings import load_agent_settings

        saved = load_agent_settings(self.model_name_or_path)
        passages = DEFAULT_PASSAGES if saved is None else saved.environment.get("top_k", DEFAULT_PASSAGES)
        if type(passages) is not int or passages < 1:
            raise CommandError(
                f"top_k of the environment saved with {self.model_name_or_path} must be a number of passages, 1 or more, but is "
                f"{passages!r}: give --top_k"
            )
        return passages
