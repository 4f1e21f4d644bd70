"""The arguments of a method, and conversion of the values that an agent writes to their types."""

from __future__ import annotations

import collections.abc as abc
import inspect
import json
import math
from dataclasses import dataclass
from enum import Enum
from types import NoneType, SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from ..json_text import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


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


class Unresolved(str):
    """A type hint that names what only a type checker knows."""


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotated types of a function by name. One that only a type checker can resolve is left out, the others are kept."""
    try:
        return get_type_hints(function)
    except Exception:  # one of them does not resolve: each by itself
        inner = inspect.unwrap(function)
        names = getattr(inner, "__globals__", {})
        found: dict[str, Any] = {}
        for name, annotation in getattr(inner, "__annotations__", {}).items():
            one: Any = SimpleNamespace(__annotations__={name: annotation})
            try:
                found |= get_type_hints(one, names)
            except Exception:
                continue
        return found


def read_parameters(method: Callable[..., Any]) -> dict[str, Parameter]:
    """
    The arguments of a method that can be passed by name, in order; `*args` and `**kwargs` are left out.

    One whose default is `None` may be `None`, as `size: int = None` is meant.
    """
    hints = type_hints(method)
    found = {}
    for p in inspect.signature(method).parameters.values():
        if p.kind in _BY_NAME:
            kind = hints.get(p.name, str)
            if p.annotation is not inspect.Parameter.empty and p.name not in hints:
                kind = Unresolved(p.annotation)
            elif p.default is None and kind is not Any:
                kind = Union[kind, None]  # noqa: UP007  # a hint may be a text
            found[p.name] = Parameter(kind, p.default is inspect.Parameter.empty)
    return found


def check_types(parameters: Mapping[str, Parameter], name: str, kind: str) -> None:
    """
    Refuse an action that would get something else than the type it declares.

    Args:
        parameters (`Mapping[str, Parameter]`):
            Its arguments.
        name, kind (`str`):
            The action, and what it is one of, for the message.

    Raises:
        `ValueError`: If nothing that an agent writes is converted to the type of an argument.
    """
    for argument, parameter in parameters.items():
        if isinstance(parameter.kind, Unresolved):
            raise ValueError(
                f"The argument {argument!r} of the action {name!r} of {kind} has the type hint {parameter.kind!s}, which cannot be resolved: "
                "import its names where the class is defined, and not only under TYPE_CHECKING."
            )
        if not is_readable(parameter.kind):
            declared = parameter.kind.__name__ if isinstance(parameter.kind, type) else parameter.kind
            raise ValueError(
                f"The argument {argument!r} of the action {name!r} of {kind} has the type {declared}, to which nothing that an agent "
                "writes is converted: declare a text, number, truth value, Literal, enumeration, or a list or dictionary of these, and "
                "make the rest in the action."
            )


def positional_only(method: Callable[..., Any]) -> list[str]:
    """The arguments of a method that cannot be passed by name although they have one."""
    parameters = inspect.signature(method).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY]


def without_variadic(method: Callable[..., Any]) -> Callable[..., Any]:
    """
    A function that is described as a method is, without its `*args` and `**kwargs`. Not to be called.

    Raises:
        `ValueError`: If the type hint of an argument cannot be resolved.
    """
    signature = inspect.signature(method)
    named = [p for p in signature.parameters.values() if p.kind in _BY_NAME]
    hints = type_hints(method)
    for p in named:
        if p.annotation is not inspect.Parameter.empty and p.name not in hints:
            raise ValueError(f"The type hint {p.annotation!r} of the argument {p.name!r} cannot be resolved.")

    def described() -> None: ...

    described.__name__, described.__doc__ = method.__name__, inspect.getdoc(method)
    described.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    kept = {p.name for p in named} | {"return"}
    described.__annotations__ = {name: kind for name, kind in hints.items() if name in kept}
    return described


_CONTAINERS: dict[Any, type] = {
    list: list, tuple: tuple, set: set, frozenset: frozenset, dict: dict,
    abc.Iterable: list, abc.Collection: list, abc.Sequence: list, abc.MutableSequence: list,
    abc.Set: frozenset, abc.MutableSet: set, abc.Mapping: dict, abc.MutableMapping: dict,
}  # fmt: skip
"""Container that a method may declare -> the one that it gets."""


def is_readable(kind: Any) -> bool:
    """Whether [`coerce`] knows how to make a value of this type from what an agent writes, or leaves it as it is on purpose."""
    kind = _plain_kind(kind)
    origin = get_origin(kind)
    if origin is Literal:
        return True
    if origin in (Union, UnionType) or origin in _CONTAINERS:
        return all(one is Ellipsis or is_readable(one) for one in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return True
    return kind in (Any, object, str, bool, int, float, NoneType) or kind in _CONTAINERS or isinstance(kind, TypeVar)


def _plain_kind(kind: Any) -> Any:
    """What a name for a type stands for (`NewType`, `type X = ...`, `TypedDict`)."""
    while hasattr(kind, "__supertype__") or type(kind).__name__ == "TypeAliasType":
        kind = kind.__supertype__ if hasattr(kind, "__supertype__") else kind.__value__
    return dict if is_typeddict(kind) else NoneType if kind is None else kind


def coerce(value: Any, kind: Any) -> Any:
    """
    A value that an agent wrote, as text or in JSON, converted to the type that a method declares.

    `coerce("3", int)` and `coerce(3.0, int)` are 3, `coerce('["1"]', list[int])` is `[1]`, `coerce(3, str)` is `"3"`, and
    `coerce("up", Way)` the member of an enumeration that has this value. A value of a type that is not listed here is left as it is.

    Args:
        value (`Any`):
            Text, number, boolean, list, dictionary or `None`.
        kind (`Any`):
            Annotated type.

    Raises:
        `ValueError`: If the value cannot be converted. The message is phrased for the agent.
    """
    kind = _plain_kind(kind)
    if get_origin(kind) in (Union, UnionType):
        return _typed_union(value, get_args(kind))
    if get_origin(kind) is Literal:
        return _choice(value, get_args(kind))
    kind, inner = get_origin(kind) or kind, get_args(kind)
    if kind is NoneType:
        if value is None or (isinstance(value, str) and value.strip().lower() in ("null", "none")):
            return None
        raise ValueError(f"{value!r:.80} is not null.")
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(_choice(value, tuple(member.value for member in kind)))
    if value is None and (kind in (bool, int, float, str) or kind in _CONTAINERS):
        raise ValueError("null is not allowed.")
    if kind is bool:
        return _boolean(value)
    if kind in (int, float):
        return _number(value, kind)
    if kind is str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if kind in _CONTAINERS:
        return _container(value, _CONTAINERS[kind], inner)
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
    value = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
    for choice in choices:
        if value == choice or (isinstance(value, str) and value in _spellings(choice)):
            return choice
    raise ValueError(f"{value!r:.80} is not one of {', '.join(map(repr, choices))}.")


def _spellings(choice: Any) -> tuple[str, ...]:
    """How a choice is written where everything is text; a truth value as in Python or as in JSON."""
    return (str(choice), str(choice).lower()) if isinstance(choice, bool) else (str(choice),)


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


def _container(value: Any, kind: type, inner: tuple[Any, ...]) -> Any:
    """A list, or an object for a dictionary, as the container `kind`, with entries of the types `inner` if there are any."""
    if isinstance(value, str):
        try:
            value = read_json(value)
        except ValueError as error:
            raise ValueError(f"{value!r:.80} is not valid JSON: {error}.") from None
    if kind is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r:.80} is not an object.")
        if len(inner) == 2:
            return {coerce(name, inner[0]): coerce(one, inner[1]) for name, one in value.items()}
        return value
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.80} is not a list.")
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            raise ValueError(f"{value!r:.80} must have {len(inner)} {'entry' if len(inner) == 1 else 'entries'}.")
        return tuple(map(coerce, value, inner))
    made = [coerce(item, inner[0]) for item in value] if inner else value
    if kind is list:
        return made
    refusal = ValueError(f"{value!r:.80} is not a set: its entries must be texts or numbers.")
    # A list may have become a tuple, which a set takes, but not the text of a list
    if kind is not tuple and any(
        isinstance(item, (list, dict)) and isinstance(one, str) for item, one in zip(value, made)
    ):
        raise refusal
    try:
        return kind(made)
    except TypeError:
        raise refusal from None
