"""
Tensors that are split over processes, as FSDP2 and DeepSpeed ZeRO-3 split the weights of a model: whole ones made of them, and cut into them.

All but [`own_part`] are collective where a tensor is split: every process calls them, with tensors in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def is_split(tensor: Any) -> bool:
    """Whether this process holds only a part of a tensor (a [`~torch.distributed.tensor.DTensor`], or a parameter of DeepSpeed ZeRO-3)."""
    return is_dtensor(tensor) or is_split_by_zero(tensor)


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is split as FSDP2 does it."""
    return hasattr(tensor, "full_tensor")


def is_split_by_zero(tensor: Any) -> bool:
    """Whether a parameter is one of DeepSpeed ZeRO-3's, which is empty while no layer needs it."""
    return hasattr(tensor, "ds_id")


def own_part(tensor: Any) -> torch.Tensor:
    """What this process holds of a tensor: all of it if it is not split."""
    if is_split_by_zero(tensor):
        return tensor.ds_tensor
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Any) -> torch.Tensor:
    """The whole tensor, in every process."""
    if not is_split_by_zero(tensor):
        return tensor.full_tensor() if is_dtensor(tensor) else tensor
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        return tensor.data.clone()


def whole_size(tensor: Any) -> int:
    """Number of elements of the whole tensor."""
    return tensor.ds_numel if is_split_by_zero(tensor) else tensor.numel()


def whole_on_cpu(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """
    Whole tensors by name, one after the other, so that no more than one of them is whole on a GPU.

    Args:
        tensors (`Mapping[str, torch.Tensor]`):
            Those of a `state_dict()`, for instance.
        keep (`bool`):
            Whether this process wants them; another only sends its parts, and gets an empty dictionary.
    """
    kept = {}
    for name, tensor in tensors.items():
        full = whole(tensor).detach()
        if keep:
            kept[name] = full.cpu()
    return kept


def is_source(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether [`fill`] wants values for these tensors from this process: if any is split, only the first process has to have them."""
    return not any(map(is_split, tensors)) or torch.distributed.get_rank() == 0


def fill(targets: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor] | None) -> None:
    """
    Write whole values into tensors, each process into its part.

    Args:
        targets (`Mapping[str, torch.Tensor]`):
            Tensors by name, such as a `state_dict()`, whose tensors are those of the module. Written to in place.
        values (`Mapping[str, torch.Tensor]` or `None`):
            A value for each, of its shape; `None` in a process that [`is_source`] says no of.

    Raises:
        `ValueError`: If names or shapes differ, or if values are missing in a process that has to have them.
    """
    if values is None and is_source(targets.values()):
        raise ValueError("Values must be given in this process: it is the first, or what is filled is not split.")
    if values is not None and (different := sorted(values.keys() ^ targets.keys())):
        raise ValueError(
            f"What is loaded must have the names of what is there, but these are in one only: {different}."
        )
    with torch.no_grad():
        for name, target in targets.items():
            value = torch.empty(target.shape, dtype=target.dtype) if values is None else values[name]
            if value.shape != target.shape:
                raise ValueError(f"{name} must have shape {tuple(target.shape)}, got {tuple(value.shape)}.")
            target.copy_(cut_as(value, target))


def cut_as(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor of the first process, split as another of its shape is; as it is, if that is not split."""
    if not is_split(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(own_part(like).device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements)  # type: ignore[attr-defined]
