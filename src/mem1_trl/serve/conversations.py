"""Which conversation a request goes on with, and what is new in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..json_text import write_json
from ..wire.errors import WireError
from ..wire.requests import ChatRequest, canonical
from .states import StateStore


@dataclass(frozen=True, slots=True)
class Found:
    """
    Where a request goes on.

    Attributes:
        state (`dict` or `None`):
            The episode after the last answer; `None` if it is not known, and the request begins a conversation.
        key (`str` or `None`):
            Its key.
        new (`tuple[dict, ...]`):
            Messages that came after it; all of them where it is not known.
        whole (`bool`):
            Whether the request holds what was said before them, so that the conversation can begin anew from it.
        instructions (`str` or `None`):
            Those of the Responses API with which the conversation began.
    """

    state: dict[str, Any] | None
    key: str | None
    new: tuple[dict[str, Any], ...]
    whole: bool = True
    instructions: str | None = None


class Conversations:
    """
    Finds states by what was said.

    A state belongs to the whole chat up to an answer, the tools that were offered and the key of the client: two clients that said
    the same have the same state, and neither can change that of the other. A client that goes on from an earlier message, or asks
    again, goes on from the state that belongs there.

    Args:
        store ([`StateStore`]):
            Keeps the states.
    """

    def __init__(self, store: StateStore):
        self.store = store

    def find(self, request: ChatRequest, owner: str, session: str | None) -> Found:
        """The state of a request, by its messages or, if a session is named, by that name."""
        if request.previous is not None:
            return self._after(request, owner, request.previous)
        answers = [number for number, message in enumerate(request.messages) if message["role"] == "assistant"]
        first_new = answers[-1] + 1 if answers else 0
        new = request.messages[first_new:]
        if not new or new[-1]["role"] == "assistant":
            raise _last_is_not_new(request)
        if answers:
            key = self._key(request, owner, request.messages[:first_new])
            state = self.store.get(key)
            if state is not None:
                return Found(state, key, new)
        found = (
            None
            if session is None
            else self._of_session(request, owner, session, Found(None, None, new, bool(answers)))
        )
        return found or Found(None, None, request.messages)

    def _of_session(self, request: ChatRequest, owner: str, session: str, asked: Found) -> Found | None:
        """The state of a session that is named, with the messages of `asked`; `None` if the request begins a conversation."""
        named = self.store.get(self._name(request, owner, session))
        if named is None:
            return None
        repeated = named["asked"] == self._key(request, owner, request.messages)
        key = named["before"] if repeated else named["after"]
        if key is None:  # its first request, once more
            return None
        state = self.store.get(key)
        if state is None:
            wrong = f"What was said in the session {session!r:.80} is not known any more"
        elif state.get("schemas", []) != list(request.tools):
            wrong = (
                f"'tools' must be those with which the session {session!r:.80} began, which the agent reads each time"
            )
        else:
            return replace(asked, state=state, key=key)
        if asked.whole:
            return None
        raise cannot_begin_anew(request, wrong)

    def _after(self, request: ChatRequest, owner: str, previous: str) -> Found:
        """The state after an answer that is named, and the messages that follow."""
        key = self._response(owner, previous)
        kept = self.store.get(key)
        if kept is None:
            raise WireError(
                400,
                f"The response {previous!r:.80} is not known (any more): send the whole chat as 'input'.",
                "previous_response_not_found",
                "previous_response_id",
            )
        if request.instructions not in (None, kept["instructions"]):
            sentence = (
                "'instructions' must be those of the first response: they are in what the agent reads each time."
            )
            raise WireError(400, sentence, param="instructions")
        if list(request.tools) != kept["tools"]:
            sentence = "'tools' must be those of the first response: the agent reads them each time."
            raise WireError(400, sentence, param="tools")
        if request.messages[-1]["role"] == "assistant":
            raise _last_is_not_new(request)
        return Found(kept["state"], key, request.messages, False, kept["instructions"])

    def keep(
        self,
        request: ChatRequest,
        owner: str,
        session: str | None,
        found: Found,
        answer: Mapping[str, Any],
        state: dict[str, Any],
    ) -> None:
        """Keep the state after an answer."""
        if request.answer_id is not None:
            about = {"instructions": found.instructions or request.instructions, "tools": list(request.tools)}
            self.store.put(self._response(owner, request.answer_id), {**about, "state": state})
        if request.previous is not None:
            return
        key = self._key(request, owner, [*request.messages, answer])
        self.store.put(key, state)
        if session is not None:
            asked = self._key(request, owner, request.messages)
            self.store.put(self._name(request, owner, session), {"before": found.key, "asked": asked, "after": key})

    def _key(self, request: ChatRequest, owner: str, messages: Sequence[Mapping[str, Any]]) -> str:
        return _digest("chat", owner, request.user or "", write_json(list(request.tools)), canonical(messages))

    def _response(self, owner: str, answer_id: str) -> str:
        return _digest("response", owner, answer_id)

    def _name(self, request: ChatRequest, owner: str, session: str) -> str:
        return _digest("session", owner, request.user or "", session)


def _last_is_not_new(request: ChatRequest) -> WireError:
    """The error of a request in which nothing follows an answer."""
    return WireError(400, "The last message must be one of the user or of a tool.", param=request.messages_name)


def cannot_begin_anew(request: ChatRequest, why: str, code: str | None = None) -> WireError:
    """The error of a request that cannot go on and holds only what is new: an answer to that alone would forget the conversation."""
    whole = "the whole chat, or name another session"
    if request.previous is not None:
        whole = "the whole chat as 'input', without 'previous_response_id'"
    return WireError(
        400, f"{why}, and what was said before is not in this request: send {whole}.", code, request.messages_name
    )


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
