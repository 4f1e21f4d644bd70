"""Internal: calls of environments, their threads and processes, their failures and their actions."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .actions import ActionSet as ActionSet
    from .pool import EnvironmentPool as EnvironmentPool

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ActionSet": "actions",
        "EnvironmentPool": "pool",
    },
)
