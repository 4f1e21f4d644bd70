"""MEM1 for TRL: agents that keep one compact memory instead of a growing context, trained with exact policy updates."""

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .agent import Mem1Agent
    from .configs import Mem1GRPOConfig, Mem1PPOConfig
    from .critic import ValueModel
    from .grpo_trainer import Mem1GRPOTrainer
    from .ppo_trainer import Mem1PPOTrainer
    from .protocol import Mem1Protocol
    from .scoring import score_trajectories
    from .tasks import compose_objectives
    from .trajectory import StopReason, Trajectory, Turn
    from .trajectory_hub import load_trajectories, push_trajectories

# Loaded on first use: `import mem1_trl` alone imports neither torch nor TRL
_EXPORTS = {
    "Mem1Agent": "agent",
    "Mem1GRPOConfig": "configs",
    "Mem1GRPOTrainer": "grpo_trainer",
    "Mem1PPOConfig": "configs",
    "Mem1PPOTrainer": "ppo_trainer",
    "Mem1Protocol": "protocol",
    "StopReason": "trajectory",
    "Trajectory": "trajectory",
    "Turn": "trajectory",
    "ValueModel": "critic",
    "compose_objectives": "tasks",
    "load_trajectories": "trajectory_hub",
    "push_trajectories": "trajectory_hub",
    "score_trajectories": "scoring",
}

__all__ = [  # noqa: RUF022
    "Mem1PPOTrainer",
    "Mem1PPOConfig",
    "Mem1GRPOTrainer",
    "Mem1GRPOConfig",
    "Mem1Protocol",
    "Mem1Agent",
    "Turn",
    "Trajectory",
    "StopReason",
    "ValueModel",
    "compose_objectives",
    "score_trajectories",
    "push_trajectories",
    "load_trajectories",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
