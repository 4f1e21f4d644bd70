"""What the settings of on-policy distillation must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..update.distillation import TEACHER_CONTEXTS

if TYPE_CHECKING:
    from .grpo import Mem1GRPOConfig

_NEUTRAL = {
    "distillation_in_reward": False,
    "teacher_context": "full",
    "teacher_model_name_or_path": None,
    "teacher_model_init_kwargs": None,
    "task_reward_weight": 1.0,
}


def check_distillation(config: Mem1GRPOConfig) -> None:
    """
    Refuse settings of a teacher that cannot work, or that nothing would come of.

    Raises:
        `ValueError`: For weights that are negative or not finite, another word for what the teacher reads, settings without
            `distillation_weight`, and `layout="paper"`.
    """
    for name in ("distillation_weight", "task_reward_weight"):
        if not 0.0 <= getattr(config, name) < float("inf"):
            raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(config, name)}.")
    if config.teacher_context not in TEACHER_CONTEXTS:
        raise ValueError(
            f"teacher_context must be one of {', '.join(map(repr, TEACHER_CONTEXTS))}, got {config.teacher_context!r}."
        )
    if not config.distillation_weight:
        for name, neutral in _NEUTRAL.items():
            if getattr(config, name) != neutral:
                raise ValueError(
                    f"{name}={getattr(config, name)!r} has no effect with distillation_weight=0.0: raise that, or leave it {neutral!r}."
                )
    elif config.layout == "paper":
        raise ValueError(
            "distillation_weight does not go with layout='paper', which scores the student in contexts that it did not have: use 'packed'."
        )
