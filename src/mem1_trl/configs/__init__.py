"""The two training configurations."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .conversion import from_grpo_config as from_grpo_config
    from .grpo import Mem1GRPOConfig as Mem1GRPOConfig
    from .ppo import Mem1PPOConfig as Mem1PPOConfig

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"Mem1GRPOConfig": "grpo", "Mem1PPOConfig": "ppo", "from_grpo_config": "conversion"}
)
