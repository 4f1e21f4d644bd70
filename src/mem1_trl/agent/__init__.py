"""A model in use as an agent. [`Mem1Agent`] plays episodes, whole or turn by turn."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .agent import Mem1Agent as Mem1Agent

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Mem1Agent": "agent",
    },
)
