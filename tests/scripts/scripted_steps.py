"""
Runs a few optimizer steps of a trainer on scripted episodes and saves what came of them: gradients, logs and weights.

    torchrun --nproc_per_node 2 tests/scripts/scripted_steps.py ppo OUTPUT.pt --per-device 2 --accumulation 2 --shard

Started by `tests/trainers/test_processes.py` and `tests/trainers/test_sharded_ppo.py`.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

os.environ["CI"] = "true"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerate.utils import gather_object
from peft import LoraConfig
from support.deepspeed_on_cpu import engine_on_cpu
from support.fsdp_on_cpu import shard_on_cpu
from support.helpers import tiny_model, tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, ScriptedGenerator, lookup_dataset
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.update.sharded_tensors import fill, own_part, whole, whole_size

torch.set_num_threads(1)


plays = -1
"""How often episodes were played, from 0: all of a batch, and then those of groups that are played again."""


def equal_at_first(task: int, sample: int) -> int:
    """An answer with which the group of task 1 has equal rewards when it is played first, and that of task 3 twice."""
    return (task + (plays > {1: 0, 3: 1}.get(task, -1)) * sample) % 3


def three_groups_right(task: int, sample: int) -> int:
    """An answer that is right in both samples of all groups but that of task 2."""
    return (task + (task == 2) * sample) % 3


def told_apart(task: int, sample: int) -> int:
    """An answer that is right in the first sample of each group."""
    return (task + sample) % 3


def script(call: int, index: int, prompt: str, answer=told_apart, searches: bool = True) -> str:
    """
    Ragged episodes: task q0 searches once before it answers, q1 twice, and so on.

    Which of a pair of samples it is, is known from its place in the first call and then carried in the state, so that the two
    samples of a group differ in length and in reward however the rows are split.
    """
    task = int(prompt[prompt.index("q") + 1])
    sample = index % 2 if call == 0 else int(prompt[prompt.rindex("<think>s") + 8])
    if searches and call <= (task + sample) % 4:
        return f"<think>s{sample}{'m' * (task + call)}</think><search>x{call}</search>"
    return f"<think>s{sample}</think><answer>{answer(task, sample)}</answer>"


def all_of(module: torch.nn.Module, attribute: str = "data") -> dict[str, torch.Tensor]:
    """The trained parameters of a module, or their gradients, by name, whole."""
    found = {
        name: p if attribute == "data" else getattr(p, attribute)
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    # A layer may be inside of others, for data parallelism or for checkpointing
    return {
        name.removeprefix("module.").replace("_checkpoint_wrapped_module.", ""): whole(tensor).detach().clone()
        for name, tensor in found.items()
        if tensor is not None
    }


class TurnByTurn(LookupEnvironment):
    """Rewards every turn."""

    def get_turn_reward(self) -> float:
        return 1.0 if self.given is not None else 0.5 ** len(self.queries)


class OutInTheSecondBatch(LookupEnvironment):
    """Cannot begin an episode of the second batch."""

    def reset(self, **row: object) -> None:
        if plays == 1:
            raise KeyError("row")
        return super().reset(**row)


class SaveGradient(TrainerCallback):
    """Gradients as the optimizer finds them: after all micro-batches, and after processes have averaged them."""

    def __init__(self, stop_after: int):
        self.steps = []
        self.critic = None
        self.stop_after = stop_after

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        modules = {"policy": model, "critic": self.critic}
        self.steps.append({part: all_of(module, "grad") for part, module in modules.items() if module is not None})

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.stop_after


ADAPTER = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
PPO = {"beta": 0.0, "gamma": 0.97, "lam": 0.9}  # the discount makes every token's advantage its own
LEVELS = {"state_loss_weight": 2.5, "advantage_level": "turn"}
GROUPS = {"num_generations": 4, "gamma": 0.9, "lam": 0.8, "max_completion_length": 9}
CUT = {"max_completion_length": 13, "bootstrap_truncated": True}
TEACHER = {"distillation_weight": 0.5, "task_reward_weight": 0.7}  # the policy itself, with the whole history in view
STAGES = {"curriculum_threshold": 0.4, "curriculum_steps": 1, "curriculum_metric": "reward", "num_generations": 2}
ANSWERS = {"grpo_again": equal_at_first, "grpo_skipping": three_groups_right, "grpo_not_skipping": three_groups_right}
ANSWERS |= {"one_turn_skipping": three_groups_right, "one_turn": three_groups_right}
KINDS = {  # trainer, settings, arguments
    "grpo": (Mem1GRPOTrainer, {"num_generations": 2}, {}),
    "idle": (
        Mem1GRPOTrainer,
        {"num_generations": 2, "environment_retries": 0},
        {"environment_factory": OutInTheSecondBatch},
    ),
    "moving": (
        Mem1GRPOTrainer,
        {
            "num_generations": 2,
            "beta": 0.1,
            "sync_ref_model": True,
            "ref_model_sync_steps": 1,
            "ref_model_mixup_alpha": 0.5,
        },
        {},
    ),
    "grpo_halves": (Mem1GRPOTrainer, {"num_generations": 2, "steps_per_generation": 2}, {}),
    "grpo_mean": (Mem1GRPOTrainer, {"num_generations": 2, "loss_type": "grpo"}, {}),
    "grpo_mean_kl": (
        Mem1GRPOTrainer,
        {"num_generations": 2, "loss_type": "grpo", "beta": 0.1},
        {},
    ),
    "grpo_turns": (Mem1GRPOTrainer, {**GROUPS, "advantage_level": "turn"}, {"environment_factory": TurnByTurn}),
    "grpo_states": (
        Mem1GRPOTrainer,
        {**GROUPS, "advantage_level": "state", "state_group_weight": 0.5},
        {"environment_factory": TurnByTurn},
    ),
    "grpo_again": (Mem1GRPOTrainer, {"num_generations": 2, "dynamic_sampling_max_rounds": 3}, {}),
    "grpo_skipping": (Mem1GRPOTrainer, {"num_generations": 2, "skip_zero_advantages": True}, {}),
    "grpo_not_skipping": (Mem1GRPOTrainer, {"num_generations": 2}, {}),
    "one_turn_skipping": (Mem1GRPOTrainer, {"num_generations": 2, "skip_zero_advantages": True}, {}),
    "one_turn": (Mem1GRPOTrainer, {"num_generations": 2}, {}),
    "grpo_taught": (Mem1GRPOTrainer, {"num_generations": 2, **TEACHER}, {}),
    "grpo_taught_turns": (
        Mem1GRPOTrainer,
        {**GROUPS, **TEACHER, "max_completion_length": 64, "distillation_in_reward": True, "advantage_level": "turn"},
        {},
    ),
    "ppo_taught": (Mem1PPOTrainer, {**PPO, **TEACHER, "distillation_in_reward": True}, {}),
    "grpo_stages": (
        Mem1GRPOTrainer,
        STAGES,
        {"train_dataset": lookup_dataset(8).add_column("curriculum_stage", [0] * 3 + [1] * 5)},
    ),
    "ppo": (Mem1PPOTrainer, PPO, {}),
    "ppo_mean_kl": (Mem1PPOTrainer, {**PPO, "loss_type": "dr_grpo", "beta": 0.1, "kl_in_reward": False}, {}),
    "turns": (Mem1PPOTrainer, {**PPO, **LEVELS}, {"environment_factory": TurnByTurn}),
    "two_levels": (
        Mem1PPOTrainer,
        {**PPO, **LEVELS, "advantage_level": "two_level", "token_lam": 0.9},
        {"environment_factory": TurnByTurn},
    ),
    "warmup": (Mem1PPOTrainer, {**PPO, "critic_warmup_steps": 1}, {}),
    "cut": (Mem1PPOTrainer, {**PPO, **CUT}, {}),
    "cut_shared": (Mem1PPOTrainer, {**PPO, **CUT}, {"value_model": "shared"}),
    "checkpointing": (Mem1PPOTrainer, {**PPO, "gradient_checkpointing": True}, {}),
    "reference": (Mem1PPOTrainer, {**PPO, "beta": 0.1, "layout": "per_turn"}, {}),
    # Both matrices of the adapter are random, so that both have gradients
    "adapter": (Mem1PPOTrainer, PPO, {"peft_config": LoraConfig(**ADAPTER, init_lora_weights=False)}),
    "grpo_adapter": (
        Mem1GRPOTrainer,
        {"num_generations": 2},
        {"peft_config": LoraConfig(**ADAPTER, init_lora_weights=False)},
    ),
    "shared": (Mem1PPOTrainer, PPO, {"value_model": "shared"}),
    "shared_warmup": (Mem1PPOTrainer, {**PPO, "critic_warmup_steps": 1}, {"value_model": "shared"}),
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("output", type=Path)
    parser.add_argument("--per-device", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--max-grad-norm", type=float, default=0.0)
    parser.add_argument("--shard", action="store_true", help="under FSDP2")
    parser.add_argument("--zero", type=int, help="under DeepSpeed, at this stage")
    parser.add_argument("--from-path", action="store_true", help="the policy is loaded by the trainer")
    parser.add_argument("--critic-from-path", action="store_true", help="and so is the critic")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=VALUE", help="a variable of the engine")
    parser.add_argument("--run", type=Path, help="directory of a run that saves a checkpoint at each step")
    parser.add_argument("--stop-after", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def make(chosen: argparse.Namespace, saver: SaveGradient) -> Mem1GRPOTrainer | Mem1PPOTrainer:
    trainer_class, settings, arguments = KINDS[chosen.kind]
    if chosen.shard:
        shard_on_cpu(**dict(variable.split("=") for variable in chosen.engine))
    if chosen.zero:
        settings = {**settings, "deepspeed": engine_on_cpu(chosen.zero)}
    torch.manual_seed(0)
    model = tiny_model("llama")
    saved = chosen.output.parent / f"{chosen.output.stem}-model-{os.environ.get('RANK', '0')}"
    if chosen.from_path or chosen.critic_from_path:
        model.save_pretrained(saved)
    if chosen.critic_from_path:
        arguments = {**arguments, "value_model": str(saved)}
    torch.manual_seed(0)
    trainer = trainer_class(
        model=str(saved) if chosen.from_path else model,
        args=(Mem1PPOConfig if trainer_class is Mem1PPOTrainer else Mem1GRPOConfig)(
            **{
                "output_dir": str(chosen.run or chosen.output.parent / "run"),
                "per_device_train_batch_size": chosen.per_device,
                "gradient_accumulation_steps": chosen.accumulation,
                "max_tokens_per_micro_batch": chosen.max_tokens,
                "max_steps": chosen.steps,
                "max_turns": 6,
                "max_completion_length": 64,
                "max_observation_length": 64,
                "max_grad_norm": chosen.max_grad_norm,
                "learning_rate": 1e-3,
                "adam_epsilon": 1e-4,  # so that what is 0 but for rounding does not become a step
                "shuffle_dataset": False,
                "bf16": chosen.bf16,
                "use_cpu": not (chosen.shard or chosen.zero),
                "gradient_checkpointing": False,
                "logging_steps": 1,
                "save_strategy": "steps" if chosen.run else "no",
                "save_steps": 1,
                "report_to": "none",
                "disable_tqdm": True,
                **settings,
            }
        ),
        processing_class=tiny_tokenizer(),
        protocol=SHORT,
        callbacks=[saver],
        **{"environment_factory": LookupEnvironment, "train_dataset": lookup_dataset(8), **arguments},
    )
    if trainer_class is Mem1PPOTrainer:
        # The head starts at zero, where nothing below it has a gradient
        weight = torch.randn(trainer.value_model.head.weight.shape, generator=torch.Generator().manual_seed(1)) / 2
        fill({"weight": trainer.value_model.head.weight.data}, {"weight": weight})
        saver.critic = trainer.value_model
    return trainer


def averaged(averages: list[int], bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    averages.append(bucket.buffer().nbytes)
    return allreduce_hook(None, bucket)


def main() -> None:
    chosen = options()
    saver = SaveGradient(chosen.stop_after)
    trainer = make(chosen, saver)
    generator = None

    def generate_turn(prompts, stops, draws=None):
        return generator(prompts, stops)

    run_episodes = trainer.run_episodes

    searches = not chosen.kind.startswith("one_turn")
    said = partial(script, answer=ANSWERS.get(chosen.kind, told_apart), searches=searches)

    def fresh_script(rows):
        nonlocal generator
        global plays
        plays += 1
        generator = ScriptedGenerator(trainer.tokenizer, said, trainer.args.max_completion_length)
        return run_episodes(rows)

    trainer.run_episodes = fresh_script
    extra_loss = trainer.extra_loss
    trained: list[int] = []  # sampled tokens of each pass

    def counted(batch):
        trained.append(int(trainer.sampled_mask(batch).sum()))
        return extra_loss(batch)

    trainer.extra_loss = counted
    averages: list[int] = []  # bytes of gradients of the critic that went over the processes
    if isinstance(getattr(trainer, "critic", None), DistributedDataParallel):
        trainer.critic.register_comm_hook(averages, averaged)
    trainer.rollout.mode = "lockstep"  # the script counts calls of all episodes
    trainer.rollout.generate = generate_turn
    trainer.train(resume_from_checkpoint=chosen.resume)
    modules = {"policy": trainer.model, "critic": saver.critic}
    weights = {part: all_of(module) for part, module in modules.items() if module is not None}
    of_critic = getattr(trainer, "critic_optimizer", None)
    trained_everywhere = gather_object([trained])
    if trainer.accelerator.is_main_process:
        logs = [
            {key: value for key, value in entry.items() if isinstance(value, float)}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
        torch.save(
            {
                "processes": trainer.accelerator.num_processes,
                "distributed": str(trainer.accelerator.distributed_type),
                "gradients": saver.steps,
                "trained": trained_everywhere,
                "averages": averages,
                "logs": logs,
                "weights": weights,
                "parts": {
                    part: sum(own_part(p).numel() for p in module.parameters())
                    / sum(map(whole_size, module.parameters()))
                    for part, module in modules.items()
                    if module is not None
                },
                "own_optimizer": of_critic is not None,
            },
            chosen.output,
        )


if __name__ == "__main__":
    main()
