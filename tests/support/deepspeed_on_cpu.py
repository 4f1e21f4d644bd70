"""DeepSpeed on CPUs with gloo: accelerate turns engines on for accelerators only, so a rank is told that its CPU is one."""

from __future__ import annotations

import os
from typing import Any

from support.fsdp_on_cpu import ranks_on_cpu
from transformers import training_args


def engine_on_cpu(stage: int) -> dict[str, Any]:
    """
    Let the trainer that this process makes next run under DeepSpeed; call it before its arguments are made.

    Args:
        stage (`int`):
            Of ZeRO: 2 splits gradients and the optimizer's state, 3 the weights, too.

    Returns:
        `dict`: The configuration, for the argument `deepspeed`.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    training_args.is_torch_bf16_gpu_available = lambda: True  # the CPU can, too
    ranks_on_cpu()
    return {
        "zero_optimization": {
            "stage": stage,
            # Weights as small as those of tiny models would stay whole
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
    }
