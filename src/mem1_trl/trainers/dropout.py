"""Turning off what is random in a model that trains: dropout in any form, skipped layers, noise of routers."""

from __future__ import annotations

import dis
import inspect
import itertools
import logging
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)

_PROBABILITY = re.compile(r"drop(out|_?prob|_?path|_?rate)|_pdrop$|layer_?drop|^(input_|moe_)?jitter_(noise|eps)$")
"""
Names of numbers that are read in the forward pass of a model that trains, and are 0 if nothing is random.

`router_jitter_noise` of PhiMoE is not among them: it is a threshold, in evaluation as well. Mixtral and MiniMax read their setting of this
name as `jitter_noise`.
"""


def silence_dropout(model: nn.Module) -> None:
    """
    Set to 0 every probability of dropout in a model, so that it computes in training what it computes in evaluation.

    They may be modules (`nn.Dropout`, whose `p` it is), numbers of a module (`attention_dropout` of Llama, `residual_dropout` of
    StarCoder2, `dropout` of `nn.MultiheadAttention`), or numbers of the configuration that a module reads when it is called (Falcon, Persimmon);
    then the configuration is changed, and is saved so. Layers that are skipped at random and noise on the inputs of experts are
    of the same kind.

    Args:
        model ([`~torch.nn.Module`]):
            A model, with or without adapters; those have dropout, too.
    """
    in_config: dict[str, Any] = {}
    for owner, name, value in _probabilities(model):
        setattr(owner, name, 0.0)
        if not isinstance(owner, nn.Module):
            in_config[name] = value
    if in_config:
        logger.warning(
            f"{type(model).__name__} reads {', '.join(f'{name}={value}' for name, value in in_config.items())} from its "
            "configuration when it is called, so `disable_dropout` sets it to 0 there, and it is saved as 0."
        )


def dropout_of(model: nn.Module) -> dict[str, float]:
    """Probabilities of dropout in a model that are not 0, the largest by each name; `p` is that of `nn.Dropout`."""
    found: dict[str, float] = {}
    for _, name, value in _probabilities(model):
        found[name] = max(value, found.get(name, 0.0))
    return found


def _probabilities(model: nn.Module) -> Iterator[tuple[Any, str, float]]:
    """Each probability that is not 0: the module or configuration that owns it, its name and its value."""
    reads = {kind: _read_from_config(kind) for kind in {type(module) for module in model.modules()}}
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            yield module, "p", module.p
        for name, value in list(vars(module).items()):
            if _PROBABILITY.search(name) and _is_number(value):
                yield module, name, value
        config = getattr(module, "config", None)
        for name in reads[type(module)] if config is not None else ():
            in_config: Any = getattr(config, name, None)
            if _PROBABILITY.search(name) and _is_number(in_config):
                yield config, name, in_config


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _read_from_config(kind: type[nn.Module]) -> frozenset[str]:
    """Names that the forward pass of a class reads as `config.name`."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    instructions = [] if code is None else list(dis.get_instructions(code))
    return frozenset(
        str(name.argval)
        for config, name in itertools.pairwise(instructions)
        if config.argval == "config" and name.opname == "LOAD_ATTR"
    )
