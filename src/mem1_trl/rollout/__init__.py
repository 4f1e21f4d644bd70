"""Internal: from a dataset row to a trajectory."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .episode import Episode as Episode
    from .settings import AgentSettings as AgentSettings
    from .turn_loop import Rollout as Rollout

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Episode": "episode",
        "Rollout": "turn_loop",
        "AgentSettings": "settings",
    },
)
