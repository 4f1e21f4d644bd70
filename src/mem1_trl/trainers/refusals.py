"""Errors for settings that cannot be combined: with no environment, and with DeepSpeed or FSDP; most are raised before a model is loaded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..configs.checks import refuse_changed
from ..optional_packages import require

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainingArguments

    from ..configs import Mem1GRPOConfig
    from ..protocol.protocol import Mem1Protocol

_PACKAGES = ("tensorboard", "trackio", "wandb")
"""Trackers that the extra `tracking` installs, by the names of their packages."""
_OF_EPISODES = (
    "context",
    "max_observation_length",
    "environment_timeout",
    "environment_retries",
    "environment_concurrency",
)
"""Settings that nothing reads where an episode is one answer."""
_TRUE = ("1", "true", "yes", "on")


def uses_fsdp(args: TrainingArguments) -> bool:
    """Whether FSDP is asked for, by the arguments or by `accelerate launch`."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in _TRUE


def fsdp_version(args: TrainingArguments) -> int:
    """The version of FSDP that is asked for, as accelerate reads it."""
    of_arguments = getattr(args, "fsdp_plugin_args", None)
    if of_arguments:
        return int(of_arguments["fsdp_version"])
    return int(os.environ.get("FSDP_VERSION", 1))


def offloads(args: TrainingArguments) -> bool:
    """Whether FSDP is to keep shards in the memory of the CPU."""
    of_arguments = getattr(args, "fsdp_plugin_args", None)
    if of_arguments:
        return bool(of_arguments.get("cpu_offload"))
    return os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() in _TRUE


def refuse_missing_packages(args: Mem1GRPOConfig) -> None:
    """
    Refuse vLLM and trackers of `report_to` that are not there, which TRL and transformers would say once the model is loaded.

    Raises:
        `ValueError`: For a tracker that there is none of.
        `ImportError`: For a package that is not installed.
    """
    if args.use_vllm:
        require("vllm", "vllm", "use_vllm=True")
    for name in args.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"report_to must name trackers among {', '.join(sorted(INTEGRATION_TO_CALLBACK))}, got {name!r}."
            )
        if name in _PACKAGES:
            require(name, "tracking", f"report_to={name!r}")


def refuse_sharded_weights(args: TrainingArguments) -> None:
    """
    Refuse settings that a critic next to the policy's engine cannot work with.

    Under DeepSpeed the critic is outside the engine, with an optimizer of its own: in plain data parallelism at the stages 1 and 2, at which
    every process holds all weights of the policy, too, and split by FSDP2 at stage 3.

    Raises:
        `ValueError`: For the first version of FSDP, its offloading to the CPU, and both engines in half precision with loss scaling.
    """
    if uses_fsdp(args):
        if (version := fsdp_version(args)) != 2:
            raise ValueError(
                f"Mem1PPOTrainer needs FSDP's version 2, whose shards two models can be called from in turn, got {version}: set "
                "fsdp_version to 2 (examples/accelerate/fsdp2.yaml)."
            )
        if offloads(args):
            raise ValueError(
                "Mem1PPOTrainer does not support fsdp_offload_params, which has not been shown to train a critic beside the policy: "
                "set it to false."
            )
        if args.mixed_precision == "fp16":  # by the arguments or by `accelerate launch`
            raise ValueError(
                "Mem1PPOTrainer does not support fp16 with FSDP, whose loss scaling knows the policy's optimizer only: use bf16."
            )
    plugin = args.deepspeed_plugin
    if plugin is None:
        return
    if args.mixed_precision == "fp16":  # by the arguments or by `accelerate launch`
        raise ValueError(
            "Mem1PPOTrainer does not support fp16 with DeepSpeed, which scales the loss for the policy's gradients and would "
            "scale the critic's, too: use bf16."
        )


def refuse_parts(args: Mem1GRPOConfig, fsdp: bool) -> None:
    """
    Refuse to train a micro-batch in parts where their gradients have not been shown to add up.

    Raises:
        `ValueError`: For `max_tokens_per_micro_batch` with the first version of FSDP.
    """
    if args.max_tokens_per_micro_batch is not None and fsdp and fsdp_version(args) != 2:
        raise ValueError(
            "FSDP of version 1 does not go with max_tokens_per_micro_batch, since a micro-batch could not be trained in parts: leave "
            "one of them out, or lower per_device_train_batch_size."
        )


def refuse_skipping(args: Mem1GRPOConfig, balances_experts: bool) -> None:
    """
    Refuse to pass over trajectories of a model whose experts are balanced by them.

    Raises:
        `ValueError`: For `skip_zero_advantages` with a load-balancing loss.
    """
    if args.skip_zero_advantages and balances_experts:
        raise ValueError(
            "skip_zero_advantages would pass over tokens by which the load of experts is balanced: set router_aux_loss_coef=0.0, or leave it "
            "False."
        )


def refuse_without_environment(args: Mem1GRPOConfig, protocol: Mem1Protocol | None) -> None:
    """
    Refuse what has no meaning for episodes of one turn that nothing answers.

    Raises:
        `ValueError`: For a `protocol` that the user passed, with several turns or native tool calls, for `state_loss_weight`, and for other settings
            that nothing would read.
    """
    if protocol is not None and (protocol.action_syntax == "tool_calls" or args.max_turns > 1):
        raise ValueError("A protocol without an environment has nothing to talk to: pass `environment_factory`.")
    if args.state_loss_weight != 1.0:
        raise ValueError(
            f"state_loss_weight={args.state_loss_weight} needs turns that write a state, and there are none without "
            "`environment_factory`: pass one, or leave it 1.0."
        )
    several = () if args.max_turns == 1 else ("max_turns",)
    refuse_changed(
        args,
        (*several, *_OF_EPISODES),
        "is about episodes with an environment, and there is none",
        "pass `environment_factory`",
    )


def refuse_memory_value(args: Mem1GRPOConfig, has_environment: bool) -> None:
    """
    Refuse a reward for the worth of states where there is none, or where one process cannot score alone.

    Raises:
        `ValueError`: For `memory_value_weight` without an environment, with DeepSpeed ZeRO-3 or with FSDP.
    """
    given = f"memory_value_weight={args.memory_value_weight}"
    if not has_environment:
        raise ValueError(
            f"{given} needs turns that read a state, and there are none without `environment_factory`: pass one, or leave it 0.0."
        )
    refuse_whole_policy_needed(args, given, "states")


def refuse_whole_policy_needed(args: Mem1GRPOConfig, given: str, scored: str) -> None:
    """
    Refuse what scores by the policy, in each process on its own, where no process has the whole of it.

    Raises:
        `ValueError`: With DeepSpeed ZeRO-3 or with FSDP; `given` is the setting, `scored` what there is another number of in each process.
    """
    if uses_fsdp(args) or (args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3):
        raise ValueError(
            f"{given} needs the whole policy in each process, which scores as many {scored} as its own episodes have: use DDP or "
            "ZeRO-2, or leave it 0.0."
        )


def refuse_unsaved_adapter(model: Any, accelerator: Accelerator) -> None:
    """
    Refuse an adapter whose layers accelerate wraps for checkpointing.

    PEFT looks for it by names that its layers no longer have, and saves a file without a tensor, of any model that TRL trains.

    Raises:
        `ValueError`: For a model with an adapter and `fsdp_activation_checkpointing`.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.activation_checkpointing and hasattr(model, "peft_config"):
        raise ValueError(
            "fsdp_activation_checkpointing does not go with an adapter, of which an empty file would be saved: set it to false and "
            "gradient_checkpointing=True, which does the same."
        )
