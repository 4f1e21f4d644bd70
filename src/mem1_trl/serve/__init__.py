"""An agent behind OpenAI's chat API, for clients that send an ever-growing chat. [`AgentBackend`] answers, [`serve_agent`] listens."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from ..wire.app import WireLimits as WireLimits
    from .backend import AgentBackend as AgentBackend
    from .backend import serve_agent as serve_agent
    from .states import StateStore as StateStore

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "AgentBackend": "backend",
        "StateStore": "states",
        "WireLimits": "backend",
        "serve_agent": "backend",
    },
)
