"""A checksum of the weights of a model."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def weights_checksum(model: PreTrainedModel) -> str:
    """Tells weights apart: a hash of names, shapes and the sum of the bits of every parameter."""
    digest = hashlib.sha256()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, parameter in model.named_parameters():
        bits = parameter.detach().view(whole[parameter.element_size()]).sum(dtype=torch.int64).item()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {bits}".encode())
    return digest.hexdigest()[:16]
