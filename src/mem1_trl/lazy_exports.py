"""Names of a package that are imported on first use, so that a light command does not wait for torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """
    `__getattr__`, `__dir__` and `__all__` of a package (PEP 562).

    Args:
        package (`str`):
            Its `__name__`.
        modules (`Mapping[str, str]`):
            Public name -> module inside the package that defines it.

    Returns:
        `tuple`: To be assigned in the package's `__init__.py`:

        ```python
        __getattr__, __dir__, __all__ = lazy_exports(__name__, {"Rollout": "turn_loop"})
        ```
    """
    names = list(modules)

    def getattribute(name: str) -> Any:
        if name in modules:
            return getattr(import_module(f".{modules[name]}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def directory() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return getattribute, directory, names
