"""Tools that run elsewhere: the agent asks for them, and whoever plays the episode brings their results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from keyword import iskeyword
from operator import or_
from types import NoneType
from typing import Any, Literal

from ..environment_runtime.tools import RESERVED_NAMES, environment_of, is_action_name

_KINDS: dict[Any, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": NoneType,
}

_TOLD_BY = {"properties": "object", "additionalProperties": "object", "items": "array", "prefixItems": "array"}
"""Words of a schema -> the type that it has if it does not say so."""

_DEEPEST = 16
"""Schemas inside each other of which the types are read."""

_MOST = 500
"""Schemas of one argument of which the types are read, each as often as it is referred to."""


def environment_of_schemas(schemas: Sequence[Mapping[str, Any]]) -> Any:
    """
    An environment whose actions are described by JSON schemas and run elsewhere.

    Args:
        schemas (`Sequence[Mapping]`):
            Tools as OpenAI's API describes them: `{"type": "function", "function": {"name", "description", "parameters"}}`.

    Raises:
        `ValueError`: If one is no such mapping, a name cannot be that of an action or of its argument, or two are the same.
    """
    for schema in schemas:
        function = schema.get("function") if isinstance(schema, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                "Each of `schemas` must be as OpenAI's API describes a tool, {'type': 'function', 'function': {'name': ..., 'parameters': ...}}, "
                f"got {schema!r:.200}."
            )
        _check_names(function)
    return environment_of([_stub(schema["function"]) for schema in schemas])


def _check_names(function: Mapping[str, Any]) -> None:
    name, parameters = function["name"], function.get("parameters") or {}
    if not is_action_name(name):
        raise ValueError(
            f"The tool {name!r:.80} cannot be offered to this agent: a tool's name must be made of letters, digits and underscores, begin with a "
            f"letter, and be none of {', '.join(RESERVED_NAMES)}."
        )
    for argument in parameters.get("properties") or {}:
        if not argument.isidentifier() or iskeyword(argument):
            raise ValueError(
                f"The tool {name!r:.80} has an argument {argument!r:.80}, which cannot be one here: it must be made of letters, digits and "
                "underscores, and be no word of Python."
            )


def _stub(function: Mapping[str, Any]) -> Callable[..., Any]:
    """A function with the signature and the docstring that a schema describes."""

    def outside(**arguments: Any) -> None:
        raise RuntimeError("This tool runs elsewhere.")

    outside.__annotations__ = {}  # of its own arguments, whose name a tool's may have
    parameters = function.get("parameters") or {}
    described = parameters.get("properties") or {}
    required = parameters.get("required") or []
    ordered = sorted(described, key=lambda name: name not in required)  # those with a default come last
    places = []
    lines = [" ".join(str(function.get("description") or function["name"]).split()), "", "Args:"]
    for name in ordered:
        about = described[name] if isinstance(described[name], Mapping) else {}
        kind = _SchemaKinds(parameters).of(about)
        default = inspect.Parameter.empty if name in required else about.get("default")
        places.append(
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
        )
        outside.__annotations__[name] = kind
        lines.append(f"    {name}: {name}")  # its description might hold words that mean something in a docstring
    outside.__annotations__["return"] = str
    outside.__signature__ = inspect.Signature(places)  # type: ignore[attr-defined]
    outside.__name__ = outside.__qualname__ = function["name"]
    outside.__doc__ = "\n".join(lines if described else lines[:1])
    return outside


class _SchemaKinds:
    """
    The Python types of values that a JSON schema describes, as far as an agent's text is converted to them; `Any` leaves it as it is.

    Args:
        whole (`Mapping`):
            The schema of all arguments, in which `$ref` names places.
    """

    def __init__(self, whole: Mapping[str, Any]):
        self._whole = whole
        self._opened: list[str] = []
        self._left = _MOST

    def of(self, schema: Any, depth: int = 0) -> Any:
        """The type of a schema: that of `{"type": ["integer", "null"]}` is `int | None`."""
        self._left -= 1
        if not isinstance(schema, Mapping) or depth > _DEEPEST or self._left < 0:
            return Any
        kind = self._not_null(schema, depth + 1)
        return _either([kind, NoneType]) if schema.get("nullable") is True else kind

    def _not_null(self, schema: Mapping[str, Any], depth: int) -> Any:
        if isinstance(schema.get("$ref"), str):
            return self._referred(schema["$ref"], depth)
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(choices, list) and choices:
            return _one_of(choices)
        names = schema.get("type") or next((kind for word, kind in _TOLD_BY.items() if word in schema), None)
        if names is not None:
            names = names if isinstance(names, list) else [names]
            return _either([self._named(one, schema, depth) for one in names])
        for word in ("anyOf", "oneOf"):
            if isinstance(schema.get(word), list):
                return _either([self.of(one, depth) for one in schema[word]])
        parts = schema.get("allOf")
        kinds = [self.of(one, depth) for one in parts] if isinstance(parts, list) else []
        return next((kind for kind in kinds if kind is not Any), Any)

    def _named(self, name: Any, schema: Mapping[str, Any], depth: int) -> Any:
        """The type of one of the names that a schema gives, with the type of what is in it."""
        kind = _KINDS.get(name, Any) if isinstance(name, str) else Any
        if kind is list and isinstance(schema.get("items"), Mapping):
            return list[self.of(schema["items"], depth)]  # type: ignore[misc]
        if kind is dict and isinstance(schema.get("additionalProperties"), Mapping) and not schema.get("properties"):
            return dict[str, self.of(schema["additionalProperties"], depth)]  # type: ignore[misc]
        return kind

    def _referred(self, place: str, depth: int) -> Any:
        """The type of the schema at a place such as `#/$defs/Point`; one that holds itself is `Any` inside."""
        if place in self._opened:
            return Any
        found: Any = self._whole
        for step in place.split("/")[1:]:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        self._opened.append(place)
        kind = self.of(found, depth)
        self._opened.pop()
        return kind


def _either(kinds: list[Any]) -> Any:
    """A union of types; with `Any` it is that."""
    if not kinds or Any in kinds:
        return Any
    # A text becomes the first of them that it can be: 3, not 3.0
    return reduce(or_, sorted(kinds, key=lambda kind: kind is float))


def _one_of(choices: list[Any]) -> Any:
    """The type of values of which there are so many; lists and objects, which cannot be compared with a text, may be any."""
    literal: Any = Literal
    plain = tuple(one for one in choices if isinstance(one, (str, int, float)))
    kinds = [type(one) for one in choices if not isinstance(one, (str, int, float))]
    return _either([*([literal[plain]] if plain else []), *dict.fromkeys(kinds)])
