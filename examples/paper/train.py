"""
MEM1's experiment (arXiv 2506.15841): PPO on tasks of two questions from NQ and HotpotQA, over Wikipedia.

    python examples/paper/train.py --config examples/paper/one_gpu.yaml --check_only True    # what is missing, what it takes
    python examples/paper/train.py --config examples/paper/one_gpu.yaml
    accelerate launch --config_file examples/accelerate/ddp.yaml --num_processes 4 \
        examples/paper/train.py --config examples/paper/several_gpus.yaml

All options of `Mem1PPOConfig` and of TRL's `ModelConfig` may stand in the file or on the command line.
"""

import copy
import sys
import time
from dataclasses import dataclass, field

from checks import compose, missing, read_options
from transformers import AutoConfig
from trl import ModelConfig, get_peft_config, get_quantization_config

from mem1_trl import Mem1PPOConfig, Mem1PPOTrainer, Mem1Protocol
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.estimate import EpisodeShape, Estimate, estimate_run


@dataclass
class ScriptArguments:
    """Arguments of the experiment."""

    train_files: list[str] = field(
        metadata={"help": "Files of questions in FlashRAG's form, each composed by itself."}
    )
    corpus: str = field(metadata={"help": "Address of a retriever, directory of `mem1 index`, or file of passages."})
    objectives: int = field(default=2, metadata={"help": "Questions of one task."})
    passages: int = field(default=3, metadata={"help": "Passages that a search finds."})
    protocol: str = field(
        default="reference",
        metadata={
            "help": "The tags of the reference code, those of the paper, or what is saved beside the model.",
            "choices": ["reference", "paper", "saved"],
        },
    )
    value_model: str | None = field(
        default=None, metadata={"help": "`shared` for a head on the policy; `None` for a critic of its own."}
    )
    check_only: bool = field(default=False, metadata={"help": "Whether to end after the checks and the estimate."})
    expected_episode: list[float] = field(
        default_factory=lambda: [350.0, 4.0, 150.0, 500.0],
        metadata={"help": "Tokens of the prompt, turns, tokens of a turn and of an observation, for the estimate."},
    )
    gpus: int | None = field(
        default=None, metadata={"help": "GPUs that the batch sizes are meant for. `None` takes those of the launch."}
    )
    zero2: bool = field(default=False, metadata={"help": "Whether DeepSpeed's ZeRO-2 is meant to split the policy."})
    gpu_memory: float | None = field(
        default=None,
        metadata={
            "help": "GB of one GPU. `None` asks the GPU; a number describes one that is not here, with check_only."
        },
    )
    peak_tflops: float = field(default=989.0, metadata={"help": "TFLOP/s of one GPU (default: H100, bfloat16)."})
    update_utilization: float = field(default=0.35, metadata={"help": "Share of it that the update reaches."})
    rollout_utilization: float = field(default=0.02, metadata={"help": "Share of it that the rollout reaches."})

    def __post_init__(self) -> None:
        for name in ("objectives", "passages", "gpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if len(self.expected_episode) != 4:
            raise ValueError(
                "expected_episode must have 4 numbers (tokens of the prompt, turns, tokens of a turn, tokens of an observation), got "
                f"{len(self.expected_episode)}."
            )


def estimates(script: ScriptArguments, args: Mem1PPOConfig, model: ModelConfig) -> tuple[Estimate, Estimate]:
    """The run with the episodes that are expected, and with the largest that its budgets allow."""
    config = AutoConfig.from_pretrained(model.model_name_or_path, trust_remote_code=args.trust_remote_code)
    dtype = str(config.dtype).removeprefix("torch.") if model.dtype in (None, "auto") else model.dtype
    gpus = script.gpus or args.world_size
    counted = copy.copy(args)
    if script.gpu_memory is not None:  # the GPU is described, not this machine
        counted.use_cpu = False
    settings = dict(
        dtype=dtype,
        peft_config=get_peft_config(model),
        bits=4 if model.load_in_4bit else 8 if model.load_in_8bit else 16,
        nested=model.use_bnb_nested_quant,
        value_model=script.value_model,
        processes=gpus,
        shards=gpus if script.zero2 else 1,
    )
    expected = EpisodeShape(*script.expected_episode)
    largest = EpisodeShape.largest(args, expected.prompt)
    return tuple(estimate_run(config, counted, episode, **settings) for episode in (expected, largest))


def describe(script: ScriptArguments, args: Mem1PPOConfig, expected: Estimate, largest: Estimate) -> str:
    seconds = expected.seconds(script.peak_tflops * 1e12, script.update_utilization, script.rollout_utilization)
    played = expected.episodes * args.steps_per_generation // args.gradient_accumulation_steps
    shape = "a prompt of {:g} tokens, {:g} turns of {:g}, observations of {:g}".format(*script.expected_episode)
    return "\n".join(
        [
            "Estimated from shapes. Episodes that use all their budgets:",
            f"  {largest.lines()[0]}",
            f"Episodes with {shape} (expected_episode):",
            *(f"  {line}" for line in expected.lines()),
            f"  {args.max_steps} steps: {args.max_steps * seconds / 3600:,.1f} hours of {expected.processes} GPU(s), if each reaches "
            f"{script.update_utilization:.0%} of {script.peak_tflops:g} TFLOP/s in the update and {script.rollout_utilization:.0%} in the "
            "rollout, which is assumed and not measured",
            f"{played} tasks are played at a time, and {expected.episodes} are in an update (the paper: 128 and 64).",
        ]
    )


def main() -> None:
    script, args, model = read_options((ScriptArguments, Mem1PPOConfig, ModelConfig))
    first, is_flat = args.process_index == 0, args.agent_settings().rule.memory == "state"
    if first and not is_flat:
        print(f"No estimate: with context={args.context!r} contexts grow.", flush=True)
    is_known = is_flat and (model.use_peft or not (model.load_in_4bit or model.load_in_8bit))  # else it is refused
    found, data, retriever = missing(
        script, args, model, (lambda: estimates(script, args, model)) if is_known else None
    )
    if found.estimates is not None and first:
        print(describe(script, args, *found.estimates), flush=True)
    if found.sentences:
        sys.exit("\n".join(f"train.py: {sentence}" for sentence in found.sentences))
    if first:
        print("Nothing is missing.", flush=True)
    if script.check_only:
        return

    protocols = {"reference": Mem1Protocol.reference, "paper": Mem1Protocol.paper, "saved": lambda: None}
    args.model_init_kwargs = dict(
        revision=model.model_revision, attn_implementation=model.attn_implementation, dtype=model.dtype
    )
    trainer = Mem1PPOTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=compose(data, script.objectives),
        environment_factory=RetrievalQAEnvironment.factory(retriever, top_k=script.passages),
        protocol=protocols[script.protocol](),
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
        value_model=script.value_model,
    )
    began, before = time.monotonic(), trainer.state.global_step
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    steps = max(1, trainer.state.global_step - before)
    trainer.save_model()
    if first:
        seconds = (time.monotonic() - began) / steps
        reached = found.estimates[0].utilization(seconds, script.peak_tflops * 1e12)
        print(f"{seconds:,.1f} s a step, which is {reached:.3%} of the peak if episodes were as expected.")


if __name__ == "__main__":
    main()
