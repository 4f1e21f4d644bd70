"""
Failures of model servers: which pass by themselves, which cost an episode, and which end the run.

- `FailedContext`: what one context costs. The server refused it, or had no usable answer for it after all attempts.
- `UnusableServer`: nothing will work until something is corrected, such as the key or the name of the model.
- `ConnectionError`: the server is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..retrying import BUSY_STATUSES, TRANSIENT_ERRORS, UnusableServer, asked_to_wait, backoff

_ADVICE = {
    401: "it wants another key: pass a client with the right one, such as openai.OpenAI(base_url=..., api_key=...)",
    402: "the account has no credit left",
    403: "the key may not use this model: pass a client with another key, or name another model",
    404: "it does not have this model, or the address is not that of its API: correct the name of the model, or the address, "
    "which usually ends in /v1",
    405: "the address is not that of its API: correct it; it usually ends in /v1",
}
"""What to do about answers that no other context would change."""

_REDIRECTS = range(300, 400)

_UNREADABLE = frozenset(("JSONDecodeError", "UnicodeDecodeError", "APIResponseValidationError", "ValidationError"))
"""Names of the errors with which clients fail to read an answer."""

_ENDED = ("stop", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence", "end_turn")
_CUT = ("length", "max_tokens", "model_length")
"""What servers call a choice that ended by itself or at a stop string, and one that came to its limit."""

_LONGEST_DETAIL = 300  # characters of an error that are shown


class ServerError(Exception):
    """
    Raised for an answer that says, by its status or in its body, that there is no completion.

    Args:
        sentence (`str`):
            What the server said.
        status (`int` or `None`, *optional*):
            HTTP status; `None` for an answer that cannot be read.
        headers (`Mapping`, *optional*):
            Headers of the answer.
    """

    def __init__(self, sentence: str, status: int | None = None, headers: Any = None):
        super().__init__(sentence)
        self.status_code = status
        self.headers = headers


class FailedContext(Exception):
    """Raised for a context that the server has no completion for, while it may have one for others."""


class TurnStopped(FailedContext):
    """Raised when whoever listens to a turn wants no more of it, which says nothing about the server."""


def part(value: Any, name: str) -> Any:
    """An entry of what a client returned, which is a dictionary or an object; `None` if there is none."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def first_choice(answer: Any) -> Any:
    """
    The first choice of an answer.

    Raises:
        [`ServerError`]: If there is none.
    """
    raise_stated_error(answer)
    choices = part(answer, "choices")
    if not isinstance(choices, (list, tuple)) or not choices or choices[0] is None:
        raise ServerError(f"its answer has no choices but {choices!r}")
    return choices[0]


def raise_stated_error(answer: Any) -> None:
    """
    Raise the error that an answer, or a piece of one, holds in place of a choice.

    Raises:
        [`ServerError`]: If there is one. Proxies answer "200 OK" with an error in the body; it has the status that the body says.
    """
    error = part(answer, "error")
    if error:
        code = part(error, "code")
        status = int(code) if str(code).isdecimal() and 400 <= int(code) < 600 else None
        raise ServerError(f"its answer is an error: {part(error, 'message') or error}", status)


def has_ended(choice: Any) -> bool:
    """
    Whether a choice ended by itself or at a stop string (`True`), or at its length limit (`False`). Servers that never say why are believed
    to have ended.

    Raises:
        [`ServerError`]: If it ended in any other way, such as by a filter, or because the server gave the request up.
    """
    reason = part(choice, "finish_reason")
    if not reason or reason in _ENDED:
        return True
    if reason in _CUT:
        return False
    raise ServerError(f"its answer is not whole but ended by {reason!r:.60}")


def status_of(error: Exception) -> int | None:
    """HTTP status that an error of any client carries."""
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _headers_of(error: Exception) -> Mapping[str, Any] | None:
    """Headers of the answer that an error of any client carries."""
    return getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None)


def _location(error: Exception) -> str:
    """Where a redirect leads, in quotation marks, or that it does not say so."""
    for name, value in (_headers_of(error) or {}).items():
        if str(name).lower() == "location":
            return repr(str(value).partition("?")[0][:_LONGEST_DETAIL])  # a query may hold a key
    return "an address that it does not name"


def seconds_to_wait(error: Exception, attempt: int) -> float | None:
    """How long to wait before a request is tried again; `None` if that would not help."""
    if not _passes(error):
        return None
    asked = asked_to_wait(_headers_of(error))
    return backoff(attempt, first=1.0) if asked is None else asked


def explained(error: Exception, attempts: int) -> Exception:
    """The last failure of a request as one of the three kinds of this module."""
    if isinstance(error, FailedContext):
        return error
    status, detail = status_of(error), one_line(error)
    if status in _ADVICE:
        return UnusableServer(f"The model server refused a request ({detail}): {_ADVICE[status]}.")
    if status in _REDIRECTS:
        return UnusableServer(
            f"The model server redirects a request to {_location(error)} (HTTP {status}), and redirects are not followed: correct the "
            "address, http:// or https:// included."
        )
    if isinstance(error, ServerError) or status is not None or _is_unreadable(error):
        if _passes(error):
            return FailedContext(f"The model server gave no usable answer in {attempts} attempts ({detail}).")
        return FailedContext(
            f"The model server refused this context ({detail}): it may be too long for the server, or `request_kwargs` or a "
            "setting may be one that the server does not know."
        )
    if _passes(error):
        return ConnectionError(
            f"The model server gave no answer in {attempts} attempts ({detail}): check its address and that the server runs, "
            "then start again."
        )
    return UnusableServer(
        f"The request could not be sent ({detail}): correct the name of the model, the client, or `request_kwargs`."
    )


def one_line(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_DETAIL else f"{text[:_LONGEST_DETAIL]} ..."


def _passes(error: Exception) -> bool:
    """Whether another attempt may succeed."""
    status = status_of(error)
    if status is not None:
        return status in BUSY_STATUSES
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OfflineModeIsEnabled" in names:  # HF_HUB_OFFLINE keeps huggingface_hub's client from every server
        return False
    if isinstance(error, ServerError) or _is_unreadable(error):
        return True
    return isinstance(error, OSError) or bool(names & TRANSIENT_ERRORS)


def _is_unreadable(error: Exception) -> bool:
    """Whether a client could not read the answer: an HTML page of a proxy, or JSON of another shape."""
    return type(error).__name__ in _UNREADABLE
