"""The arguments of a method, and conversion of the values that an agent writes to their types."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..json_text import read_json

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Parameter:
    """
    One argument of an action.

    Attributes:
        kind (`Any`):
            Annotated type; `str` if there is none.
        required (`bool`):
            Whether the argument has no default.
    """

    kind: Any
    required: bool


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def read_parameters(method: Callable[..., Any]) -> dict[str, Parameter]:
    """The arguments of a method that can be passed by name, in order; `*args` and `**kwargs` are left out."""
    try:
        hints = get_type_hints(method)
    except (NameError, TypeError):  # annotations that only a type checker can resolve
        hints = {}
    return {
        p.name: Parameter(hints.get(p.name, str), p.default is inspect.Parameter.empty)
        for p in inspect.signature(method).parameters.values()
        if p.kind in _BY_NAME
    }


def positional_only(method: Callable[..., Any]) -> list[str]:
    """The arguments of a method that cannot be passed by name although they have one."""
    parameters = inspect.signature(method).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY]


def without_variadic(method: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is described as a method is, without its `*args` and `**kwargs`. Not to be called."""
    signature = inspect.signature(method)
    named = [p for p in signature.parameters.values() if p.kind in _BY_NAME]

    def described() -> None: ...

    described.__name__, described.__doc__ = method.__name__, inspect.getdoc(method)
    described.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    kept = {p.name for p in named} | {"return"}
    described.__annotations__ = {name: kind for name, kind in get_type_hints(method).items() if name in kept}
    return described


def coerce(value: Any, kind: Any) -> Any:
    """
    A value that an agent wrote, as text or in JSON, converted to the type that a method declares.

    `coerce("3", int)` and `coerce(3.0, int)` are 3, `coerce("[1]", list[int])` is `[1]`, `coerce(3, str)` is `"3"`. The contents of
    lists and dictionaries are left as they are, and so is a value of a type that is not listed here.

    Args:
        value (`Any`):
            Text, number, boolean, list, dictionary or `None`.
        kind (`Any`):
            Annotated type.

    Raises:
        `ValueError`: If the value cannot be converted. The message is phrased for the agent.
    """
    if get_origin(kind) in (Union, UnionType):
        return _typed_union(value, get_args(kind))
    if get_origin(kind) is Literal:
        return _choice(value, get_args(kind))
    kind = get_origin(kind) or kind
    if kind is NoneType:
        if value is None or (isinstance(value, str) and value.strip().lower() in ("null", "none")):
            return None
        raise ValueError(f"{value!r:.80} is not null.")
    if value is None and kind in (bool, int, float, str, list, tuple, set, dict):
        raise ValueError("null is not allowed.")
    if kind is bool:
        return _boolean(value)
    if kind in (int, float):
        return _number(value, kind)
    if kind is str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if kind in (list, tuple, set, dict):
        return _container(value, kind)
    return value


def _typed_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    """A value that has one of the types is unchanged; else it is converted to the first type that accepts it, `str` and `None` last."""
    plain = [kind for kind in kinds if kind is not NoneType]
    if value is None and NoneType in kinds:
        return None
    for kind in plain:
        if isinstance(kind, type) and type(value) is kind:
            return value
    problem = None
    for kind in sorted(plain, key=lambda kind: kind is str):
        try:
            return coerce(value, kind)
        except ValueError as error:
            problem = problem or error
    if NoneType in kinds:
        try:
            return coerce(value, NoneType)
        except ValueError:
            pass
    raise problem or ValueError(f"{value!r:.80} is not allowed.")


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if value == choice or (isinstance(value, str) and value == str(choice)):
            return choice
    raise ValueError(f"{value!r:.80} is not one of {', '.join(map(repr, choices))}.")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise ValueError(f"{value!r:.80} is neither true nor false.")


def _number(value: Any, kind: type[int] | type[float]) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r:.80} is not a number.")
    try:
        if kind is int and isinstance(value, int):
            return value
        if kind is int and isinstance(value, str) and not any(c in value for c in ".eE"):
            return int(value)
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r:.80} is not a number.") from None
    if kind is float:
        return number
    if number != int(number):
        raise ValueError(f"{value!r:.80} is not a whole number.")
    return int(number)


def _container(value: Any, kind: type) -> Any:
    if isinstance(value, str):
        try:
            value = read_json(value)
        except ValueError as error:
            raise ValueError(f"{value!r:.80} is not valid JSON: {error}.") from None
    wanted = dict if kind is dict else list
    if not isinstance(value, wanted):
        raise ValueError(f"{value!r:.80} is not {'an object' if wanted is dict else 'a list'}.")
    if kind is set and any(isinstance(item, (list, dict)) for item in value):
        raise ValueError(f"{value!r:.80} is not a set: its entries must be texts or numbers.")
    return value if kind in (list, dict) else kind(value)
