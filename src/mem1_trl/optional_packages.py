"""Imports of packages that an extra installs, with an error that says whether one is missing or broken."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str | None, purpose: str) -> Any:
    """
    An optional package, imported.

    Args:
        module (`str`):
            Module to import, such as `"gymnasium"`.
        extra (`str` or `None`):
            The extra of this package that installs it; `None` if there is none, and the package is installed by its name.
        purpose (`str`):
            What needs the package; the error message begins with it.

    Raises:
        `ImportError`: If it cannot be imported. The message says how to install it, and whether it is missing or installed but
            broken; its cause is what the import raised.
    """
    package = module.split(".")[0]
    install = f"pip install {package}" if extra is None else f'pip install "mem1-trl[{extra}]"'
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise ImportError(f"{purpose} needs the package {package}, which is not installed: {install}.") from error
        raise _broken(purpose, package, install, error) from error
    except Exception as error:  # a shared library that cannot be loaded is an OSError, say
        raise _broken(purpose, package, install, error) from error


def _broken(purpose: str, package: str, install: str, error: Exception) -> ImportError:
    return ImportError(
        f"{purpose} needs the package {package}, which is installed but cannot be imported ({type(error).__name__}: {error}): "
        f"install it again with what it needs, {install}."
    )
