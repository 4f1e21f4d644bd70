"""How a prefix tree is attended to: the mask a model takes, and whether a model can take one at all."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel


logger = logging.getLogger(__name__)

_MASKED_IMPLEMENTATIONS = ("sdpa", "eager")


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Configuration of a model's language backbone."""
    return model.config.get_text_config()


def refuse_shared_weights(policy: torch.nn.Module, other: torch.nn.Module, name: str, instead: str) -> None:
    """
    Refuse a model beside the policy that holds weights of it: what freezes or trains one would freeze or train the other.

    An adapter is put into the layers of the model that it is given, so a model that was passed beside `peft_config` is the policy, too.

    Raises:
        `ValueError`: If a parameter is one of both.
    """
    own = {id(parameter) for parameter in policy.parameters()}
    if any(id(parameter) in own for parameter in other.parameters()):
        raise ValueError(f"`{name}` shares weights with the policy: {instead}, or load a second copy of the model.")


def backbone_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model below the language-modelling head (the model itself if it has none), with its adapters if there are any."""
    inner: Any = getattr(model, "get_base_model", lambda: model)()
    return inner.base_model


def attention_implementation(model: PreTrainedModel) -> str:
    """Name of the attention implementation a model runs with."""
    return getattr(text_config(model), "_attn_implementation", None) or "eager"


def forward_takes(model: PreTrainedModel, argument: str) -> bool:
    """Whether the forward pass of a model, below any adapter, names an argument."""
    backbone = getattr(model, "get_base_model", lambda: model)()
    return argument in inspect.signature(type(backbone).forward).parameters


def position_switch(model: Any) -> tuple[str, int] | None:
    """
    Kind of position scaling that depends on the length of a whole forward pass, and the tokens above which it does.

    With `longrope` and dynamic NTK scaling all tokens of a pass, the shared ones included, get other positions as soon as the
    longest row of the batch is longer than that. Contexts that stay below are not affected.

    Returns:
        `tuple[str, int]` or `None`: `None` if the position of a token depends on nothing but its place.
    """
    config = text_config(model)
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    found = []
    for one in nested or [parameters]:
        kind = one.get("rope_type", one.get("type"))
        if kind == "longrope":
            original = one.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", config.max_position_embeddings
            )
            found.append((kind, int(original)))
        elif kind == "dynamic":
            found.append((kind, int(config.max_position_embeddings)))
    return min(found, key=lambda pair: pair[1]) if found else None


def embedding_rows(model: Any) -> int:
    """Number of tokens that a model has an embedding for."""
    weight = model.get_input_embeddings().weight
    # DeepSpeed ZeRO-3 leaves a parameter empty while no layer needs it
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def ordinary_ids(model: Any) -> list[int]:
    """Token ids of a model's vocabulary that its configuration gives no meaning, such as padding or the place of an image."""

    def special(record: Any) -> Iterator[int]:
        for key, value in record.items():
            if isinstance(value, dict):
                yield from special(value)
            elif "token_id" in str(key) or "token_index" in str(key):
                yield from value if isinstance(value, list) else [value]

    taken = {*special(model.config.to_dict())}
    if getattr(model, "generation_config", None) is not None:
        taken |= {*special(model.generation_config.to_dict())}
    return [i for i in range(min(embedding_rows(model), text_config(model).vocab_size)) if i not in taken]


def longest_pass(model: Any) -> int | None:
    """Most tokens that a forward pass can have, by the model's positions; `None` if nothing limits them."""
    switch = position_switch(model)
    limits = [getattr(text_config(model), "max_position_embeddings", None), switch[1] if switch else None]
    return min((limit for limit in limits if limit is not None), default=None)


def learned_positions(model: Any) -> int | None:
    """
    Number of positions that a model has an embedding for, as GPT-2 and OPT do; `None` if it computes them.

    There is none for any further position: a longer pass fails in the middle of the model.
    """
    positions = getattr(text_config(model), "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not tokens]
    # Some tables begin with one or two rows that no position of a text has
    found = positions is not None and any(0 <= table.num_embeddings - positions <= 2 for table in tables)
    return positions if found else None


def longest_row(model: Any) -> int | None:
    """
    Most tokens of a row in which the place of a token does not matter beside its position; `None` if nothing limits them.

    Llama 4 scales the queries of layers without rotary embeddings by their place in the row, in steps of `floor_scale` tokens.
    """
    config = text_config(model)
    scaled = getattr(config, "attn_temperature_tuning", False) and getattr(config, "floor_scale", None)
    return int(config.floor_scale) - 1 if scaled else None


def layer_configs(config: Any) -> list[Any]:
    """The configuration of each layer of a backbone, where they differ (Gemma 4), or else the one of all."""
    return config.per_layer_config[:] if getattr(config, "is_heterogeneous", False) else [config]


def head_size(config: Any) -> tuple[int, int] | None:
    """Sizes of a head's query (and key) and of its value, by the configuration of a layer; `None` without attention heads."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    nope, rope = getattr(config, "qk_nope_head_dim", None), getattr(config, "qk_rope_head_dim", None)
    query = nope + rope if nope and rope else head_dim
    return query, getattr(config, "v_head_dim", None) or head_dim


def head_sizes(model: Any) -> set[tuple[int, int]]:
    """Sizes of a head's query (and key) and of its value, of every kind of attention layer that a model has."""
    config = text_config(model)
    sizes = {size for one in layer_configs(config) if (size := head_size(one)) is not None}
    # Of layers that see everything, beside windowed ones of `head_dim`
    wide = getattr(config, "global_head_dim", None)
    return sizes | ({(wide, wide)} if sizes and wide else set())


def attention_dropout(model: Any) -> float:
    """Probability with which a model in training drops attention probabilities."""
    config = text_config(model)
    return max(getattr(config, name, 0.0) or 0.0 for name in ("attention_dropout", "attn_pdrop"))


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


def why_not_masked(model: PreTrainedModel, longest: int | None = None) -> str | None:
    """
    Why a model cannot take a visibility mask of its own for a row, or `None` if it can.

    A sliding window, a chunk or a recurrent state is defined on neighbours in the row, which under such a mask are not the
    neighbours in the context.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        longest (`int`, *optional*):
            Most tokens of a context and its completion. A window or chunk that holds them all is none. `None` does not know.
    """
    config = text_config(model)
    implementation = attention_implementation(model)
    if implementation not in _MASKED_IMPLEMENTATIONS:
        return f"attn_implementation={implementation!r} takes no explicit mask"
    if getattr(model, "_is_stateful", False):
        return f"{config.model_type} carries a recurrent state"
    windows = layer_windows(config)
    layer_types = set(getattr(config, "layer_types", None) or ()) - {"full_attention", *windows}
    if layer_types:
        return f"{config.model_type} has {' and '.join(sorted(layer_types))} layers"
    narrow = {name: size for name, size in windows.items() if longest is None or size < longest}
    if narrow:
        beyond = "" if longest is None else f", and a context with its completion may have {longest}"
        if set(narrow) == {""}:
            return f"{config.model_type} has a sliding window of {narrow['']} tokens{beyond}"
        of = f" of {min(narrow.values())} tokens" if longest is not None else ""
        return f"{config.model_type} has {' and '.join(sorted(narrow))} layers{of}{beyond}"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return f"{config.model_type} has local layers"
    if getattr(config, "alibi", False):
        return f"{config.model_type} derives positions from places in the row (ALiBi)"
    if not forward_takes(model, "position_ids"):
        return f"{config.model_type} takes no position_ids"
    return None


def layer_windows(config: Any) -> dict[str, int]:
    """Tokens that layers of limited reach see, by the name of their type; `""` if the configuration does not name layers."""
    types = set(getattr(config, "layer_types", None) or ())
    sizes = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    found = {name: getattr(config, size, None) or 0 for name, size in sizes.items() if name in types}
    window = getattr(config, "sliding_window", None)
    if not types and window and getattr(config, "use_sliding_window", True):
        found[""] = window
    return found


def refuse_prompt_learning(config: Any) -> None:
    """Raise `ValueError` for adapters of peft that are tokens or key-value pairs in front of the sequence, not changes of weights."""
    if getattr(config, "is_prompt_learning", False):
        raise ValueError(
            f"An adapter must be in the weights, such as LoRA, got {config.peft_type.value}, which puts learned tokens in front of "
            "the context: they have no place in a prefix tree, and a critic on them would read other tokens than the policy."
        )


def module_dtype(model: Any) -> torch.dtype:
    """Data type in which a model computes: that of autocast if it is on, else of its first floating-point weight."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    device = "cpu" if weight is None else weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.float32 if weight is None else weight.dtype
