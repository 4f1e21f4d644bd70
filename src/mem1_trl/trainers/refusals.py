"""Errors for settings that cannot be combined with DeepSpeed or FSDP, raised before a model is loaded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..configs import Mem1GRPOConfig

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


def refuse_sharded_weights(args: TrainingArguments) -> None:
    """
    Refuse settings that a critic next to the policy's engine cannot work with.

    Under ZeRO-1 and ZeRO-2 every process holds all weights of the policy. The critic is then outside the engine, with an
    optimizer of its own, in plain data parallelism.

    Raises:
        `ValueError`: For the first version of FSDP, ZeRO-3, and both engines in half precision with loss scaling.
    """
    if uses_fsdp(args):
        if (version := fsdp_version(args)) != 2:
            raise ValueError(
                f"Mem1PPOTrainer needs FSDP's version 2, whose shards two models can be called from in turn, got {version}: set "
                "fsdp_version to 2 (examples/accelerate/fsdp2.yaml)."
            )
        if args.fp16:
            raise ValueError(
                "Mem1PPOTrainer does not support fp16 with FSDP, whose loss scaling knows the policy's optimizer only: use bf16."
            )
    plugin = args.deepspeed_plugin
    if plugin is None:
        return
    if plugin.zero_stage == 3:
        raise ValueError(
            "Mem1PPOTrainer does not support DeepSpeed ZeRO-3: it splits the policy's weights over processes, and the critic, "
            "which starts as a copy of them, reads them outside of the policy's forward pass. Use ZeRO-2 "
            "(examples/accelerate/zero2.yaml) or DDP, or Mem1GRPOTrainer."
        )
    if args.fp16:
        raise ValueError(
            "Mem1PPOTrainer does not support fp16 with DeepSpeed, which scales the loss for the policy's gradients and would "
            "scale the critic's, too: use bf16."
        )


def refuse_parts(args: Mem1GRPOConfig, deepspeed: bool) -> None:
    """
    Refuse to train a micro-batch in parts where every backward pass may be a step.

    Raises:
        `ValueError`: For `max_tokens_per_micro_batch` with DeepSpeed that `accelerate launch` has set up.
    """
    if args.max_tokens_per_micro_batch is not None and deepspeed:
        raise ValueError(
            "DeepSpeed does not go with max_tokens_per_micro_batch, since a micro-batch could not be trained in parts: leave one "
            "of them out, or lower per_device_train_batch_size."
        )
