"""Values from files against the types of a dataclass, with one sentence for the first that does not fit."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache
from operator import index
from typing import Any

_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null", dict: "an object",
    list: "a list", Any: "anything",
}  # fmt: skip


LARGEST_SEED = 2**63 - 1
"""Of PyTorch's generators, and of keys that are signed numbers of 64 bits."""


def check_whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """
    A whole number of an argument, also one of NumPy.

    Args:
        name (`str`):
            The argument.
        value (`Any`):
            What was given.
        least, most (`int`, *optional*):
            The smallest and the largest that it may be.

    Raises:
        `ValueError`: If it is not one, or out of that range.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limits}, got {value!r}.")
    return number


def check_seed(seed: Any, name: str = "seed", most: int = LARGEST_SEED) -> int:
    """As [`check_whole`], for a seed."""
    return check_whole(name, seed, 0, most)


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type that `hint` is."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a YAML or JSON file is of an annotated type. A whole number is a number, a tuple is written as a list."""
    return any(_fits_one(value, *_kind(member)) for member in members(hint))


def is_wrong_number(value: Any, hint: Any) -> bool:
    """
    Whether a value is a number or a boolean, and not of an annotated type.

    A boolean for a text passes, because libraries give some of their words as booleans (`fsdp=True`, `scale_rewards=False`).
    """
    if not isinstance(value, (bool, int, float)) or fits(value, hint):
        return False
    return not (isinstance(value, bool) and str in members(hint))


def is_wrong_collection(value: Any, hint: Any) -> bool:
    """
    Whether a value is a list or a mapping, and neither it nor an entry of it is of an annotated type.

    An entry of a type that no file has, such as a number of NumPy, is accepted. So is a text where the annotation is an enumeration.
    """
    if not isinstance(value, (list, tuple, Mapping)) or fits(value, hint):
        return False
    kinds = [_kind(member) for member in members(hint)]
    if isinstance(value, Mapping):
        return all(kind is not dict for kind, _ in kinds)
    return not any(kind is list and all(_may_be_entry(one, inner) for one in value) for kind, inner in kinds)


def _may_be_entry(value: Any, hint: Any) -> bool:
    if isinstance(value, str) and isinstance(hint, type) and issubclass(hint, Enum):
        return True
    return fits(value, hint) or not isinstance(value, (bool, int, float, str, list, tuple, Mapping, type(None)))


def described(hint: Any) -> str:
    """An annotated type in words, such as `"text or null"`."""
    found: list[str] = []
    for kind, inner in map(_kind, members(hint)):
        if typing.get_origin(kind) is typing.Literal:
            found += map(repr, typing.get_args(kind))
            continue
        each = f", each entry {described(inner)}" if inner is not Any else ""
        found.append(_WORDS.get(kind, getattr(kind, "__name__", str(kind))) + each)
    return " or ".join(found)


def check_fields(record: Mapping[str, Any], kind: type, where: str, advice: str) -> None:
    """
    Refuse a record whose values are not those of a dataclass.

    Args:
        record (`Mapping`):
            What a file holds.
        kind (`type`):
            The dataclass.
        where (`str`):
            What the record is, as the beginning of the message.
        advice (`str`):
            What to do about it, as the end of the message.

    Raises:
        `ValueError`: If a field is not known, which would be ignored silently, is missing without a default, or of another type.
    """
    hints = type_hints(kind)
    unknown = sorted(map(str, set(record) - set(hints)))
    if unknown:
        raise ValueError(
            f"{where} has {', '.join(map(repr, unknown))}, which this version of mem1-trl does not know: upgrade mem1-trl."
        )
    for field in fields(kind):
        if field.name not in record:
            if field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"{where} has no {field.name!r}: {advice}")
        elif not fits(record[field.name], hints[field.name]):
            raise ValueError(
                f"{where} has {field.name}={_short(record[field.name])}, which must be {described(hints[field.name])}: {advice}"
            )


type_hints = cache(typing.get_type_hints)
"""The types of the fields of a dataclass, by name."""


def _kind(hint: Any) -> tuple[Any, Any]:
    """The class of a value in a file, and the type of what it holds."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, tuple):
        return list, inner[0]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict, inner[1]
    return hint, Any


def _fits_one(value: Any, kind: Any, inner: Any) -> bool:
    if kind is Any:
        return True
    if kind is list:
        if not isinstance(value, (list, tuple)):
            return False
        if all(_kind(member)[0] not in (list, dict) for member in members(inner)):
            value = {type(item): item for item in value}.values()  # one of each is enough: lists of token ids are long
        return all(fits(item, inner) for item in value)
    if typing.get_origin(kind) is typing.Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(kind))
    if kind is dict:
        return isinstance(value, Mapping) and all(isinstance(k, str) and fits(v, inner) for k, v in value.items())
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
