"""
Rules by name: the built-in ones, and classes of yours by their import path, such as `my_rules:FirstAndLast`.

A path in a file, which may come with a model from anywhere, imports nothing: the class is used if its module has been imported already.
Only [`import_rule`], which is called for what a user wrote in a configuration or on the command line, imports.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from .appended import External, Full, Mem1, Truncate
from .by_action import Fold, OnDemand
from .compact import Compact
from .rule import ContextRule

RULES: dict[str, type[ContextRule]] = {
    "mem1": Mem1,
    "full": Full,
    "truncate": Truncate,
    "external": External,
    "compact": Compact,
    "on_demand": OnDemand,
    "fold": Fold,
}
"""Name -> class of the rules that come with the package."""


def describe_rule(rule: ContextRule) -> tuple[str, dict[str, Any]]:
    """
    Name and parameters of a rule, from which [`make_rule`] makes it again.

    Raises:
        `ValueError`: If its class cannot be found by an import path, since it is defined inside a function.
    """
    kind = type(rule)
    name = next((name for name, known in RULES.items() if known is kind), None)
    if name is None:
        name = f"{kind.__module__}:{kind.__qualname__}"
        if _loaded(name) is not kind:
            raise ValueError(
                f"The context rule {kind.__qualname__} must be found by its name in {kind.__module__}, so that it can be saved with a "
                "model: define the class at the top level of a module."
            )
    return name, rule.parameters


def make_rule(name: str, parameters: Mapping[str, Any] | None = None) -> ContextRule:
    """
    The rule of a name, without importing anything.

    Args:
        name (`str`):
            One of `RULES`, or the import path of a class whose module has been imported.
        parameters (`Mapping`, *optional*):
            What it is made with.

    Raises:
        `ValueError`: If there is no such rule, or it has no such parameters.
    """
    kind = RULES.get(name)
    if kind is None and ":" not in name:
        raise ValueError(
            f"context must be one of {', '.join(map(repr, RULES))}, or the import path of a rule of yours, 'module:Class', got {name!r}."
        )
    kind = kind or _loaded(name)
    if kind is None:
        raise ValueError(
            f"The context rule {name!r} must have been imported, since nothing is imported because a file says so: import its module "
            "first, or pass the rule (`context=`, `--context`), if you trust it."
        )
    try:
        return kind(**(parameters or {}))
    except TypeError as error:
        raise ValueError(
            f"context_kwargs must be parameters of context={name!r}, got {parameters!r}: {error}."
        ) from None


def is_loaded(name: str) -> bool:
    """Whether [`make_rule`] would find the class of a name."""
    return name in RULES or _loaded(name) is not None


def import_rule(name: str) -> None:
    """
    Import the module of a rule that a user has named; a built-in one needs none.

    Raises:
        `ValueError`: If there is no such module, or no rule in it.
    """
    module, found, _ = name.partition(":")
    if name in RULES or not found:
        return
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"context={name!r} must name a module that can be imported: {error}.") from None
    if _loaded(name) is None:
        raise ValueError(f"context={name!r} must name a class of {module} that is a ContextRule, got something else.")


def _loaded(name: str) -> type[ContextRule] | None:
    """The class of an import path, if its module has been imported and it is a rule."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, ContextRule) else None
