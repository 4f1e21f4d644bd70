"""An adapter that is part of the weights while episodes are played, so that a token costs what it costs without one."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer

if TYPE_CHECKING:
    from collections.abc import Iterator


def why_not_merged(model: Any) -> str | None:
    """
    Why the adapter of a model cannot be merged for a while, with log-probs that differ by rounding only; `None` if it can.

    In half precision a small change is lost beside the weight that it is added to, so that the sampler would be another policy.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        return "the model has no adapter"
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for layer in layers:
        base: Any = layer.get_base_layer()
        if type(layer) is not Linear:
            return f"a layer is a {type(layer).__module__}.{type(layer).__name__}, and only LoRA of linear layers is merged"
        if layer.merged:
            return "an adapter is merged already"
        if any(name in layer.lora_variant for name in layer.active_adapters):
            return "its adapter is a variant of LoRA"
        if base.weight.dtype != torch.float32:
            return f"its weights are {base.weight.dtype}, in which small changes are lost"
        if uses[id(base.weight)] > 1:
            return "a weight that the adapter changes is that of another layer, too"
    return None


@contextmanager
def merged_adapter(model: Any) -> Iterator[None]:
    """
    Within this context the active adapters of a model are part of its weights. Afterwards the weights are what they were, bit for bit.

    Subtracting what was added would leave a rounding error each time; so a copy of the weights that adapters change is kept, 4 bytes
    for each.
    """
    layers = [module for module in model.modules() if isinstance(module, Linear) and not module.disable_adapters]
    changed = [parameter for layer in layers for parameter in layer.get_base_layer().parameters()]
    before = [parameter.detach().clone() for parameter in changed]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.merge()
        yield
    finally:
        with torch.no_grad():
            for layer in layers:
                layer.merged_adapters.clear()
            for parameter, copy in zip(changed, before, strict=True):
                parameter.copy_(copy)
