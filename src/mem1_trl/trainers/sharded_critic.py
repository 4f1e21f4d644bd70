"""A critic in shards: split over processes by FSDP2 as accelerate splits the policy, but with an optimizer of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_model

from ..update.critic.critic import SharedValueHead, ValueModel
from .refusals import refuse_unsaved_adapter

if TYPE_CHECKING:
    from accelerate import Accelerator


def shard_critic(accelerator: Accelerator, critic: ValueModel | SharedValueHead) -> None:
    """
    Split a critic over the processes in place, by the settings that the policy is split by.

    `Accelerator.prepare` takes one model only, with its optimizer; the critic's is made afterwards, of the parameters that are
    there then. Each layer of the backbone is gathered for itself when it is called, and so is the head, which stays in float32.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            Of a run under FSDP2.
        critic ([`ValueModel`] or [`SharedValueHead`]):
            The critic, the same in all processes (with `fsdp_cpu_ram_efficient_loading` in the first).

    Raises:
        `ValueError`: See [`refuse_unsaved_adapter`].
    """
    from torch.distributed.fsdp import fully_shard

    if isinstance(critic, ValueModel):
        refuse_unsaved_adapter(critic.adapters, accelerator)
        if accelerator.state.fsdp_plugin.activation_checkpointing:
            fsdp2_apply_ac(accelerator, critic.backbone)
        fsdp2_prepare_model(accelerator, critic.backbone)
        _let_go_of_what_is_not_read(critic)
    critic.head.to(accelerator.device)
    mesh = getattr(accelerator, "torch_device_mesh", None)
    dimensions = None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    fully_shard(critic.head, mesh=dimensions)


def _let_go_of_what_is_not_read(critic: ValueModel) -> None:
    """Keep no storage for what an adapter's model has beside the backbone, such as a head, which would stay whole in each process."""
    read = {id(p) for p in critic.backbone.parameters()}
    for module in () if critic.adapters is None else critic.adapters.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in read:
                setattr(module, name, torch.nn.Parameter(parameter.detach().new_empty(0), requires_grad=False))
