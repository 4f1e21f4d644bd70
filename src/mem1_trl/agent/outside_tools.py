"""Tools that run elsewhere: the agent asks for them, and whoever plays the episode brings their results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from keyword import iskeyword
from typing import Any

from ..environment_runtime.tools import RESERVED_NAMES, environment_of, is_action_name

_KINDS: dict[Any, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
}


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
        kind = _KINDS.get(about.get("type"), Any) if isinstance(about.get("type"), str) else Any
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
