"""Packages that are there with a GPU: vLLM in both of TRL's modes, and adapters on quantized weights."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from support.trainer_helpers import SHORT, NoReward, chat_tokenizer, copy_parameters, lookup_dataset, odd
from transformers import BitsAndBytesConfig

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer

from .check import Check, Finding, Setting, Skipped
from .training import arguments, examine, policy

VLLM_PORT = 8123
VLLM_START = 180.0
"""Seconds that vLLM's server may take until it answers."""

VLLM_NOISE = 0.2
"""Nats between vLLM's log-probs and the update's on average: other kernels, in half precision."""


def needed(package: str, setting: Setting, gpus: int = 0) -> None:
    """Skip a check whose package or devices are not there."""
    if importlib.util.find_spec(package) is None:
        raise Skipped(f"{package} is not installed")
    if gpus and setting.device == "cpu":
        raise Skipped(f"{package} needs a GPU")
    if gpus > 1 and torch.cuda.device_count() < gpus:
        raise Skipped(f"it needs {gpus} GPUs, one of them for the server, and there is {torch.cuda.device_count()}")


@contextmanager
def vllm_server(model: str) -> Iterator[None]:
    """TRL's server of vLLM on the second GPU, from its first answer on."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "1"}
    command = [sys.executable, "-m", "trl.cli", "vllm-serve", "--model", model, "--port", str(VLLM_PORT)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + VLLM_START
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{VLLM_PORT}/health", timeout=2):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"vLLM's server did not start: {' '.join(command[2:])}") from None
                time.sleep(1.0)
        yield
    finally:
        process.terminate()
        process.wait()


def check_vllm(mode: str, setting: Setting) -> Finding:
    """Two steps of GRPO whose episodes vLLM samples."""
    needed("vllm", setting, gpus=2 if mode == "server" else 1)
    finding = Finding()
    tokenizer = chat_tokenizer()
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "model")
        policy(setting).save_pretrained(path)
        tokenizer.save_pretrained(path)
        settings: dict[str, Any] = {"use_vllm": True, "vllm_mode": mode, "vllm_gpu_memory_utilization": 0.3}
        if mode == "server":
            settings["vllm_server_base_url"] = f"http://127.0.0.1:{VLLM_PORT}"

        def train() -> None:
            trainer = Mem1GRPOTrainer(
                model=path,
                args=Mem1GRPOConfig(**arguments(setting, directory, "bfloat16", **settings)),
                train_dataset=lookup_dataset(8),
                processing_class=tokenizer,
                environment_factory=NoReward,
                reward_funcs=odd,
                protocol=SHORT,
            )
            before = copy_parameters(trainer.model)
            trainer.train()
            examine(finding, trainer, before, "bfloat16")
            key = "sampling/sampling_logp_difference/mean"
            gaps = [log[key] for log in trainer.state.log_history if key in log]
            finding.expect("nats between vLLM and the update on average", max(gaps, default=float("nan")), VLLM_NOISE)

        if mode == "server":
            with vllm_server(path):
                train()
        else:
            train()
    return finding


def check_qlora(setting: Setting) -> Finding:
    """Two steps of PPO with adapters, of policy and critic, on weights in 4 bits."""
    needed("bitsandbytes", setting)
    import bitsandbytes

    finding = Finding()
    compute = torch.float32 if setting.device == "cpu" else torch.bfloat16
    dtype = "float32" if setting.device == "cpu" else "bfloat16"
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "model")
        policy(setting).save_pretrained(path)
        trainer = Mem1PPOTrainer(
            model=path,
            args=Mem1PPOConfig(**arguments(setting, directory, dtype, num_generations=1)),
            train_dataset=lookup_dataset(8),
            processing_class=chat_tokenizer(),
            environment_factory=NoReward,
            reward_funcs=odd,
            protocol=SHORT,
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
            ),
        )
        layers = [m for m in trainer.model.modules() if type(m) is bitsandbytes.nn.Linear4bit]
        finding.expect_equal("layers in 4 bits", len(layers) > 0, True)
        finding.expect_equal("layout", trainer.layout, "packed")
        before = copy_parameters(trainer.model)
        trainer.train()
        examine(finding, trainer, before, "bfloat16")  # quantized weights round as half precision does
        frozen = [name for name, p in trainer.model.named_parameters() if not p.requires_grad]
        moved = [name for name in frozen if not torch.equal(trainer.model.get_parameter(name), before[name])]
        finding.expect_equal("frozen tensors that moved", moved, [])
    return finding


def checks(short: bool) -> list[Check]:
    """Both modes of vLLM, and QLoRA."""
    return [
        *(Check(f"vLLM: {mode}", partial(check_vllm, mode)) for mode in ("colocate", "server")),
        Check("QLoRA", check_qlora),
    ]
