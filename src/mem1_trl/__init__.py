"""MEM1 for TRL: agents that keep one compact memory instead of a growing context, trained with exact policy updates."""

from typing import TYPE_CHECKING

from .lazy_exports import lazy_exports
from .version import __version__

if TYPE_CHECKING:
    from .agent import Mem1Agent as Mem1Agent
    from .configs import Mem1GRPOConfig as Mem1GRPOConfig
    from .configs import Mem1PPOConfig as Mem1PPOConfig
    from .context_rules import ContextRule as ContextRule
    from .hub.trajectories import load_trajectories as load_trajectories
    from .hub.trajectories import push_trajectories as push_trajectories
    from .protocol.protocol import Mem1Protocol as Mem1Protocol
    from .rollout.settings import AgentSettings as AgentSettings
    from .tasks import compose_objectives as compose_objectives
    from .trainers.console import StepLines as StepLines
    from .trainers.grpo import Mem1GRPOTrainer as Mem1GRPOTrainer
    from .trainers.ppo import Mem1PPOTrainer as Mem1PPOTrainer
    from .trajectory import StopReason as StopReason
    from .trajectory import Trajectory as Trajectory
    from .trajectory import Turn as Turn
    from .update.critic.critic import ValueModel as ValueModel
    from .update.scoring import score_trajectories as score_trajectories

# Imported on first use: `import mem1_trl` alone imports neither torch nor TRL
__getattr__, __dir__, _names = lazy_exports(
    __name__,
    {
        "Mem1PPOTrainer": "trainers.ppo",
        "Mem1PPOConfig": "configs",
        "Mem1GRPOTrainer": "trainers.grpo",
        "Mem1GRPOConfig": "configs",
        "StepLines": "trainers.console",
        "Mem1Protocol": "protocol.protocol",
        "Mem1Agent": "agent",
        "AgentSettings": "rollout.settings",
        "ContextRule": "context_rules",
        "Turn": "trajectory",
        "Trajectory": "trajectory",
        "StopReason": "trajectory",
        "ValueModel": "update.critic.critic",
        "compose_objectives": "tasks",
        "score_trajectories": "update.scoring",
        "push_trajectories": "hub.trajectories",
        "load_trajectories": "hub.trajectories",
    },
)
__all__ = [*_names, "__version__"]
