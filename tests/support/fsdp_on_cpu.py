"""
FSDP2 on CPUs: accelerate turns FSDP on for accelerators only, and quietly trains in plain data parallelism elsewhere.

What it runs then is indifferent to the device, so a process that is started as a rank is told that its CPU is one.
"""

from __future__ import annotations

import os

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def shard_on_cpu(**settings: str) -> None:
    """
    Let the trainer that this process makes next run under FSDP2 with gloo; call it before its arguments are made.

    Args:
        settings (`str`):
            Variables that `accelerate launch` would set from a configuration file, over those of `fsdp2.yaml`.
    """
    os.environ.update(
        {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
            "FSDP_OFFLOAD_PARAMS": "false",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
            **settings,
        }
    )
    ranks_on_cpu()


def ranks_on_cpu() -> None:
    """Let accelerate take a process with gloo for one with an accelerator of its own."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    assert not torch.cuda.is_available(), "this is for machines without a GPU"
