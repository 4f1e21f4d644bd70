"""A model that runs elsewhere: which of its interfaces is used, and the rollout that uses it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from typing import TYPE_CHECKING, Any

from ..retrying import UnusableServer, is_cancelled
from ..waiting import LONGEST_SLEEP
from .chat_client import ChatEndpoint
from .completions import BEYOND_OPENAI, CompletionsEndpoint, Offer
from .decoding_modes import NEUTRAL_SAMPLING, changing, refuse_for_server
from .endpoint import ChatRollout, check_rendering
from .server_errors import TurnStopped
from .server_rollout import CompletionsRollout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedTokenizerBase

    from ..protocol.syntax import ActionSyntax
    from .server_rollout import ServerRollout
    from .settings import AgentSettings

logger = logging.getLogger(__name__)

BACKENDS = ("completions", "chat")


class ModelServer:
    """
    A model behind an OpenAI-compatible server.

    Args:
        client (`Any`):
            A client, or the address of a server, as in [`ChatEndpoint`]. With `completions.create` it is asked whether it takes raw
            contexts.
        model (`str` or `None`):
            Name of the model there.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer in which trajectories are written.
        syntax ([`ActionSyntax`]):
            Syntax of the agent.
        backend (`str`, *optional*):
            `"completions"`: contexts as they are in training, which needs the tokenizer of the served model. `"chat"`: messages, which
            the server renders. `None` uses completions if the server offers them for this tokenizer; it is asked at the first episode.
        batch_size (`int`, *optional*, defaults to `32`):
            Maximum number of concurrent requests.
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request is tried again.
        request_kwargs (`Mapping`, *optional*):
            Further arguments of each request.

    Raises:
        `ValueError`: If messages are to be sent and the chat template would drop a part of them, or `backend` is unknown.
    """

    def __init__(
        self,
        client: Any,
        model: str | None,
        tokenizer: PreTrainedTokenizerBase,
        syntax: ActionSyntax,
        backend: str | None = None,
        batch_size: int = 32,
        max_retries: int = 5,
        request_kwargs: Mapping[str, Any] | None = None,
    ):
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, or None, got {backend!r}.")
        self.model = model
        self.backend = backend
        self.chat = ChatEndpoint(
            client, model, max_workers=batch_size, max_retries=max_retries, request_kwargs=request_kwargs or {}
        )
        create = getattr(getattr(self.chat.client, "completions", None), "create", None)
        self.completions: CompletionsEndpoint | None = None
        if backend != "chat" and callable(create):
            self.completions = CompletionsEndpoint(create, model, tokenizer, self.chat.calls, request_kwargs)
        elif backend == "completions":
            raise TypeError(
                f"`client` is a {type(self.chat.client).__name__} without `completions.create`: pass an openai.OpenAI or the "
                "address of a server, or use backend='chat'."
            )
        if self.completions is None:
            check_rendering(syntax)
        self._syntax = syntax
        self._lock = threading.Lock()
        self._asked = False
        self._offer: Offer | None = None

    def rollout(self, settings: AgentSettings, **parts: Any) -> ServerRollout:
        """
        A rollout with the present settings; the first one asks the server what it offers.

        Raises:
            `ValueError`: If the settings have `generation_kwargs` that a server cannot be sent, or sampling that OpenAI's chat does not know and
                `request_kwargs` do not name.
        """
        offer = self._find_offer()
        if offer is not None and self.completions is not None:
            refuse_for_server(settings.generation_kwargs, NEUTRAL_SAMPLING)
            return CompletionsRollout(self.completions, offer, settings=settings, **parts)
        refuse_for_server(settings.generation_kwargs, ("top_p",))
        options = settings.decoding_options()
        self._refuse_beyond_chat(options)
        top_p = changing(options, ("top_p",))
        chat = dataclasses.replace(
            self.chat,
            max_completion_length=settings.max_completion_length,
            temperature=settings.temperature,
            request_kwargs={**top_p, **self.chat.request_kwargs},
        )
        return ChatRollout(chat, settings=settings, **parts)

    def _refuse_beyond_chat(self, options: Mapping[str, Any]) -> None:
        """Refuse sampling that the chat endpoint is not sent, where the user has not passed it in the server's own form."""
        passed = {**self.chat.request_kwargs, **(self.chat.request_kwargs.get("extra_body") or {})}
        unsent = {name: value for name, value in changing(options, BEYOND_OPENAI).items() if name not in passed}
        if unsent:
            raise ValueError(
                f"The chat endpoint of OpenAI's API takes no {', '.join(f'{name}={value!r}' for name, value in unsent.items())}: leave it out, or pass "
                f"it as your server knows it, such as request_kwargs={{'extra_body': {unsent!r}}}."
            )

    def _find_offer(self) -> Offer | None:
        with _held_if_wanted(self._lock):
            if self.completions is not None and not self._asked:
                self._offer, reason = self.completions.find_offer()
                if self._offer is None:
                    if self.backend == "completions":
                        raise UnusableServer(f"backend='completions' cannot be used: {reason}. Use backend='chat'.")
                    check_rendering(self._syntax)
                    logger.info("Contexts are sent as chat messages: %s.", reason)
                self._asked = True
            return self._offer


@contextlib.contextmanager
def _held_if_wanted(lock: threading.Lock) -> Iterator[None]:
    """
    Hold a lock, which another thread may hold while its server hangs.

    Raises:
        [`TurnStopped`]: If the answer that this thread waits for is no longer wanted.
    """
    while not lock.acquire(timeout=LONGEST_SLEEP):
        if is_cancelled():
            raise TurnStopped("The answer is no longer wanted.")
    try:
        yield
    finally:
        lock.release()
