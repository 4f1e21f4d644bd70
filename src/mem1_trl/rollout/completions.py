"""
A served model that reads the contexts of training: raw text that goes on, through `/v1/completions`.

A chat endpoint renders messages by its template, and a rewritten context is not what comes out. Here the server reads the token ids
of the context, or their text where it takes no ids.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..protocol.encoding import decode
from ..protocol.turn_text import encode_closed
from ..protocol.untrusted import strip_unencodable
from ..retrying import UnusableServer
from .chat_client import MAX_STOPS
from .decoding_modes import changing
from .server_calls import ServerCalls
from .server_errors import ServerError, first_choice, has_ended, part, status_of
from .stopping import Completion, StopStringFinder, finish_completion, text_before_stops
from .streamed_answers import send_streamed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from .settings import AgentSettings
    from .turn_listener import TurnListener

logger = logging.getLogger(__name__)

_NOT_OFFERED = (400, 404, 405, 410, 415, 422, 501)
"""Statuses with which servers say that they do not know a route, or an argument."""

_RAW: dict[str, Any] = {"return_token_ids": True, "skip_special_tokens": False, "include_stop_str_in_output": True}
"""Arguments of vLLM that return what was sampled. Most other servers refuse them or ignore them."""

_PROBE = "m1 Überprüfung 漢字 🙂 12345 <think>\n</think> <|im_start|> <tool_call> [INST] <|eot_id|> naïve  two\n\nends"
"""Text of which two vocabularies rarely make equally many tokens."""


@dataclass(frozen=True, slots=True)
class Offer:
    """
    How a server takes contexts.

    Attributes:
        takes_ids (`bool`):
            Whether token ids; otherwise text, which it encodes itself.
        extra (`dict`):
            Further arguments that it knows.
    """

    takes_ids: bool
    extra: Mapping[str, Any] = field(default_factory=dict)


class _Piece(NamedTuple):
    """Token ids that one request returned, and whether they ended by themselves or at a stop string."""

    ids: tuple[int, ...]
    ended: bool


class CompletionsEndpoint:
    """
    A model that is reached through `client.completions.create(...)`; see [`ServerCalls`] for what a failure costs.

    Args:
        create (`Callable`):
            The method `completions.create` of a client.
        model (`str` or `None`):
            Name of the model there.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        calls ([`ServerCalls`]):
            Makes the requests.
        request_kwargs (`Mapping`, *optional*):
            Further arguments of each request, as in [`ChatEndpoint`].
    """

    def __init__(
        self,
        create: Callable[..., Any],
        model: str | None,
        tokenizer: PreTrainedTokenizerBase,
        calls: ServerCalls[Any],
        request_kwargs: Mapping[str, Any] | None = None,
    ):
        self.create = create
        self.model = model
        self.tokenizer = tokenizer
        self.calls = calls
        self.request_kwargs = dict(request_kwargs or {})
        self.stop_texts = StopStringFinder(tokenizer)
        self._adds_bos = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._has_warned = False
        self._leaves_stops = False  # whether stop strings stay in the texts, as far as is known

    # What the server offers

    def find_offer(self) -> tuple[Offer | None, str]:
        """
        How the server takes contexts, found by requests of one token; and why, if it does not take any of this tokenizer.

        Raises:
            `UnusableServer`, `ConnectionError`: If the server answers nothing at all.
        """
        ids = self.tokenizer(_PROBE)["input_ids"]
        answer = self._try(_PROBE)
        if answer is None:
            return None, "the server offers no /v1/completions for this model"
        read = _tokens_read(answer)
        if read is not None and read != len(ids):
            return (
                None,
                f"the server's model has another tokenizer (it reads {read} tokens where this one has {len(ids)})",
            )
        for extra in (_RAW, {}):
            answer = self._try(ids, extra)
            if answer is not None and _tokens_read(answer) in (None, len(ids)):
                return Offer(True, extra), ""
        return Offer(False), ""

    def _try(self, prompt: Any, extra: Mapping[str, Any] | None = None) -> Any:
        """The answer to a request of one token; `None` if the server does not know such requests."""
        request = {**self.request_kwargs, "model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0}
        request["extra_body"] = {**request.get("extra_body", {}), **(extra or {})}

        def send() -> Any:
            try:
                answer = self.create(**_given(request))
                first_choice(answer)
                return answer
            except Exception as error:
                if status_of(error) in _NOT_OFFERED:
                    return None
                raise

        (answer,) = self.calls.each([send])
        if isinstance(answer, ConnectionError):
            raise answer
        if isinstance(answer, Exception):
            raise UnusableServer(str(answer)) from answer
        return answer

    # Completions

    def complete(
        self,
        context: list[int],
        stops: list[str],
        settings: AgentSettings,
        offer: Offer,
        listener: TurnListener | None = None,
    ) -> Completion:
        """
        The completion of a context, asked for once: an error is raised, and [`ServerCalls`] says what it costs. A listener is told
        its text as it comes.
        """
        after, budget = text_before_stops(stops), settings.max_completion_length
        thought: tuple[int, ...] = ()
        if after:  # a stop string inside the thought that the context has opened would end the turn
            piece = self._send(context, [after], budget, settings, offer, listener, in_thought=True)
            thought = piece.ids
            if listener is not None:  # the end of the thought, if the server stopped at it and left it out
                listener.extend_to(decode(self.tokenizer, thought))
            closed = self.stop_texts.end(thought, [after]) is not None
            if not piece.ended or not closed or len(thought) >= budget:
                return self._completion(context, piece, settings, offer)
        piece = self._send([*context, *thought], stops, budget - len(thought), settings, offer, listener)
        return self._completion(context, _Piece((*thought, *piece.ids), piece.ended), settings, offer)

    def _completion(self, context: list[int], piece: _Piece, settings: AgentSettings, offer: Offer) -> Completion:
        read = None if offer.takes_ids else tuple(self._as_text(context)[1])
        if read == tuple(context):
            read = None
        return Completion(piece.ids, None, piece.ended, not settings.samples_from_policy, prompt_ids=read)

    def _send(
        self,
        context: list[int],
        stops: Sequence[str],
        budget: int,
        settings: AgentSettings,
        offer: Offer,
        listener: TurnListener | None,
        in_thought: bool = False,
    ) -> _Piece:
        text, read = ("", context) if offer.takes_ids else self._as_text(context)
        options = settings.decoding_options()
        request = {
            "model": self.model,
            "prompt": context if offer.takes_ids else text,
            "max_tokens": budget,
            "temperature": settings.temperature,
            "stop": list(stops[-MAX_STOPS:]) or None,  # the answer's is the last
            "top_p": options["top_p"] if options["top_p"] != 1.0 else None,
            **self.request_kwargs,
        }
        request["extra_body"] = {
            **offer.extra,
            **changing(options, BEYOND_OPENAI),
            **(request.get("extra_body") or {}),
        }
        answer = send_streamed(self.create, _given(request), listener)
        choice = first_choice(answer)
        self._check_read(_tokens_read(answer), len(read))
        sent = request["stop"] or ()
        return self._read_choice(
            choice, list(stops), [sent] if isinstance(sent, str) else list(sent), budget, in_thought
        )

    def _put_back(
        self, text: str, stops: list[str], sent: list[str], reason: Any, in_thought: bool
    ) -> tuple[str, list[str]]:
        """
        The text with the stop string that a server left out, and the stop strings that may still be missing in it.

        A server that has once returned a stop string that it was sent leaves none out: a text without one ended by itself.
        """
        if any(stop in text for stop in stops):
            self._leaves_stops = self._leaves_stops or any(stop in text for stop in sent)
            return text, stops
        if isinstance(reason, str) and reason in stops:  # vLLM says which
            return text + reason, stops
        if self._leaves_stops:
            return text, []
        return (text + stops[0], stops) if in_thought else (text, [stop for stop in stops if stop in sent])

    def _read_choice(self, choice: Any, stops: list[str], sent: list[str], budget: int, in_thought: bool) -> _Piece:
        eos, ended = self.tokenizer.eos_token_id, has_ended(choice)
        sampled = part(choice, "token_ids")
        if isinstance(sampled, (list, tuple)) and sampled:
            cut = finish_completion(list(sampled), None, stops, self.stop_texts, [] if eos is None else [eos])
            return _Piece(cut.ids, cut.ended or ended)  # it may have ended with another end token of the model
        text = part(choice, "text")
        if not isinstance(text, str):
            raise ServerError(f"its answer has a choice without a text but {text!r:.80}")
        text = strip_unencodable(text)
        if ended:
            text, stops = self._put_back(text, stops, sent, part(choice, "stop_reason"), in_thought)
        ids = encode_closed(self.tokenizer, text, ended, stops)
        if len(ids) > max(budget, 1) and not ended:  # a server that knows no limit
            ids = ids[:budget]
        return _Piece(tuple(ids), ended)

    def _as_text(self, context: list[int]) -> tuple[str, list[int]]:
        """The text of a context, and the token ids that a server makes of it, which adds the token of the beginning itself."""
        starts = self._adds_bos and context[:1] == [self.tokenizer.bos_token_id]
        text = decode(self.tokenizer, context[1:] if starts else context)
        return text, list(self.tokenizer(text)["input_ids"])

    def _check_read(self, read: int | None, sent: int) -> None:
        if read is not None and read != sent and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "The model server says that it read %d tokens of a context of %d: it cuts contexts, or its tokenizer is another "
                "one, and trajectories do not hold what it read.",
                read,
                sent,
            )


BEYOND_OPENAI = ("top_k", "min_p", "repetition_penalty")
"""Settings that OpenAI's own API does not know."""


def _given(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if value is not None and value != {}}


def _tokens_read(answer: Any) -> int | None:
    """Number of tokens of the prompt that the server counted."""
    count = part(part(answer, "usage"), "prompt_tokens")
    return count if isinstance(count, int) else None
