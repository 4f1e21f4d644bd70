"""The value model: a language backbone with one number per token."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

from ...model_traits import backbone_of, forward_takes, refuse_prompt_learning, refuse_shared_weights
from ...saved_files import adapter_folder
from ..layout_model import last_hidden_state
from ..sharded_tensors import fill, is_dtensor, is_source, is_split, whole_on_cpu
from .head import HEAD_FILE, load_head, read_values, save_head, value_head
from .second_adapter import over_the_same_storage, second_adapter

if TYPE_CHECKING:
    import os

    from peft import PeftConfig
    from transformers import PreTrainedModel

    from ..scoring import TokenFunction

BACKBONE_DIRECTORY = "backbone"
SHARED = "shared"
"""`value_model` for a head on the policy's own hidden states."""


def backbone_folder(value_model: str) -> str:
    """Where the backbone of a critic is: in a folder of its own if `save` wrote it, else the model's id or path itself."""
    saved = Path(value_model)
    return str(saved / BACKBONE_DIRECTORY) if (saved / HEAD_FILE).is_file() else value_model


class ValueModel(nn.Module):
    """
    A critic: the backbone of a causal language model under a linear head.

    The head starts at zero, so that values start at zero.

    Args:
        backbone ([`~transformers.PreTrainedModel`]):
            A model whose output has `last_hidden_state`.
        adapters ([`~peft.PeftModel`], *optional*):
            The model around `backbone`, if only adapters are trained; then only they are saved.
    """

    def __init__(self, backbone: PreTrainedModel, adapters: PeftModel | None = None):
        super().__init__()
        self.backbone = backbone
        self.adapters = adapters
        self.head = value_head(backbone)

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
        return read_values(self.head, self.backbone(**inputs, use_cache=False).last_hidden_state)

    def save(self, directory: str | os.PathLike[str], write: bool = True) -> None:
        """
        Write the critic into `directory`, whole: `backbone/` and `value_head.safetensors`.

        The backbone has a folder of its own inside, because `Trainer` takes every folder of a checkpoint that holds an adapter
        for one of the policy's.

        Args:
            directory (`str` or `os.PathLike`):
                The directory.
            write (`bool`, *optional*, defaults to `True`):
                Whether this process writes. Of a critic that is split over processes all call this method, and one writes.
        """
        model: Any = self.adapters or self.backbone
        # Of adapters only what is trained is saved
        state = model.state_dict(keep_vars=True)
        state = {name: value for name, value in state.items() if self.adapters is None or value.requires_grad}
        options = {"state_dict": whole_on_cpu(state, write)} if any(map(is_split, state.values())) else {}
        if write:
            model.save_pretrained(str(Path(directory) / BACKBONE_DIRECTORY), **options)
        save_head(self.head, directory, write)

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Read weights that [`~ValueModel.save`] wrote, into this model; if it is split over processes, in all of them together."""
        folder = Path(directory) / BACKBONE_DIRECTORY
        if self.adapters is not None:
            name = self.adapters.active_adapters[0]
            targets = get_peft_model_state_dict(self.adapters, adapter_name=name, save_embedding_layers=False)
            place = str(adapter_folder(folder, name))
            found = load_peft_weights(place, device="cpu") if is_source(targets.values()) else None
            if any(map(is_split, targets.values())):
                fill(targets, found)
            else:
                set_peft_model_state_dict(self.adapters, found, name)
        else:
            split = any(map(is_split, self.backbone.parameters()))
            reads = is_source(self.backbone.parameters())
            # Only where it is read: the others would make a whole model for nothing
            loaded = type(self.backbone).from_pretrained(folder, dtype=self.backbone.dtype) if reads else None
            state = None if loaded is None else loaded.state_dict()
            if split:
                fill(self.backbone.state_dict(), state)
            else:
                self.backbone.load_state_dict(state)  # type: ignore[arg-type]
        load_head(self.head, directory)


class SharedValueHead(nn.Module):
    """
    A critic that is only a head: it reads the hidden states of the policy.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy. It is not a submodule: its parameters are the policy's, and so are their gradients.

    Attributes:
        detached (`bool`): Whether the value loss stops at the head.
    """

    def __init__(self, policy: PreTrainedModel | PeftModel):
        super().__init__()
        self._policy = (policy,)  # in a tuple, where `nn.Module` does not find it
        self.head = value_head(self.backbone)
        self.detached = False

    @property
    def backbone(self) -> PreTrainedModel:
        """The policy below its language-modelling head."""
        return backbone_of(self._policy[0])

    @property
    def config(self) -> Any:
        """Configuration of the backbone."""
        return self.backbone.config

    def forward(self, hidden: torch.Tensor | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """
        Values of all states, from hidden states `(N, L, H)` or, without them, from inputs as in [`ValueModel`].

        Returns:
            `torch.Tensor`: Shape `(N, L)`, float32. Place `i` is the value after token `i`, before token `i + 1`.
        """
        if hidden is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detached):
                hidden = self._hidden_states(inputs)
        return read_values(self.head, hidden.detach() if self.detached else hidden)

    def _hidden_states(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        policy: Any = self._policy[0]
        if not any(map(is_dtensor, policy.parameters())):
            return self.backbone(**inputs, use_cache=False).last_hidden_state
        # FSDP2 gathers weights when the whole policy is called, not when a part of it is; ZeRO-3 does so layer by layer
        head = {"logits_to_keep": 1} if forward_takes(policy, "logits_to_keep") else {}
        with last_hidden_state(self.backbone) as hidden:
            policy(**inputs, **head, use_cache=False)
        return hidden[0]

    def save(self, directory: str | os.PathLike[str], write: bool = True) -> None:
        """Write `value_head.safetensors` into `directory`; the rest is the policy's. `write` as in [`ValueModel.save`]."""
        save_head(self.head, directory, write)

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Read a head that [`~SharedValueHead.save`] wrote."""
        load_head(self.head, directory)


def token_values(critic: nn.Module) -> TokenFunction:
    """The value before each token, as a per-token function for [`mem1_trl.update.scoring.forward_rows`]."""

    def function(inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> list[torch.Tensor | None]:
        return [critic(**inputs)[:, :-1].masked_fill(labels[:, 1:] == -100, 0.0)]

    return function


def build_value_model(
    value_model: str | PreTrainedModel | ValueModel | None,
    policy: PreTrainedModel | PeftModel,
    model_init_kwargs: dict[str, Any] | None = None,
    peft_config: PeftConfig | None = None,
    in_shards: bool = False,
) -> ValueModel | SharedValueHead:
    """
    Make the critic of a policy.

    Args:
        value_model (`str`, [`~transformers.PreTrainedModel`], [`ValueModel`] or `None`):
            A model id or path, a model, or a finished critic. `None` copies the policy's backbone, as the reference run
            does (actor, reference and critic start from the same weights); of a policy with an adapter only the adapter is
            copied, and the frozen weights are shared. `"shared"` is a head on the policy's own hidden states. A directory
            written by `save` brings its head along. A model that is frozen throughout is trained as a whole, and one that
            is frozen in part is trained where it is not. Of a [`~peft.PeftModel`] the active adapter is trained.
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy as it is trained.
        model_init_kwargs (`dict`, *optional*):
            Passed to `from_pretrained`.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to put on a model that is loaded or passed without one, which then stays frozen.
        in_shards (`bool`, *optional*, defaults to `False`):
            Whether the critic is about to be split over processes, which copies from it. Until then a copy of the policy has
            no storage of its own, so that there are never two whole ones; nothing of it is the policy's afterwards.

    Returns:
        [`ValueModel`] or [`SharedValueHead`]: What it trains requires gradients.
    """
    if value_model == SHARED:
        return SharedValueHead(policy)
    saved = Path(value_model) if isinstance(value_model, str) else None
    of_adapter = saved is not None and (saved / BACKBONE_DIRECTORY / ADAPTER_CONFIG).is_file()
    if isinstance(policy, PeftModel) and (value_model is None or of_adapter):
        adapters = second_adapter(over_the_same_storage(policy) if in_shards else policy)
        critic = _adapted(adapters)
        if of_adapter:
            critic.load(saved)  # type: ignore[arg-type]
        return critic
    if isinstance(value_model, nn.Module):
        refuse_shared_weights(policy, value_model, "value_model", "leave it None to train a copy of its backbone")
    if isinstance(value_model, ValueModel):
        critic = value_model
    elif value_model is None:
        backbone = backbone_of(policy)
        critic = ValueModel(over_the_same_storage(backbone) if in_shards else copy.deepcopy(backbone))
    elif isinstance(value_model, str):
        kwargs = dict(model_init_kwargs or {})
        kwargs.setdefault("dtype", policy.dtype)
        kwargs.setdefault("attn_implementation", policy.config._attn_implementation)
        critic = ValueModel(AutoModel.from_pretrained(backbone_folder(value_model), **kwargs))
        if (Path(value_model) / HEAD_FILE).is_file():
            critic.head.load_state_dict(load_file(Path(value_model) / HEAD_FILE))
    elif isinstance(value_model, nn.Module) and hasattr(value_model, "base_model"):
        if isinstance(value_model, PeftModel):
            critic = _adapted(value_model)
        else:
            critic = ValueModel(backbone_of(value_model))
    else:
        raise TypeError(
            f"`value_model` must not be of type {type(value_model).__name__}: pass a model id, a path, a PreTrainedModel, a ValueModel, "
            "'shared' for a head on the policy, or None for a copy of the policy's backbone."
        )
    vocabulary = getattr(critic.config.get_text_config(), "vocab_size", None)
    wanted = policy.config.get_text_config().vocab_size
    if vocabulary is not None and vocabulary != wanted:
        raise ValueError(
            f"The value model has a vocabulary of {vocabulary} tokens and the policy one of {wanted}: use a critic with "
            "the policy's tokenizer."
        )
    if peft_config is not None and critic.adapters is None:
        config = copy.deepcopy(peft_config)
        refuse_prompt_learning(config)
        config.task_type = None  # the backbone has no head to generate or classify with
        critic.adapters = get_peft_model(critic.backbone, config)
    elif critic.adapters is None:
        critic.head.requires_grad_(True)
        if not any(parameter.requires_grad for parameter in critic.backbone.parameters()):
            critic.requires_grad_(True)
    return critic


def _adapted(adapters: PeftModel) -> ValueModel:
    """The critic inside a model with an adapter, of which the adapter is trained, loaded for that or not."""
    name = adapters.active_adapters[0]
    refuse_prompt_learning(adapters.peft_config[name])
    adapters.set_adapter(name)  # which makes it trainable
    critic = ValueModel(backbone_of(adapters), adapters)
    read = {id(p) for p in critic.backbone.parameters()}
    # What is trained beside the backbone, such as a head, does not affect values
    for parameter in adapters.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in read)
    return critic
