"""
Train a few steps under whatever launched this process, and save what came of it.

`train_under.py MODEL DIRECTORY KIND...` writes `KIND.pt` for each kind: losses, metrics and final weights of the policy and the
critic. Each kind is trained in a process of its own that is forked from this one.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

os.environ["CI"] = "true"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peft import LoraConfig
from support.trainer_helpers import SHORT, LookupEnvironment, chat_tokenizer, lookup_dataset, trainer_arguments
from transformers import TrainerCallback

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer

torch.set_num_threads(1)

SETTINGS = {
    "max_turns": 3, "max_observation_length": 40, "max_steps": 4, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "weight_decay": 0.1, "max_grad_norm": 0.1,
}  # fmt: skip
PPO = {"value_learning_rate": 1e-2, "vf_coef": 0.7, "gamma": 0.98, "lam": 0.95}
KINDS = {
    "grpo": (Mem1GRPOTrainer, Mem1GRPOConfig, {"num_generations": 2, "beta": 0.1}, {}),
    "ppo": (Mem1PPOTrainer, Mem1PPOConfig, {**PPO, "beta": 0.1, "num_iterations": 2}, {}),
    "warmup": (Mem1PPOTrainer, Mem1PPOConfig, {**PPO, "beta": 0.0, "critic_warmup_steps": 2}, {}),
    "adapter": (Mem1PPOTrainer, Mem1PPOConfig, {**PPO, "beta": 0.1}, {
        "peft_config": LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")}),
    "shared": (Mem1PPOTrainer, Mem1PPOConfig, {**PPO, "beta": 0.0}, {"value_model": "shared"}),
    "shared_warmup": (Mem1PPOTrainer, Mem1PPOConfig, {**PPO, "beta": 0.0, "critic_warmup_steps": 2},
                      {"value_model": "shared"}),
}  # fmt: skip
# The same run in two halves: the second goes on from the checkpoint of the first
KINDS["first_half"] = KINDS["second_half"] = KINDS["ppo"]


class StopInTheMiddle(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def train(model: str, output: Path) -> None:
    kind = output.stem
    trainer_class, config, settings, arguments = KINDS[kind]
    run = output.parent / f"run-{kind}"
    if kind.endswith("_half"):
        run = output.parent / "run-halves"
        settings = {**settings, "save_strategy": "steps", "save_steps": 2}
    trainer = trainer_class(
        model=model,
        args=config(**trainer_arguments(run, **{**SETTINGS, **settings})),
        train_dataset=lookup_dataset(8),
        processing_class=chat_tokenizer(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
        **arguments,
    )
    if kind == "first_half":
        trainer.add_callback(StopInTheMiddle())
    trainer.train(resume_from_checkpoint=kind == "second_half")
    critic = getattr(trainer, "value_model", None)
    weights = {f"policy.{name}": p.detach().clone() for name, p in trainer.model.named_parameters()}
    if critic is not None:
        weights |= {f"critic.{name}": p.detach().clone() for name, p in critic.named_parameters()}
    if not trainer.accelerator.is_main_process:
        return
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    torch.save(
        {
            "distributed": str(trainer.accelerator.distributed_type),
            "stage": getattr(trainer.accelerator.state.deepspeed_plugin, "zero_stage", None),
            "processes": trainer.accelerator.num_processes,
            "engine": type(trainer.model_wrapped).__name__,
            "logs": logs,
            "weights": weights,
        },
        output,
    )


def main() -> None:
    for kind in sys.argv[3:]:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(sys.argv[1], Path(sys.argv[2]) / f"{kind}.pt")
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            sys.exit(f"{kind} failed")


if __name__ == "__main__":
    main()
