"""
Runs one optimizer step of a trainer on scripted episodes and saves the gradient; started by `tests/trainers/test_processes.py`.

    torchrun --nproc_per_node 2 tests/scripts/gradient_of_one_step.py ppo OUTPUT.pt PER_DEVICE ACCUMULATION MAX_TOKENS
"""

import os
import sys
from pathlib import Path

os.environ["CI"] = "true"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peft import LoraConfig
from support.helpers import tiny_model, tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, ScriptedGenerator, lookup_dataset
from transformers import TrainerCallback

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer

torch.set_num_threads(1)


def script(call: int, index: int, prompt: str) -> str:
    """
    Ragged episodes: task q0 searches once before it answers, q1 twice, and so on.

    Which of a pair of samples it is, is known from its place in the first call and then carried in the state, so that the two
    samples of a group differ in length and in reward however the rows are split.
    """
    task = int(prompt[prompt.index("q") + 1])
    sample = index % 2 if call == 0 else int(prompt[prompt.rindex("<think>s") + 8])
    if call <= (task + sample) % 4:
        return f"<think>s{sample}{'m' * (task + call)}</think><search>x{call}</search>"
    return f"<think>s{sample}</think><answer>{(task + sample) % 3}</answer>"


class SaveGradient(TrainerCallback):
    """Gradients as the optimizer finds them: after all micro-batches, and after processes have averaged them."""

    def __init__(self):
        self.found = {}
        self.critic = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for part, module in (("policy", model), ("critic", self.critic)):
            if module is not None:
                gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
                self.found[part] = {name.removeprefix("module."): g.clone() for name, g in gradients.items()}


def main() -> None:
    kind, output, (per_device, accumulation, max_tokens) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])
    ppo = {"beta": 0.0, "gamma": 0.97, "lam": 0.9}
    # Both matrices of the adapter are random, so that both have gradients
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    trainer_class, config_class, extra = {
        "grpo": (Mem1GRPOTrainer, Mem1GRPOConfig, {"num_generations": 2}),
        "grpo_mean": (Mem1GRPOTrainer, Mem1GRPOConfig, {"num_generations": 2, "loss_type": "grpo"}),
        # The discount makes every token's advantage its own
        **dict.fromkeys(("ppo", "adapter", "shared"), (Mem1PPOTrainer, Mem1PPOConfig, ppo)),
    }[kind]
    arguments = {"adapter": {"peft_config": adapter}, "shared": {"value_model": "shared"}}.get(kind, {})
    torch.manual_seed(0)
    saver = SaveGradient()
    trainer = trainer_class(
        model=tiny_model("llama"),
        args=config_class(
            output_dir=str(Path(output).parent / "run"),
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            max_tokens_per_micro_batch=max_tokens or None,
            max_steps=1,
            max_turns=6,
            max_completion_length=64,
            max_observation_length=64,
            max_grad_norm=0.0,
            shuffle_dataset=False,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **extra,
        ),
        train_dataset=lookup_dataset(8),
        processing_class=tiny_tokenizer(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
        callbacks=[saver],
        **arguments,
    )
    if trainer_class is Mem1PPOTrainer:
        # The head starts at zero, where nothing below it has a gradient
        torch.nn.init.normal_(trainer.value_model.head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
        saver.critic = trainer.value_model
    generator = None

    def generate_turn(prompts, stops, draws=None):
        return generator(prompts, stops)

    run_episodes = trainer.run_episodes

    def fresh_script(rows):
        nonlocal generator
        generator = ScriptedGenerator(trainer.tokenizer, script)
        return run_episodes(rows)

    trainer.run_episodes = fresh_script
    trainer.rollout.mode = "lockstep"  # the script counts calls of all episodes
    trainer.rollout.generate = generate_turn
    trainer.train()
    log = trainer.state.log_history[0]
    if trainer.accelerator.is_main_process:
        torch.save(
            {
                "processes": trainer.accelerator.num_processes,
                "gradient": saver.found,
                "log": {key: value for key, value in log.items() if isinstance(value, float)},
            },
            output,
        )


if __name__ == "__main__":
    main()
