"""A client of an OpenAI-compatible server, for an address alone: the two calls that are needed, within limits of time and size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from ..json_text import read_json
from ..web.addresses import Address, resolve
from ..web.exchange import exchange, exchange_lines
from ..web.pages import FetchError
from .server_errors import ServerError, part

_MAX_BYTES = 64 * 2**20
_HUB_HOSTS = ("huggingface.co", "huggingface.cloud", "hf.space")


class ServerClient:
    """
    Has `chat.completions.create` and `completions.create`, as `openai.OpenAI` does, and returns the JSON of the answers; with
    `stream=True` that of their pieces, one after the other.

    The token of the Hub, if one is logged in, goes to hosts of Hugging Face only.

    Args:
        url (`str`):
            Address of the server, such as `"http://localhost:8000/v1"`; `/v1` is added if it is missing. A query, such as
            `?api-version=2024`, is sent with each request.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds for one answer. A server that sends a byte now and then does not extend it.

    Raises:
        `ValueError`: If `url` is not a web address, or holds a user name.
    """

    def __init__(self, url: str, timeout: float = 600.0):
        self.timeout = timeout
        parsed = urlsplit(url)
        host, ports = (parsed.hostname or "").lower(), {"http": 80, "https": 443}
        if parsed.scheme not in ports or not host:
            raise ValueError(
                "`client` must be a client, or the address of a server such as 'http://localhost:8000/v1', got "
                f"{url!r}."
            )
        if parsed.username is not None:
            raise ValueError(
                "The address of a server must hold no user name or password, which would not be sent: pass a client, such as "
                "openai.OpenAI(base_url=..., api_key=...)."
            )
        path = parsed.path.rstrip("/").removesuffix("/chat/completions")
        path = path if path.endswith("/v1") else f"{path}/v1"
        self._base = Address(parsed.scheme, host, parsed.port or ports[parsed.scheme], path)
        self._query = f"?{parsed.query}" if parsed.query else ""
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if any(host == known or host.endswith(f".{known}") for known in _HUB_HOSTS):
            from huggingface_hub import get_token

            token = get_token()
            self._headers |= {"Authorization": f"Bearer {token}"} if token else {}
        self.completions = SimpleNamespace(create=partial(self._post, "completions"))
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=partial(self._post, "chat/completions")))

    def _post(self, route: str, extra_body: dict[str, Any] | None = None, **request: Any) -> Any:
        """The answer to a request, as JSON."""
        if request.get("stream"):
            return self._pieces(route, {**request, **(extra_body or {})})
        address, body = self._address(route), json.dumps({**request, **(extra_body or {})}).encode()
        try:
            ips = resolve(address, allow_private=True)  # the address is the user's, not the agent's
            answer = exchange(address, ips, self.timeout, _MAX_BYTES, "POST", self._headers, body)
        except FetchError as error:
            raise _not_fetched(error) from None
        text = answer.body.decode("utf-8", errors="replace")
        if answer.status >= 300:
            raise ServerError(f"HTTP {answer.status}: {_said(text)}", answer.status, answer.headers)
        return _read_object(text)

    def _pieces(self, route: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The pieces of a streamed answer; its only one, if the server sends the whole answer."""
        address, body = self._address(route), json.dumps(request).encode()
        headers = {**self._headers, "Accept": "text/event-stream, application/json"}
        try:
            ips = resolve(address, allow_private=True)
            status, given, lines = exchange_lines(address, ips, self.timeout, _MAX_BYTES, headers, body)
            if status >= 300:
                raise ServerError(f"HTTP {status}: {_said(chr(10).join(lines))}", status, given)
            if "event-stream" not in str(given.get("Content-Type", "")):
                yield _as_piece(_read_object("\n".join(lines)))
                return
            said_why = False
            for line in lines:
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:"):
                    continue
                if data == "[DONE]":
                    if not said_why:  # as of a whole answer, it is believed to have ended
                        yield {"choices": [{"finish_reason": "stop"}]}
                    return
                piece = _read_object(data)
                said_why = said_why or any(part(one, "finish_reason") for one in piece.get("choices") or [])
                yield piece
        except FetchError as error:
            raise _not_fetched(error) from None

    def _address(self, route: str) -> Address:
        return dataclasses.replace(self._base, target=f"{self._base.target}/{route}{self._query}")


def _not_fetched(error: FetchError) -> Exception:
    return ConnectionError(str(error)) if error.passing else RuntimeError(str(error))


def _as_piece(answer: dict[str, Any]) -> dict[str, Any]:
    """A whole answer as one piece of a stream."""
    choices = [
        {**one, "finish_reason": one.get("finish_reason") or "stop", "delta": one.get("message")}
        for one in answer.get("choices") or []
        if isinstance(one, dict)
    ]
    return {**answer, "choices": choices}


def _read_object(text: str) -> dict[str, Any]:
    try:
        found = read_json(text, nan_is_null=True)
    except ValueError:
        raise ServerError(f"its answer is no JSON but {text[:80]!r}") from None
    if not isinstance(found, dict):
        raise ServerError(f"its answer must be a JSON object, got {text[:80]!r}")
    return found


def _said(text: str) -> str:
    """The message in the body of an error, or the body."""
    try:
        error = read_json(text)
        error = error.get("error", error.get("detail", error))
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return text
