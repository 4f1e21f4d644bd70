"""What must be there before a run begins, each in one sentence, and how the options are read."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets

from mem1_trl import compose_objectives
from mem1_trl.cli.options import CommandError, ConfigParser
from mem1_trl.retrieval.open_retriever import open_retriever
from mem1_trl.tasks import load_qa_dataset

SPARE = 1.1, 1.5e9
"""Factor and bytes that an allocator, libraries and the driver take beside tensors: assumptions."""


NO_GPU = (
    "There is no GPU that computes in bfloat16: use one, or only check the run for one that is not here, such as "
    "--check_only True --use_cpu True --gpu_memory 80."
)


def read_options(kinds: Sequence[type], args: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Options from the command line and the file of `--config`, as the commands of the package read them; an error is one sentence."""
    try:
        found: tuple[Any, ...] = ConfigParser(kinds).read(sys.argv[1:] if args is None else args)
    except CommandError as error:
        sys.exit(f"train.py: {NO_GPU if 'bf16/gpu' in str(error) else error}")
    return found


@dataclass
class Found:
    """What is missing, and what the run takes, if that could be computed."""

    sentences: list[str] = field(default_factory=list)
    estimates: Any = None


def missing(
    script: Any, args: Any, model: Any, estimate: Callable[[], Any] | None
) -> tuple[Found, list[Dataset], Any]:
    """Everything that is not there, the questions of each file, and the retriever; `estimate` is `None` where none can be made."""
    found, data, retriever = Found(), [], None
    for path in script.train_files:
        try:
            data.append(load_qa_dataset(_existing(path)))
        except (OSError, ValueError) as error:
            found.sentences.append(_one_line(error))
    try:
        retriever = open_retriever(script.corpus)
        passages = len(retriever.search(["capital city of a country"], script.passages)[0])
        if passages < script.passages:
            found.sentences.append(
                f"A search must find {script.passages} passages, but the retriever at {script.corpus} found {passages}: is the corpus "
                "complete?"
            )
    except (OSError, RuntimeError, ValueError) as error:
        found.sentences.append(_one_line(error))
    for name, wanted in (("bitsandbytes", model.load_in_4bit or model.load_in_8bit), ("vllm", args.use_vllm)):
        if wanted and importlib.util.find_spec(name) is None:
            option = "load_in_4bit and load_in_8bit" if name == "bitsandbytes" else "use_vllm"
            found.sentences.append(f"{name} is not installed: pip install {name}, or leave out {option}.")
    if (model.load_in_4bit or model.load_in_8bit) and not model.use_peft:
        found.sentences.append("Quantized weights are frozen, and nothing would be trained: set use_peft: true.")
    if not (script.check_only and script.gpu_memory is not None):
        found.sentences += _launch(script, args)
    if estimate is None:
        return found, data, retriever
    try:
        found.estimates = estimate()
    except (OSError, ValueError, TypeError) as error:
        found.sentences.append(f"The model {model.model_name_or_path!r} cannot be described: {_one_line(error)}")
    else:
        found.sentences += _memory(script, args, found.estimates[1].total_memory)
    return found, data, retriever


def _existing(path: str) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no file {path!r}: put FlashRAG's file there, or name yours with train_files (README.md says where it is from)."
        )
    return path


def _launch(script: Any, args: Any) -> list[str]:
    """Whether the processes are those that the batch sizes, and the memory, are meant for."""
    found = []
    if script.gpus is not None and script.gpus != args.world_size:
        found.append(
            f"The configuration is meant for {script.gpus} GPU(s), but {args.world_size} process(es) were started: use accelerate "
            f"launch --num_processes {script.gpus}, or set gpus, and gradient_accumulation_steps so that 64 tasks are in an update."
        )
    stage = None if args.deepspeed_plugin is None else args.deepspeed_plugin.zero_stage
    if script.zero2 != (stage == 2):
        found.append(
            f"zero2 is {script.zero2}, but DeepSpeed's stage is {stage}: launch with examples/accelerate/zero2.yaml if it is to split "
            "the policy, or with ddp.yaml and zero2: false."
        )
    return found


def _memory(script: Any, args: Any, wanted: float) -> list[str]:
    size = None if script.gpu_memory is None else script.gpu_memory * 1e9
    if size is None and args.use_cpu:
        return []
    if size is None and not torch.cuda.is_available():
        return [NO_GPU]
    if size is None:
        size = float(torch.cuda.get_device_properties(args.device).total_memory)
    wanted = wanted * SPARE[0] + SPARE[1]
    if args.use_vllm and args.vllm_mode == "colocate":
        wanted += args.vllm_gpu_memory_utilization * size
    if wanted <= size:
        return []
    graphs = "set cuda_graphs: false, " if args.cuda_graphs and args.prefix_cache and not args.use_vllm else ""
    return [
        f"A GPU must have about {wanted / 1e9:,.0f} GB for this run, but it has {size / 1e9:,.0f}: lower per_device_train_batch_size or "
        f"max_tokens_per_micro_batch, {graphs}or use adapters (use_peft, load_in_4bit)."
    ]


def compose(data: list[Dataset], objectives: int) -> Dataset:
    """Tasks of consecutive rows of one file, as in the reference code, of all files together."""
    return concatenate_datasets([compose_objectives(questions, n=objectives) for questions in data])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
