"""Bytes on one GPU: weights, gradients, states of the optimizer, activations, and keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .shapes import EpisodeShape, ModelShape

BASES = (4, 8, 16)
"""Bits of a frozen weight: of bitsandbytes' kinds, or 16 for the data type of the model."""

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number."""

_BLOCK = 64  # 4-bit weights that share a scale
_TILE = (4096, 32768)
"""Tokens and words of TRL's tile of logits (`trl.kernels`), which is as wide for a small vocabulary."""


@dataclass(frozen=True, slots=True)
class Setup:
    """
    What decides where the bytes are.

    Attributes:
        dtype (`str`): Data type of the weights.
        bits (`int`): Bits of a weight that is frozen below an adapter, of `BASES`.
        nested (`bool`): Whether the scales of 4-bit weights are quantized, too.
        critic (`str` or `None`): `"copy"`, `"adapter"`, `"shared"`, or `None` without a critic.
        reference (`bool`): Whether there is a reference model with weights of its own.
        shards (`int`): GPUs over which ZeRO-2 splits gradients and states of the policy; 1 without.
    """

    dtype: str
    bits: int
    nested: bool
    critic: str | None
    reference: bool
    shards: int


_TEMPORARIES = 6
"""Copies of what is filled of the tile, where the operations of torch take the place of a Triton kernel (measured)."""


_KEPT = {
    "schedule_free_sgd": 1,
    "sgd": 0,
    "adalomo": 0.05,
    "lomo": 0,
    "adafactor": 0.05,
    "ademamix": 3,
    "lion": 1,
    "adagrad": 1,
    "rmsprop": 1,
}
"""
Numbers that an optimizer keeps for each weight, by a part of its name, the first that fits. Adafactor and AdaLomo have rows and columns in place of
matrices. All others keep two, as Adam does; those of GaLore and APOLLO are fewer, by their ranks.
"""


def state_bytes(optimizer: str, size: int) -> float:
    """Bytes of an optimizer's states for one weight of `size` bytes, by its name in [`~transformers.TrainingArguments`]."""
    kept = next((numbers for name, numbers in _KEPT.items() if name in optimizer), 2)
    if "8bit" in optimizer:
        return kept
    if "4bit" in optimizer:
        return kept / 2
    # bitsandbytes keeps float32 whatever the weights are
    is_wide = "32bit" in optimizer or optimizer in ("ademamix", "rmsprop_bnb")
    return kept * (4 if is_wide else size)


def weight_bytes(model: ModelShape, setup: Setup) -> float:
    """Bytes of the policy's own weights, adapters left out."""
    size = SIZES[setup.dtype]
    if setup.bits == 16:
        return model.parameters * size
    rest = (model.parameters - model.linear) * size
    if setup.bits == 8:
        return rest + model.linear
    scales = (1 + 4 / 256 if setup.nested else 4) / _BLOCK
    return rest + model.linear * (0.5 + scales)


def fixed_bytes(model: ModelShape, setup: Setup, optimizer: str) -> dict[str, float]:
    """Bytes that are there all the time, and gradients, by what they are for."""
    size = SIZES[setup.dtype]
    found = {"policy": weight_bytes(model, setup)}
    of_critic = 0.0
    if model.adapters:
        # peft keeps adapters in float32; TRL turns them to bfloat16 beside quantized weights
        each = 4 if setup.bits == 16 else 2
        trained = model.adapters
        of_critic = model.adapters if setup.critic == "adapter" else 0
        found["adapters"] = (trained + of_critic) * each
    else:
        each, trained = size, model.parameters
        if setup.critic == "copy":
            of_critic = model.backbone
            found["critic"] = of_critic * each
    if setup.reference:
        found["reference"] = model.parameters * (2 if setup.shards > 1 else size)
    if setup.critic is not None:
        found["critic's head"] = 4 * (model.hidden + 1)
    if setup.shards > 1:
        # DeepSpeed computes in bfloat16, and splits gradients, float32 weights and their states
        if not model.adapters:
            found["policy"] = 2 * model.parameters
        found["gradients"] = 2 * trained / setup.shards + of_critic * each
        found["optimizer"] = (4 + state_bytes(optimizer, 4)) * trained / setup.shards
        found["optimizer"] += state_bytes(optimizer, each) * of_critic
    else:
        found["gradients"] = (trained + of_critic) * each
        found["optimizer"] = state_bytes(optimizer, each) * (trained + of_critic)
    return found


def activation_bytes(
    model: ModelShape, setup: Setup, args: Any, tokens: float, scored: float, learns_first: bool = False
) -> float:
    """
    Bytes that a pass over `tokens`, of which `scored` have a log-prob, holds at its worst moment, policy and critic together if they have one.

    Those of a critic that `learns_first`, from its first pass over a batch, are gone when the policy's begin. With checkpointing a layer
    keeps its input, and one layer at a time is computed again with everything in it. TRL computes log-probs from a tile of the logits at
    a time, and has no logits besides.
    """
    half = setup.shards > 1 or args.mixed_precision != "no"
    residual = 2 if setup.shards > 1 else SIZES[setup.dtype]
    inside = 2 if half else SIZES[setup.dtype]
    # Two norms and two sums of the residual stream; then what the linear layers and the attention read and write
    layer = 4 * residual * model.hidden + inside * (
        2 * model.hidden + 2 * model.heads_width + 4 * model.keys_width + 4 * model.intermediate
    )
    each = model.hidden * residual if args.gradient_checkpointing else layer
    models = 2 if setup.critic in ("copy", "adapter") and not learns_first else 1
    # Beside the layers, what the two heads read, the second time in float32
    kept = models * (model.layers * each + 8 * model.hidden) * tokens
    wide = _TILE[1] + (_TEMPORARIES * min(model.vocabulary, _TILE[1]) if args.use_cpu else 0)
    tile = min(scored, _TILE[0]) * wide * (4 if args.cast_lm_head_to_fp32 else inside)
    if not model.adapters:
        tile += 4 * model.hidden * model.vocabulary  # the gradient of the head, in float32
    copies = 0  # that autocast keeps for a pass, of weights that are trained in float32
    if half and setup.dtype == "float32" and not model.adapters:
        beside_engine = model.backbone if setup.critic == "copy" else 0
        copies = 2 * (model.parameters if setup.shards == 1 else beside_engine)
    return kept + max(layer * tokens, tile) + copies


def cache_bytes(model: ModelShape, setup: Setup, episode: EpisodeShape, episodes: float) -> float:
    """Bytes of keys and values while `episodes` are generated at once."""
    size = min(2, SIZES[setup.dtype]) if setup.shards > 1 else SIZES[setup.dtype]
    return episodes * episode.peak * model.cached * size
