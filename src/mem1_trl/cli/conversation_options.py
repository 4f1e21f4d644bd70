"""What `mem1 chat` and `mem1 serve` share: an agent in conversations, and what it may search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..rollout.settings import setting
from .agent_options import AgentArguments, chosen_protocol, open_agent
from .own_code import check_environment
from .search_options import SearchArguments
from .task_options import CorpusArguments

if TYPE_CHECKING:
    from ..agent import Mem1Agent


@dataclass
class ConversationArguments(AgentArguments, SearchArguments, CorpusArguments):
    """
    Arguments about an agent that talks: those of [`AgentArguments`], [`SearchArguments`] and [`CorpusArguments`], and:

    Parameters:
        corpus (`str`, *optional*):
            As in [`CorpusArguments`], but `None` gives it nothing to search.
        environment (`str`, *optional*):
            As in [`CorpusArguments`]; its `reset` gets the first message as `prompt`.
        max_turns (`int`, *optional*):
            Maximum number of turns for one answer. `None` takes the value saved with the model.
    """

    corpus: str | None = field(
        default=None,
        metadata={
            "help": "What the agent itself may search: `facts` for the bundled ones, a file or id of a data set, a folder of text files, "
            "a directory of `mem1 index`, or the address of a retriever (http://...). `None` gives it nothing to search."
        },
    )
    max_turns: int | None = setting(
        "max_turns", default=None, help="Maximum number of turns for one answer. Default: as saved with the model."
    )

    def __post_init__(self) -> None:
        self._check_counts("max_turns", "top_k", "batch_size")
        self._check_environment("top_k")
        if self.top_k is not None and self.corpus is None and self.environment is None:
            raise ValueError("top_k is about what the agent searches, and there is none: give corpus, or leave it out")
        self.check_endpoint()

    def open(self, has_tools: bool = False) -> tuple[Mem1Agent, Any]:
        """
        The agent, and what makes the environment of a conversation; `None` if there is neither a corpus nor an environment.

        Args:
            has_tools (`bool`, *optional*, defaults to `False`):
                Whether conversations may bring what the agent may do, so that nothing need be given here.
        """
        protocol = chosen_protocol(self)
        self.settings(sampled=has_tools)  # where conversations bring tools, they may bring a temperature
        given = self.corpus is not None or self.environment is not None
        factory = self.environment_factory(self.passages()) if given else None
        if given or not has_tools:
            check_environment(protocol, self.protocol_source(self.model_name_or_path), factory, talks=True)
        turns = {} if self.max_turns is None else {"max_turns": self.max_turns}
        return open_agent(self, protocol, **turns), factory
