"""Copies of a model that share storage with it: one that carries a second set of adapters, and one to be split over processes."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ...model_traits import refuse_prompt_learning
from ..sharded_tensors import is_split_by_zero, whole

if TYPE_CHECKING:
    from peft import PeftModel

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def over_the_same_storage(model: ModuleType) -> ModuleType:
    """
    A copy of a model whose modules and parameters are its own, while the numbers of the parameters are those of the original.

    What is done in place to a parameter of one is done to the other's; what replaces a parameter, as splitting the copy over
    processes does, is not. Parameters that DeepSpeed ZeRO-3 has split have no storage to share: of these the first process gets whole ones on the
    CPU, one after the other, and the others get shapes.
    """
    memo: dict[int, object] = {
        id(p): nn.Parameter(_numbers(p), requires_grad=p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def _numbers(parameter: nn.Parameter) -> torch.Tensor:
    if not is_split_by_zero(parameter):
        return parameter.detach()
    numbers = whole(parameter)
    return numbers.cpu() if torch.distributed.get_rank() == 0 else numbers.to("meta")


def copy_around_frozen(model: ModuleType) -> ModuleType:
    """
    A copy of a model, without its adapters, that shares everything that is frozen.

    Only the containers are new (a few kilobytes of Python). Frozen parameters, buffers and the layers that hold nothing
    else, quantized ones with their state included, are the very objects of the original; what is trainable is copied. With
    containers of its own, the copy can carry its own adapters and be checkpointed by itself: a backward pass through it
    recomputes through its own adapters, whatever the original is doing, and saving the original never meets them.

    Args:
        model ([`~torch.nn.Module`]):
            The model inside a [`~peft.PeftModel`], with adapters in place.

    Returns:
        [`~torch.nn.Module`]: A module of the same class.
    """
    memo: dict[int, object] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        if not tensor.requires_grad:
            memo[id(tensor)] = tensor
    # Children before parents, so that the contents of an adapter are known when the adapter is removed
    for module in reversed(list(model.modules())):
        if isinstance(module, BaseTunerLayer):
            memo[id(module)] = copy.deepcopy(module.get_base_layer(), memo)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            memo[id(module)] = copy.deepcopy(module.original_module, memo)
        elif not any(module.children()) and not any(p.requires_grad for p in module.parameters()):
            memo[id(module)] = module
    return copy.deepcopy(model, memo)


def second_adapter(policy: PeftModel) -> PeftModel:
    """
    Another adapter of the same configuration on the same frozen weights.

    Args:
        policy ([`~peft.PeftModel`]):
            A model with one active adapter.

    Returns:
        [`~peft.PeftModel`]: Its adapter has the name and starts from the values of the policy's. `policy` is left as it is.

    Raises:
        `ValueError`: See [`~mem1_trl.model_traits.refuse_prompt_learning`].
    """
    name = policy.active_adapters[0]
    config = copy.deepcopy(policy.peft_config[name])
    refuse_prompt_learning(config)
    config.task_type = None  # nothing is generated from it
    config.inference_mode = False
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = (
            True  # PiSSA and its like change the frozen weights, which are the policy's; the values are copied below
        )
    bare = copy_around_frozen(policy.get_base_model())
    vars(bare).pop("peft_config", None)  # PEFT's note that there are adapters
    twin = get_peft_model(bare, config, adapter_name=name)
    start = {key: value for key, value in policy.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for key, parameter in twin.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(start[key])
    return twin
