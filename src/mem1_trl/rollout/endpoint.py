"""An agent that plays through an OpenAI-compatible chat endpoint: messages out, messages in, token ids by the student's tokenizer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..json_text import read_json
from ..protocol.encoding import decode
from ..protocol.syntax import MARKS
from ..protocol.turn_text import written_tags
from ..protocol.untrusted import clean_reply
from .chat_client import ChatEndpoint, Reply
from .server_rollout import Question, ServerRollout
from .settings import CHARACTERS_PER_TOKEN
from .stopping import Completion, text_before_stops

if TYPE_CHECKING:
    from ..context_rules.rule import NextTurn
    from ..protocol.syntax import ActionSyntax
    from .episode import Episode
    from .turn_request import TurnRequest


class ChatRollout(ServerRollout):
    """
    A rollout whose completions come from a [`ChatEndpoint`].

    The endpoint reads the same past as a local model would, in messages that no chat template shortens: the task and the turns
    that are kept in one message of the user. The trajectory holds these messages, and the token ids that a student with
    `tokenizer` would have read and written, so it can be trained on; it has no log-probs, and its lengths are in the student's
    tokens.

    Args:
        endpoint ([`ChatEndpoint`]):
            Writes the turns.
        kwargs (*optional*):
            As in [`Rollout`].
    """

    def __init__(self, endpoint: ChatEndpoint, **kwargs: Any):
        super().__init__(endpoint.calls, **kwargs)
        self.endpoint = endpoint

    def question(self, request: TurnRequest) -> Question:
        episode, stops = request.episode, request.stops
        sent = self._messages(episode, request.next)
        # Where a thought is open, a stop string inside it would end the turn
        asked = [] if text_before_stops(stops) else stops
        tools = episode.actions.schemas if episode.actions else []
        tags = written_tags(self.protocol, episode.actions.tags if episode.actions else ())

        def read(reply: Reply | str) -> Completion:
            return self._read_reply(reply, sent, request.context, stops, tags)

        acts = not request.next.summary
        return Question(partial(self.endpoint.ask_one, sent, asked, tools, acts, episode.listener), read)

    def _read_reply(
        self, reply: Reply | str, sent: list[dict[str, Any]], context: list[int], stops: list[str], tags: set[str]
    ) -> Completion:
        """The reply to the messages `sent` as the completion of a student that had read `context`."""
        if isinstance(reply, str):
            return Completion((), None, False, messages=tuple(sent), error=reply)
        message, ended = clean_reply(self.tokenizer, reply.message, tags), reply.ended
        longest = self.settings.max_completion_length * CHARACTERS_PER_TOKEN[-1]
        if len(message["content"]) > longest:  # a server that knows no limit
            message, ended = {**message, "content": message["content"][:longest]}, False
        ids = self.syntax.encode_reply(message, ended, stops, self.syntax.opened(context))
        return Completion(tuple(ids), None, ended, messages=tuple(sent))

    def _messages(self, episode: Episode, step: NextTurn) -> list[dict[str, Any]]:
        """The context of an episode as messages."""
        assert episode.messages is not None
        recalled = decode(self.tokenizer, episode.recalled) if episode.recalled else ""
        request = self.syntax.write_request(step.request) if step.summary else ""
        return episode.record.messages(episode.messages, episode.turns, step.kept, recalled, request)


def check_rendering(syntax: ActionSyntax) -> None:
    """
    Raise a `ValueError` if the chat template of the tokenizer would keep a part of the past from the model.

    The messages of an episode after one turn are rendered as a server does, and state, action and result are looked for.
    """
    if getattr(syntax.tokenizer, "chat_template", None) is None:
        return
    tool = {"name": MARKS.action, "description": "m1", "parameters": {"type": "object", "properties": {}}}
    messages = [_with_read_arguments(message) for message in syntax.sample_messages()]
    tools: Any = [{"type": "function", "function": tool}] if any("tool_calls" in one for one in messages) else None
    instead = (
        "use a server with `/v1/completions` (backend='completions'), or a protocol with other tags, such as "
        "`Mem1Protocol.paper()`."
    )
    try:
        text = syntax.tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False, **syntax.chat_template_kwargs
        )
    except Exception as error:
        raise ValueError(
            f"The chat template cannot write an episode after its first turn ({error}): {instead}"
        ) from error
    lost = [name for name, mark in MARKS._asdict().items() if mark not in str(text)]
    if lost:
        raise ValueError(
            f"The chat template drops the {', '.join(lost)} of earlier turns, so the model would have no memory: {instead}"
        )


def _with_read_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls have dictionaries of arguments, which servers make of the text that the API wants."""
    calls = [
        {**call, "function": {**call["function"], "arguments": read_json(call["function"]["arguments"])}}
        for call in message.get("tool_calls", [])
    ]
    return {**message, "tool_calls": calls} if calls else message
