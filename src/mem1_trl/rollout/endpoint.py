"""An agent behind an OpenAI-compatible endpoint: messages out, text in, token ids by the tokenizer of whoever learns from it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from .chat_client import ChatEndpoint
from .context import first_kept
from .episode import decode, encode_text
from .stopping import Completion
from .turn_loop import Rollout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .episode import Episode


logger = logging.getLogger(__name__)


def close_action(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """
    The text up to its first closing tag. A tag that a server stopped at and left out is put back.

    `"<think>a</think><search>b"` becomes `"<think>a</think><search>b</search>"`, and `"<search>b</search> and"` becomes
    `"<search>b</search>"`.

    Args:
        text (`str`):
            What the endpoint gave, not cut by its length limit.
        stops (`Sequence[str]`):
            Closing tags that were asked to stop at.

    Returns:
        `tuple[str, bool]`: The text, and whether it holds a closing tag.
    """
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if ends:
        return text[: min(ends)], True
    opened = {text.rfind("<" + stop.removeprefix("</")): stop for stop in stops}
    place = max(opened, default=-1)
    if place > text.rfind("</"):  # the last tag of the text opens an action
        return text + opened[place], True
    return text, False


class ChatRollout(Rollout):
    """
    A rollout whose completions come from a [`ChatEndpoint`].

    The endpoint reads the same past as a local model would, as messages: the task, then each turn that is kept and its
    observation. The trajectory holds what a student with `tokenizer` would have read and written instead, so it can be
    trained on; it has no log-probs, and its lengths are in the student's tokens.

    Args:
        endpoint ([`ChatEndpoint`]):
            Answers.
        tokenizer, protocol, settings, on_turn (*optional*):
            As in [`Rollout`].
    """

    def __init__(self, endpoint: ChatEndpoint, **kwargs: Any):
        super().__init__(generate=_refuse_ids, **kwargs)
        self.endpoint = endpoint

    def _generate(self, running: list[Episode], contexts: list[list[int]], stops: list[list[str]]) -> list[Completion]:
        if self.tool_calls is not None:
            conversations = [self._tool_messages(episode) for episode in running]
            tools = [episode.actions.schemas if episode.actions else [] for episode in running]
            answers = self.endpoint.ask_with_tools(conversations, tools)
            texts = [(self.tool_calls.write(message, ended), ended) for message, ended in answers]
            return [Completion(tuple(encode_text(self.tokenizer, text)), None, ended) for text, ended in texts]
        replies = self.endpoint.ask([self._messages(episode) for episode in running], stops)
        return [self._completion(text, ended, stop) for (text, ended), stop in zip(replies, stops, strict=True)]

    def _messages(self, episode: Episode) -> list[dict[str, Any]]:
        assert episode.messages is not None
        *before, task = episode.messages
        recalled = decode(self.tokenizer, episode.recalled) if episode.recalled else ""
        messages = [*before, {**task, "content": task["content"] + recalled}]
        lengths = [len(tokens) for tokens in episode.history]
        first = first_kept(self.settings.context, lengths, self._history_room(episode))
        for turn in episode.turns[first:]:
            said = self.protocol.drop_scratch(turn.text).removesuffix(self.tokenizer.eos_token or "")
            messages.append({"role": "assistant", "content": said})
            messages.append({"role": "user", "content": turn.observation or ""})
        return messages

    def _tool_messages(self, episode: Episode) -> list[dict[str, Any]]:
        """The task and the turns that are kept, with their calls and results, as the OpenAI API wants them."""
        assert episode.messages is not None and self.tool_calls is not None
        messages = list(episode.messages)
        lengths = [len(tokens) for tokens in episode.history]
        first = first_kept(self.settings.context, lengths, self._history_room(episode))
        for number, turn in enumerate(episode.turns[first:], first):
            said, *results = episode.shown[number]
            calls = [
                {**call, "id": f"call_{number}_{index}", "function": {**call["function"]}}
                for index, call in enumerate((said.get("tool_calls") or [])[: len(results)])
            ]
            for call in calls:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            content = self.protocol.drop_scratch(self.tool_calls.spoken(said, turn.state))
            messages.append({"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})})
            for index, result in enumerate(results):
                text = result["content"]
                if index == len(results) - 1 and number == len(episode.turns) - 1:
                    text += decode(self.tokenizer, episode.inside)
                if calls:
                    messages.append({"role": "tool", "tool_call_id": calls[index]["id"], "content": text})
                else:  # a call that could not be read has no id to answer to
                    messages.append({"role": "user", "content": text})
        return messages

    def _completion(self, text: str, ended: bool, stops: list[str]) -> Completion:
        closed = False
        if ended:
            text, closed = close_action(text, stops)
        ids = encode_text(self.tokenizer, text)
        if (ended and not closed) or not ids:
            if self.tokenizer.eos_token_id is None:
                raise ValueError(
                    "A reply ended without an action and the tokenizer has no end token: set `tokenizer.eos_token`."
                )
            ids = [*ids, self.tokenizer.eos_token_id]
        return Completion(tuple(ids), None, ended)


def _refuse_ids(prompts: list[list[int]], stops: list[list[str]]) -> list[Completion]:
    raise TypeError("An endpoint reads messages, not token ids: use Rollout with a local generator.")
