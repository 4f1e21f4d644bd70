"""Programs that own their loop, as environments: they speak OpenAI's API, and what they ask becomes the turns of an episode."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .environment import GatewayEnvironment as GatewayEnvironment

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "GatewayEnvironment": "environment",
    },
)
