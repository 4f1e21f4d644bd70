"""A configuration of TRL's `GRPOTrainer` for this package's."""

from __future__ import annotations

import warnings
from dataclasses import MISSING, fields
from typing import Any

from trl import GRPOConfig

from .grpo import Mem1GRPOConfig


def from_grpo_config(args: Any) -> Mem1GRPOConfig:
    """
    The configuration of a script that was written for [`~trl.GRPOTrainer`], for [`Mem1GRPOTrainer`].

    What it does not know has its default, except that `max_tool_calling_iterations=n` becomes `max_turns=n + 1`: n calls and the
    turn after the last. A best model or a learning rate that would follow the loss follows the reward, as with a `Mem1GRPOConfig`; `"eval_loss"`
    stays. A warning says what the settings that mean something else here have become.

    Args:
        args ([`~trl.GRPOConfig`]):
            It is left as it is.

    Raises:
        `TypeError`: If it is no `GRPOConfig`.
        `ValueError`: If it holds a setting that is refused here.
    """
    if not isinstance(args, GRPOConfig):
        raise TypeError(f"`args` is a {type(args).__name__}: pass a Mem1GRPOConfig or a trl.GRPOConfig.")
    # A copy of its values: `GRPOConfig` would refuse some that it has derived itself if they came as arguments
    config: Mem1GRPOConfig = object.__new__(Mem1GRPOConfig)
    vars(config).update(vars(args))
    inherited = {one.name for one in fields(GRPOConfig)}
    for one in fields(Mem1GRPOConfig):
        if one.name not in inherited:
            setattr(config, one.name, one.default if one.default_factory is MISSING else one.default_factory())
    config._check_types()
    config._play_once_if_greedy()
    config.logging_nan_inf_filter = False  # whoever wrote a `GRPOConfig` did not ask for the default of `Trainer`
    iterations, config.max_tool_calling_iterations = args.max_tool_calling_iterations, None
    if iterations is not None:
        config.max_turns = iterations + 1
    config._check_episode()
    followed = _follow_reward(config)
    warnings.warn(
        f"A GRPOConfig is run as a Mem1GRPOConfig: max_turns={config.max_turns}"
        + (" (one more than max_tool_calling_iterations)" if iterations is not None else "")
        + f", max_completion_length={config.max_completion_length} tokens for each turn (TRL: for the whole episode), "
        f"max_observation_length={config.max_observation_length}{followed}. Pass a Mem1GRPOConfig to set them.",
        stacklevel=3,
    )
    return config


def _follow_reward(config: Mem1GRPOConfig) -> str:
    """
    Let the best model and a schedule that follows a metric go by the reward where TRL's default is the loss, which does not say how well a policy plays.

    A `GRPOConfig` that was given `"loss"` cannot be told from one that was given nothing.

    Returns:
        `str`: What has become of the settings, for the warning.
    """
    said = ""
    if (config.load_best_model_at_end or config._follows_metric()) and config.metric_for_best_model in (None, "loss"):
        config.metric_for_best_model, config.greater_is_better = "reward", True
        said = ", metric_for_best_model='reward' with greater_is_better=True (TRL: 'loss')"
    mode = config._turn_schedule()
    return said if mode is None else f"{said}, mode={mode!r} in lr_scheduler_kwargs"
