"""Python code that makes an environment again, for the card of a model that was trained in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import length_hint
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """
    How an environment is made again.

    Attributes:
        code (`str`):
            A Python expression, in which the class of the environment is known.
        missing (`Mapping[str, str]`):
            Further names in `code` that the reader must define -> what stood there in the run.
        contents (`Mapping[str, Any]`):
            What `code` does not say all about: objects in place of which it has a name, or the path of a file, which may change. What has a
            `checksum` is told from another by it.
    """

    code: str
    missing: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, Any] = field(default_factory=dict)


def recipe_of_call(function: str, end: str = "", /, **arguments: Any) -> Recipe:
    """
    The recipe that calls a function, such as `recipe_of_call("Shop", shop=shop, size=3)`: "Shop(shop=shop, size=3)".

    Args:
        function (`str`):
            The function, as the code writes it.
        end (`str`, *optional*):
            What the code writes after the call.
        **arguments:
            Its arguments. One whose value no code can write, such as an index, is missing under its name; paths are texts.
    """
    written, missing, contents = [], {}, {}
    for name, value in arguments.items():
        value = str(value) if isinstance(value, Path) else value
        if _is_plain(value):
            written.append(f"{name}={value!r}")
        else:
            written.append(f"{name}={name}")
            missing[name] = _described(value)
            if not hasattr(value, "__qualname__"):
                contents[name] = value
    return Recipe(f"{function}({', '.join(written)}){end}", missing, contents)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(one) for key, one in value.items())
    return value is None or type(value) in (str, int, float, bool)


def _described(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    if name:
        return f"the function or class {name}"
    size = length_hint(value, -1)
    return f"a {type(value).__name__}" + (f" of {size:,}" if size >= 0 else "")
