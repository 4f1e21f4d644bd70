"""
Rules by name: the built-in ones, and classes of yours by their import path, such as `my_rules:FirstAndLast`.

A path in a file, which may come with a model from anywhere, imports nothing: the class is used if its module has been imported already.
Only [`import_rule`], which is called for what a user wrote in a configuration or on the command line, imports.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from ..json_text import as_json, is_json
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

    A rule is run as these make it, a tuple as the list that it is in a file, so that a saved model has the very rule it was trained with.

    Raises:
        `ValueError`: If its class cannot be found by an import path, since it is defined inside a function; if its parameters are not known,
            since it is no dataclass, or are not made of JSON values.
    """
    kind, parameters = type(rule), rule.parameters
    name = next((name for name, known in RULES.items() if known is kind), None)
    if name is None:
        name = f"{kind.__module__}:{kind.__qualname__}"
        if _loaded(name) is not kind:
            raise ValueError(
                f"The context rule {kind.__qualname__} must be found by its name in {kind.__module__}, so that it can be saved with a "
                "model: define the class at the top level of a module."
            )
    if not dataclasses.is_dataclass(kind) and inspect.signature(kind).parameters and not _is_default(rule):
        raise ValueError(
            f"The parameters of the context rule {kind.__qualname__} must be known, so that they can be saved with a model: make it a frozen "
            "dataclass, in place of an `__init__` of its own."
        )
    for parameter, value in parameters.items():
        if not is_json(value):
            raise ValueError(
                f"{parameter!r} of the context rule {kind.__qualname__} must be made of JSON values (texts, finite numbers, lists, objects "
                f"with texts as names), so that it can be saved with a model, got {value!r:.80}."
            )
    return name, as_json(parameters)


def given_rule(context: Any, context_kwargs: Any) -> tuple[str, Any]:
    """
    Name and parameters of what a user gives as `context` and `context_kwargs`; the module of a class of theirs is imported.

    Raises:
        `TypeError`: If it is neither a name nor a rule.
        `ValueError`: If a rule is given with other parameters than its own, or as for [`describe_rule`] and [`import_rule`].
    """
    check_kind(context)
    if isinstance(context, str):
        import_rule(context)
        return context, context_kwargs
    name, parameters = describe_rule(context)
    if context_kwargs and context_kwargs != parameters:
        raise ValueError(
            f"context={type(context).__name__}(...) has its parameters already, got context_kwargs={context_kwargs!r}: leave them out, or give "
            "its name."
        )
    return name, parameters


def check_kind(context: Any) -> None:
    """Raise a `TypeError` unless `context` is a rule, or the name of one."""
    if not isinstance(context, (str, ContextRule)):
        made = (
            f": make one, {context.__name__}()"
            if isinstance(context, type) and issubclass(context, ContextRule)
            else ""
        )
        raise TypeError(f"context must be the name of a rule, or a rule, got {context!r}{made}.")


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


def may_recall(name: str) -> bool:
    """Whether a rule may read notes of an external memory. A class that has not been imported yet may."""
    found = RULES.get(name) or _loaded(name)
    return found is None or found.recalls


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
    except Exception as error:  # the code is the user's
        raise ValueError(
            f"context={name!r} must name a module that can be imported: {type(error).__name__}: {error}."
        ) from error
    if _loaded(name) is None:
        raise ValueError(f"context={name!r} must name a class of {module} that is a ContextRule, got something else.")


def _is_default(rule: ContextRule) -> bool:
    """Whether a rule is what its class makes without arguments."""
    try:
        return vars(type(rule)()) == vars(rule)
    except TypeError:
        return False


def _loaded(name: str) -> type[ContextRule] | None:
    """The class of an import path, if its module has been imported and it is a rule."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, ContextRule) else None
