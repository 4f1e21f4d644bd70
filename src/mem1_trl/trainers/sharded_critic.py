"""A critic in shards: split over processes by FSDP2 as accelerate splits a policy, but with an optimizer of its own; beside DeepSpeed, too."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_model
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from ..update.critic.critic import SharedValueHead, ValueModel
from .refusals import refuse_unsaved_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator


def shard_critic(accelerator: Accelerator, critic: ValueModel | SharedValueHead) -> None:
    """
    Split a critic over the processes in place: under FSDP2 by the settings that the policy is split by, beside ZeRO-3 layer by layer.

    `Accelerator.prepare` takes one model only, with its optimizer; the critic's is made afterwards, of the parameters that are
    there then. Each layer of the backbone is gathered for itself when it is called, and so is the head, which stays in float32.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            Of a run under FSDP2 or DeepSpeed.
        critic ([`ValueModel`] or [`SharedValueHead`]):
            The critic, the same in all processes (with `fsdp_cpu_ram_efficient_loading`, and beside ZeRO-3, in the first).

    Raises:
        `ValueError`: See [`refuse_unsaved_adapter`].
    """
    from torch.distributed.fsdp import fully_shard

    if isinstance(critic, ValueModel):
        refuse_unsaved_adapter(critic.adapters, accelerator)
        settings = _settings(accelerator)
        if settings.state.fsdp_plugin.activation_checkpointing:
            fsdp2_apply_ac(settings, critic.backbone)
        fsdp2_prepare_model(settings, critic.backbone)
        _let_go_of_what_is_not_read(critic)
    critic.head.to(accelerator.device)
    mesh = getattr(accelerator, "torch_device_mesh", None)
    dimensions = None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    fully_shard(critic.head, mesh=dimensions)


@contextmanager
def loaded_whole(accelerator: Accelerator) -> Iterator[None]:
    """While a critic is loaded: transformers splits what it loads under ZeRO-3 for an engine, which a critic does not have."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(plugin.hf_ds_config)


def _settings(accelerator: Accelerator) -> Any:
    """An accelerator as accelerate's functions for FSDP2 read it: DeepSpeed's has no settings for FSDP."""
    if getattr(accelerator.state, "fsdp_plugin", None) is not None:
        return accelerator
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=True
    )
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    return SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision=accelerator.mixed_precision,
        is_main_process=accelerator.is_main_process,
        device=accelerator.device,
    )


def _let_go_of_what_is_not_read(critic: ValueModel) -> None:
    """Keep no storage for what an adapter's model has beside the backbone, such as a head, which would stay whole in each process."""
    read = {id(p) for p in critic.backbone.parameters()}
    for module in () if critic.adapters is None else critic.adapters.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in read:
                setattr(module, name, torch.nn.Parameter(parameter.detach().new_empty(0), requires_grad=False))
