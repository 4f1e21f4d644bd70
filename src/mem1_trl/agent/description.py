"""How an agent is run, as it is written beside what it played: no file with keys or other secrets comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..json_text import as_json
from ..rollout.vllm_generator import VllmGenerator
from .checksum import tokenizer_checksum, weights_checksum

if TYPE_CHECKING:
    from .agent import Mem1Agent

_SECRET = (
    "auth", "authorization", "cookie", "cookies", "credential", "credentials", "header", "headers", "key", "keys", "password", "secret", "secrets", "token",
)  # fmt: skip
"""Ends of the names of arguments that are left out, such as `extra_headers` and `api_key`; `max_tokens` stays."""

_WAITING = ("timeout",)
"""Arguments that change no answer, but how long it is waited for."""


def describe_agent(agent: Mem1Agent) -> dict[str, Any]:
    """What [`Mem1Agent.describe`] returns."""
    model: dict[str, Any] = {"model": getattr(agent.endpoint, "model", None) or "endpoint", "weights": None}
    if agent.model is not None:
        name = getattr(agent.model.config, "_name_or_path", "") or type(agent.model).__name__
        model = {"model": name, "weights": weights_checksum(agent.model)}
    elif agent.endpoint is None and isinstance(agent.generate, VllmGenerator):
        model["model"] = agent.generate.name
    asked: dict[str, Any] = {}
    if agent.endpoint is not None:
        asked = {
            "backend": agent.endpoint.backend or "offered",
            "request_kwargs": public_kwargs(agent.endpoint.chat.request_kwargs),
        }
    return {
        **model,
        "tokenizer": tokenizer_checksum(agent.tokenizer),
        **asked,
        **agent.settings.to_dict(),
        "protocol": agent.protocol.to_dict(),
    }


def differing_settings(old: Mapping[str, Any], new: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """
    Names of the settings in which two descriptions differ. A model with the same weights is the same, from whichever path it was loaded.

    Args:
        old, new (`Mapping`):
            What [`Mem1Agent.describe`] returned, and other settings.
        names (`Iterable[str]`):
            Names to compare.
    """
    weights = old.get("weights")
    same = {"model"} if weights is not None and weights == new.get("weights") else set()
    return [name for name in names if name not in same and old.get(name) != new.get(name)]


def public_kwargs(request_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Those of the arguments of a request that decide its answer, ready for JSON: without headers, keys and other secrets, at any depth.

    `{"extra_headers": {"X-Api-Key": "s3"}, "extra_body": {"api_key": "s3", "min_p": 0.1}, "max_tokens": None}` becomes
    `{"extra_body": {"min_p": 0.1}, "max_tokens": None}`.
    """
    kept: dict[str, Any] = as_json(_public(request_kwargs))
    return kept


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _public(inner) for name, inner in value.items() if _decides(str(name).lower())}
    return [_public(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _decides(name: str) -> bool:
    return name not in _WAITING and not name.endswith(_SECRET)
