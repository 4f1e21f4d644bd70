"""Work around a bitsandbytes CPU repacking that zeroes gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def keep_gradients_through_4bit(model: nn.Module) -> None:
    """
    Keep 4-bit layers of bitsandbytes in the form that gradients flow through.

    On a CPU with AVX512_BF16 the first forward pass in evaluation mode repacks the weights for inference. From then on every
    gradient through them is zero, without an error, and a trainer that evaluates or generates before it trains runs into it.
    Layers that were repacked already are restored.

    Args:
        model ([`~torch.nn.Module`]):
            Any model, quantized or not.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            state = getattr(module.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                module.state_dict()  # bitsandbytes unpacks in place before it saves
