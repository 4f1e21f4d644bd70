"""The source of an environment for a model card, where the one of the run is a class that the reader may not have."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import typing
from typing import Any

from ..environment_runtime.actions import action_methods
from ..environment_runtime.arguments import type_hints

_WORD = re.compile(r"\w+")
_QUALIFIED = re.compile(r"typing\.\w+")


def environment_stub(environment: Any) -> str:
    """
    The source of a class with the actions of an environment, whose methods the user fills in.

    An agent reads of it what it read of the environment itself: names, arguments, types, defaults and docstrings are kept, those of an
    asynchronous method, too. A type that is defined elsewhere becomes `str`, a default that no code can write `None`.
    """
    lines = ["class Environment:", "    def reset(self, **row):", "        return None"]
    methods = action_methods(environment)
    signatures = {name: _signature(method) for name, method in methods.items()}
    for name, method in methods.items():
        lines += [
            "",
            f"    def {name}{signatures[name]}:",
            textwrap.indent(_docstring(inspect.getdoc(method) or name), " " * 8),
            '        return ""  # call the real environment here',
        ]
    written = " ".join(signatures.values())
    if "typing." in written:  # inside another type they are written with their module
        lines[:0] = ["import typing", "", ""]
    imported = sorted(set(_WORD.findall(_QUALIFIED.sub("", written))) & set(typing.__all__))
    if imported:
        lines[:0] = [f"from typing import {', '.join(imported)}", "", ""]
    return "\n".join(lines)


def _signature(method: Any) -> str:
    """The arguments of a method that an agent can give, in brackets."""
    empty, hints = inspect.Parameter.empty, type_hints(method)
    given = list(inspect.signature(method).parameters.values())
    only = any(one.kind is one.POSITIONAL_ONLY for one in given)
    kind = inspect.Parameter.POSITIONAL_ONLY if only else inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", kind)]
    for one in given:
        if one.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        default = one.default if one.default is empty or _is_literal(one.default) else None
        annotation = empty if one.annotation is empty else _known_type(hints.get(one.name, str))
        parameters.append(one.replace(default=default, annotation=annotation))
    return str(inspect.Signature(parameters))


def _is_literal(value: Any) -> bool:
    """Whether code can write a value as it is printed."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False


def _known_type(kind: Any) -> Any:
    """A type, or `str` in place of one whose name means nothing without an import of its own."""
    try:
        return kind if eval(inspect.formatannotation(kind), {**vars(typing), "typing": typing}) == kind else str
    except (NameError, AttributeError, SyntaxError, TypeError):
        return str


def _docstring(text: str) -> str:
    """A text as it is written below a `def`."""
    if '"' in text or "\\" in text:
        return repr(text)
    return f'"""{text}"""' if "\n" not in text else f'"""\n{text}\n"""'
