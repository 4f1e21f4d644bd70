"""Long-horizon text worlds, one adapter per file; the extra of an adapter is needed only when an instance is made."""

from .gymnasium_world import GymnasiumEnvironment
from .openenv_world import OpenEnvEnvironment
from .scienceworld_world import ScienceWorldEnvironment
from .textworld_express_world import TextWorldExpressEnvironment

__all__ = ["GymnasiumEnvironment", "OpenEnvEnvironment", "ScienceWorldEnvironment", "TextWorldExpressEnvironment"]
