"""How an agent is spoken to and how its turns are read. Text and token ids, no tensors; only [`Mem1Protocol`] is public."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .protocol import Mem1Protocol as Mem1Protocol

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Mem1Protocol": "protocol",
    },
)
