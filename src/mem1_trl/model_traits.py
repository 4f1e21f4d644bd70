"""How a prefix tree is attended to: the mask a model takes, and whether a model can take one at all."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


logger = logging.getLogger(__name__)

_MASKED_IMPLEMENTATIONS = ("sdpa", "eager")


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Configuration of a model's language backbone."""
    return model.config.get_text_config()


def attention_implementation(model: PreTrainedModel) -> str:
    """Name of the attention implementation a model runs with."""
    return getattr(text_config(model), "_attn_implementation", None) or "eager"


def forward_takes(model: PreTrainedModel, argument: str) -> bool:
    """Whether the forward pass of a model, below any adapter, names an argument."""
    backbone = getattr(model, "get_base_model", lambda: model)()
    return argument in inspect.signature(type(backbone).forward).parameters


def cache_argument(model: PreTrainedModel) -> str:
    """Name of the argument that takes keys and values: `cache`, which was `past_key_values` in older transformers."""
    return "cache" if forward_takes(model, "cache") else "past_key_values"


def enable_activation_checkpointing(model: PreTrainedModel, options: dict[str, Any] | None = None) -> None:
    """
    Compute the activations of a model again in the backward pass instead of keeping them.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        options (`dict`, *optional*):
            `every_n_layers`, `offload` (as in [`~transformers.TrainingArguments`]) and arguments of `torch.utils.checkpoint`.
    """
    options = dict(options or {})
    if hasattr(model, "activation_checkpointing_enable"):
        own = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options or None, **own)
    else:  # its name in older transformers
        model.gradient_checkpointing_enable(options or None)


def why_not_masked(model: PreTrainedModel) -> str | None:
    """
    Why a model cannot forward a tree (or any other row that needs its own attention mask), or `None` if it can.

    A sliding window, a chunk or a recurrent state is defined on neighbours in the row, which in a tree are not the
    neighbours in the context. Such models are exact with `layout="per_turn"`.
    """
    config = text_config(model)
    implementation = attention_implementation(model)
    if implementation not in _MASKED_IMPLEMENTATIONS:
        return f"attn_implementation={implementation!r} takes no explicit mask"
    if getattr(model, "_is_stateful", False):
        return f"{config.model_type} carries a recurrent state"
    layer_types = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if layer_types:
        return f"{config.model_type} has {' and '.join(sorted(layer_types))} layers"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"{config.model_type} has a sliding window of {config.sliding_window} tokens"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return f"{config.model_type} has local layers"
    if getattr(config, "alibi", False):
        return f"{config.model_type} derives positions from places in the row (ALiBi)"
    if not forward_takes(model, "position_ids"):
        return f"{config.model_type} takes no position_ids"
    return None


def module_dtype(model: Any) -> torch.dtype:
    """Data type in which a model computes: that of autocast if it is on, else of its first floating-point weight."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    device = "cpu" if weight is None else weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.float32 if weight is None else weight.dtype
