"""An agent that plays through an OpenAI-compatible endpoint: messages out, messages in, token ids by the student's tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..protocol.encoding import decode
from .chat_client import ChatEndpoint
from .context import first_kept
from .stopping import Completion
from .turn_loop import Rollout

if TYPE_CHECKING:
    from .episode import Episode


class ChatRollout(Rollout):
    """
    A rollout whose completions come from a [`ChatEndpoint`].

    The endpoint reads the same past as a local model would, as messages: the task, then each turn that is kept and its
    observation. The trajectory holds the token ids that a student with `tokenizer` would have read and written, so it can be
    trained on; it has no log-probs, and its lengths are in the student's tokens.

    Args:
        endpoint ([`ChatEndpoint`]):
            Writes the turns.
        tokenizer, protocol, settings, on_turn, syntax, caller (*optional*):
            As in [`Rollout`].
    """

    def __init__(self, endpoint: ChatEndpoint, **kwargs: Any):
        super().__init__(generate=_refuse_ids, **kwargs)
        self.endpoint = endpoint

    def _generate(self, running: list[Episode], contexts: list[list[int]], stops: list[list[str]]) -> list[Completion]:
        tools = [episode.actions.schemas if episode.actions else [] for episode in running]
        replies = self.endpoint.ask([self._messages(episode) for episode in running], stops, tools)
        return [
            Completion(tuple(self.syntax.encode_reply(message, ended, stop)), None, ended)
            for (message, ended), stop in zip(replies, stops, strict=True)
        ]

    def _messages(self, episode: Episode) -> list[dict[str, Any]]:
        """The context of an episode as messages."""
        assert episode.messages is not None
        lengths = [len(tokens) for tokens in episode.history]
        first = first_kept(self.settings.context, lengths, self._history_room(episode))
        recalled = decode(self.tokenizer, episode.recalled) if episode.recalled else ""
        return episode.record.messages(episode.messages, episode.turns, first, recalled)


def _refuse_ids(prompts: list[list[int]], stops: list[list[str]]) -> list[Completion]:
    raise TypeError("An endpoint reads messages, not token ids: use Rollout with a local generator.")
