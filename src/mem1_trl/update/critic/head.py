"""The linear head of a critic, in float32: made, applied, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..sharded_tensors import fill, is_source, whole_on_cpu

if TYPE_CHECKING:
    import os

    from transformers import PreTrainedModel

HEAD_FILE = "value_head.safetensors"


def value_head(backbone: PreTrainedModel) -> nn.Linear:
    """A head of zeros in float32, where the backbone is; on the CPU if that has shapes only."""
    head = nn.Linear(backbone.config.get_text_config().hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head if backbone.device.type == "meta" else head.to(backbone.device)


def save_head(head: nn.Linear, directory: str | os.PathLike[str], write: bool) -> None:
    """Write `value_head.safetensors`, whole."""
    state = whole_on_cpu(head.state_dict(), write)
    if write:
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_file(state, Path(directory) / HEAD_FILE)


def load_head(head: nn.Linear, directory: str | os.PathLike[str]) -> None:
    """Read `value_head.safetensors`."""
    fill(head.state_dict(), load_file(Path(directory) / HEAD_FILE) if is_source(head.parameters()) else None)


def read_values(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Values `(N, L)`, float32, of hidden states `(N, L, H)`."""
    # The head stays in float32: values are regressed, and half precision would round them to a coarse grid
    with torch.autocast(hidden.device.type, enabled=False):
        # Of a row of states, since what a view is returned of cannot be gathered for the backward pass
        return head(hidden.float().flatten(0, 1)).view(hidden.shape[:2])
