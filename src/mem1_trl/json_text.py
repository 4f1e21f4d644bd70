"""JSON that strangers wrote, read so that nothing but a `ValueError` comes of it; and JSON that every reader understands."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

DEEPEST = 64
"""Lists and objects inside each other that are read. What is deeper can be parsed, but not printed or written again."""

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")


def read_json(text: str | bytes, nan_is_null: bool = False, strict: bool = True) -> Any:
    """
    The value of a JSON text, whoever wrote it.

    Args:
        text (`str` or `bytes`):
            The text; bytes may begin with a byte order mark.
        nan_is_null (`bool`, *optional*, defaults to `False`):
            Whether a number that is not finite (`NaN`, `Infinity`, `1e999`), which JSON does not have but many programs write,
            is read as `None` instead of refused.
        strict (`bool`, *optional*, defaults to `True`):
            Whether line breaks and other control characters are refused inside strings.

    Raises:
        `ValueError`: If it is not JSON, holds a number of thousands of digits, or is nested more than [`DEEPEST`] deep. The message
            is a part of a sentence, such as `"Expecting value, at character 1"`.
    """

    def constant(name: str) -> None:
        if not nan_is_null:
            raise ValueError(f"{name} is not a number of JSON")

    def number(digits: str) -> float | None:
        value = float(digits)
        if math.isfinite(value):
            return value
        constant(f"{digits:.20}")
        return None

    try:
        value = json.loads(text, parse_constant=constant, parse_float=number, strict=strict)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}, at character {error.pos + 1}") from None
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    except ValueError as error:  # a number of more digits than Python converts, or `constant`
        raise ValueError("a number has too many digits" if "digits" in str(error) else str(error)) from None
    opened = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if opened > DEEPEST and too_deep(value):
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    return value


def too_deep(value: Any) -> bool:
    """Whether lists and objects are inside each other more than `DEEPEST` times."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def read_json_object(path: str | os.PathLike[str], advice: str) -> dict[str, Any]:
    """
    The object that a JSON file holds.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        advice (`str`):
            What to do about a file that holds something else, as the end of the message.

    Raises:
        `ValueError`: If the file is not JSON, or not an object.
    """
    try:
        value = read_json(Path(path).read_bytes(), nan_is_null=True)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {advice}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(value).__name__}: {advice}")
    return value


def write_json(value: Any, indent: int | None = None) -> str:
    """
    JSON that every reader understands, and that can be written to any file: numbers that are not finite become `null`, a lone
    surrogate its escape, an array a list, and any other object, a key as well, what it is printed as.

    Args:
        value (`Any`):
            Anything.
        indent (`int`, *optional*):
            Spaces by which inner lines are moved to the right. `None` writes one line.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=plain)
    except (ValueError, TypeError):  # a number that is not finite, or a key that is no text
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    # Surrogates stand inside of strings only, where the escape of Python is that of JSON
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_whole(path: str | os.PathLike[str], parts: str | Iterable[str]) -> None:
    """
    Write a text, or its parts one after the other, such that the file is there whole or not at all, whoever else writes it meanwhile.

    A file that is replaced keeps its permissions, and a symbolic link to it stays one.
    """
    target = Path(path).resolve()
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines([parts] if isinstance(parts, str) else parts)
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    except OSError as error:
        if error.filename != str(partial):  # of where the parts come from
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing is left
            partial.unlink()


def as_json(value: Any) -> Any:
    """`value` as it comes back from a file: a tuple is a list, a key is a text."""
    return json.loads(write_json(value))


def is_json(value: Any) -> bool:
    """Whether a value comes back from a file as it is; a tuple comes back as a list."""
    if isinstance(value, (list, tuple)):
        return all(map(is_json, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and is_json(item) for name, item in value.items())
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def with_nan(numbers: Any) -> Any:
    """A list or mapping of numbers in which `null`, which [`write_json`] puts in place of one that is not finite, is `nan` again."""
    if isinstance(numbers, Mapping):
        return {name: math.nan if value is None else value for name, value in numbers.items()}
    if isinstance(numbers, list) and None in numbers:
        return [math.nan if value is None else value for value in numbers]
    return numbers


def plain(value: Any) -> Any:
    """
    What JSON has no word for: arrays become lists, images and the like the checksum of their bytes, anything else what it is printed as, without
    its address, which is another one in each process.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if callable(getattr(value, "tobytes", None)):
        return f"{type(value).__name__}, sha256 {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    return _ADDRESS.sub("", str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {
            key if key is None or isinstance(key, (str, int, float)) else str(key): _finite(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return _finite(plain(value))
