"""Internal but for the two trainers."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .grpo import Mem1GRPOTrainer as Mem1GRPOTrainer
    from .ppo import Mem1PPOTrainer as Mem1PPOTrainer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Mem1GRPOTrainer": "grpo",
        "Mem1PPOTrainer": "ppo",
    },
)
