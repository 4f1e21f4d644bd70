"""Answers of model servers that come in pieces, put together as the answers that come whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from .server_errors import FailedContext, ServerError, TurnStopped, first_choice, has_ended, part, raise_stated_error
from .turn_listener import TurnListener


def send_streamed(create: Callable[..., Any], request: Mapping[str, Any], listener: TurnListener | None) -> Any:
    """
    The answer to a request. With a listener it is asked for in pieces, whose text is told as it comes.

    A server that sends the whole answer all the same is understood. Once a part of the turn was told, by this request or by one before
    it, nothing can be sent again, since another answer may come.

    Args:
        create (`Callable`):
            Sends the request: `completions.create` or `chat.completions.create` of a client.
        request (`Mapping`):
            Its arguments.
        listener ([`TurnListener`] or `None`):
            Is told the text.

    Raises:
        [`TurnStopped`]: If the listener wants no more.
        [`FailedContext`]: If the answer broke, or is an error, after a part of the turn was told.
    """
    if listener is None:
        return create(**request)
    try:
        answer = create(**request, stream=True)
        if isinstance(answer, Mapping) or part(answer, "choices") is not None or not isinstance(answer, Iterable):
            first_choice(answer)
            return answer
        return _gather(answer, listener)
    except TurnStopped:
        raise
    except Exception as error:
        if not listener.told:
            raise
        raise FailedContext(
            f"The model server broke off its answer after a part of it was told ({type(error).__name__}: {error}): play the turn "
            "again."
        ) from error


def _gather(chunks: Iterable[Any], listener: TurnListener) -> dict[str, Any]:
    """One answer of the chunks of a stream: what they add is appended, what they state is kept."""
    choice: dict[str, Any] = {}
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    usage: Any = None
    with closing(_closeable(chunks)) as stream:
        for chunk in stream:
            raise_stated_error(chunk)
            usage = part(chunk, "usage") or usage
            for one in part(chunk, "choices") or []:
                for name in ("finish_reason", "stop_reason"):
                    if part(one, name) is not None:
                        choice[name] = part(one, name)
                delta = part(one, "delta")
                _append(choice, one, ("text",))
                choice["token_ids"] = [*choice.get("token_ids", ()), *(part(one, "token_ids") or ())]
                _append(message, delta, ("content", "reasoning_content", "reasoning"))
                for call in part(delta, "tool_calls") or []:
                    _add_call(calls, call)
                thinks = message.get("reasoning_content") or message.get("reasoning")
                new = part(one, "text") or (None if thinks else part(delta, "content"))
                if isinstance(new, str) and not listener.add_text(new):
                    raise TurnStopped("Whoever listened to the turn wanted no more of it.")
    if not choice.get("finish_reason"):  # a connection that breaks looks like the end of the stream
        raise ServerError("its answer ended without saying why")
    has_ended(choice)
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    whole = {**choice, "message": {"content": "", **message}}
    return {"choices": [whole], **({} if usage is None else {"usage": usage})}


def _append(parts: dict[str, Any], piece: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = part(piece, name)
        if isinstance(value, str):
            parts[name] = parts.get(name, "") + value


def _add_call(calls: dict[int, dict[str, Any]], piece: Any) -> None:
    """A tool call comes in pieces, too: its name first, then its arguments bit by bit."""
    index = part(piece, "index")
    call = calls.setdefault(
        index if isinstance(index, int) else len(calls), {"function": {"name": "", "arguments": ""}}
    )
    _append(call["function"], part(piece, "function"), ("name", "arguments"))


def _closeable(chunks: Iterable[Any]) -> Any:
    """The chunks as something that can be closed, which ends the connection."""
    if hasattr(chunks, "close"):
        return chunks

    def each() -> Iterator[Any]:
        yield from chunks

    return each()
