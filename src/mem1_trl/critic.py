"""The value model: a language backbone with one number per token."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

if TYPE_CHECKING:
    import os

    from transformers import PreTrainedModel

    from .scoring import TokenFunction

HEAD_FILE = "value_head.safetensors"
BACKBONE_DIRECTORY = "backbone"


class ValueModel(nn.Module):
    """
    A critic: the backbone of a causal language model under a linear head.

    The head starts at zero, so that the first advantages are those of no critic instead of noise.

    Args:
        backbone ([`~transformers.PreTrainedModel`]):
            A model that gives `last_hidden_state`.
    """

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.head.to(backbone.device)

    @property
    def config(self) -> Any:
        """Configuration of the backbone."""
        return self.backbone.config

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """
        Values of all states.

        Args:
            inputs (`torch.Tensor`):
                `input_ids`, `attention_mask` and, where the backbone takes them, `position_ids`; shape `(N, L)`.

        Returns:
            `torch.Tensor`: Shape `(N, L)`, float32. Place `i` is the value after token `i`, before token `i + 1`.
        """
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state
        # The head stays in float32: values are regressed, and half precision would round them to a coarse grid
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """
        Write the critic into `directory`: `backbone/` and `value_head.safetensors`.

        The backbone has a folder of its own inside, because `Trainer` takes every folder of a checkpoint that holds an adapter
        for one of the policy's.
        """
        self.backbone.save_pretrained(Path(directory) / BACKBONE_DIRECTORY)
        save_file(self.head.state_dict(), Path(directory) / HEAD_FILE)

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Read weights that [`~ValueModel.save`] wrote, into this model."""
        folder = Path(directory) / BACKBONE_DIRECTORY
        if isinstance(self.backbone, PeftModel):
            set_peft_model_state_dict(self.backbone, load_peft_weights(str(folder), device="cpu"))
        else:
            loaded = type(self.backbone).from_pretrained(folder, dtype=self.backbone.dtype)
            self.backbone.load_state_dict(loaded.state_dict())
        self.head.load_state_dict(load_file(Path(directory) / HEAD_FILE))


def token_values(critic: nn.Module) -> TokenFunction:
    """The value before each token, as a per-token function for [`mem1_trl.scoring.forward_rows`]."""

    def function(inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> list[torch.Tensor | None]:
        return [critic(**inputs)[:, :-1].masked_fill(labels[:, 1:] == -100, 0.0)]

    return function


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model below the language-modelling head (the model itself if it has none)."""
    backbone: Any = model.base_model
    return backbone


def build_value_model(
    value_model: str | PreTrainedModel | ValueModel | None,
    policy: PreTrainedModel,
    model_init_kwargs: dict[str, Any] | None = None,
) -> ValueModel:
    """
    Make the critic of a policy.

    Args:
        value_model (`str`, [`~transformers.PreTrainedModel`], [`ValueModel`] or `None`):
            A model id or path, a model, or a finished critic. `None` copies the policy's backbone, as the reference run
            does (actor, reference and critic start from the same weights). A directory written by [`ValueModel.save`]
            brings its head along.
        policy ([`~transformers.PreTrainedModel`]):
            The policy before any adapter is put on it.
        model_init_kwargs (`dict`, *optional*):
            Passed to `from_pretrained`.

    Returns:
        [`ValueModel`]: All of its parameters require gradients.
    """
    if isinstance(value_model, ValueModel):
        critic = value_model
    elif value_model is None:
        backbone = copy.deepcopy(backbone_of(policy))
        critic = ValueModel(backbone)
    elif isinstance(value_model, str):
        kwargs = dict(model_init_kwargs or {})
        kwargs.setdefault("dtype", policy.dtype)
        kwargs.setdefault("attn_implementation", policy.config._attn_implementation)
        head, folder = Path(value_model) / HEAD_FILE, Path(value_model) / BACKBONE_DIRECTORY
        critic = ValueModel(AutoModel.from_pretrained(folder if head.is_file() else value_model, **kwargs))
        if head.is_file():
            critic.head.load_state_dict(load_file(head))
    elif isinstance(value_model, nn.Module) and hasattr(value_model, "base_model"):
        if value_model is policy:
            raise ValueError("`value_model` is the policy itself: leave it None to train a copy of its backbone.")
        critic = ValueModel(backbone_of(value_model))
    else:
        raise TypeError(
            f"`value_model` is a {type(value_model).__name__}: pass a model id, a path, a PreTrainedModel, a ValueModel, "
            "or None for a copy of the policy's backbone."
        )
    critic.requires_grad_(True)
    vocabulary = getattr(critic.config.get_text_config(), "vocab_size", None)
    wanted = policy.config.get_text_config().vocab_size
    if vocabulary is not None and vocabulary != wanted:
        raise ValueError(
            f"The value model has a vocabulary of {vocabulary} tokens and the policy one of {wanted}: use a critic with "
            "the policy's tokenizer."
        )
    return critic
