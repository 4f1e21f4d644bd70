"""
Reinforcement learning from the supervised start, by PPO or GRPO; it resumes after any interruption.

    python examples/smollm2/train.py --objectives 1 2 3 4 --reward positional --output_dir runs/smollm2/grpo-mixed-seed0
    python examples/smollm2/train.py --algorithm ppo --output_dir runs/smollm2/ppo-2-seed0   # on two objectives
    python examples/smollm2/train.py --minutes 60                                  # an hour of it; the next start goes on

The reward is the paper's exact match for each objective, 0 unless there are as many answers as questions, or with `--reward positional`
the share that is right by position, or with `--reward counted` that share of as many answers as were given, if they are more than the
questions; less 1 if a state outgrew its budget. Each step is a line of `training.jsonl`.
"""

import argparse
from pathlib import Path

import torch
from model import load
from runs import Deadline, Record, add_options, count, finish, is_done, quiet, rate
from tasks import PROTOCOL, REWARDS, WAIT, curriculum, environment_factory, limits, over_budget
from transformers import PrinterCallback

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.trainers.checkpoints import last_complete_checkpoint

WARM_UP = 5
"""Steps in which the learning rate rises: the first ones of Adam move every weight by as much as it is, mostly by noise."""
STAGE_STEPS = 5
POOL = 2000
"""Tasks to draw from. It does not depend on the steps, so that a finished run can be made longer: `--steps 120`."""


def configuration(args):
    settings = dict(
        output_dir=str(args.output_dir / "checkpoints"),
        max_steps=args.steps,
        context=args.context,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant_with_warmup",  # so that a run can be made longer
        warmup_steps=WARM_UP,
        layout=args.layout,
        beta=args.beta,
        num_iterations=args.num_iterations,
        temperature=args.temperature,
        gradient_checkpointing=False,
        bf16=False,
        tf32=torch.cuda.is_available() or None,
        merge_adapter=torch.cuda.is_available(),  # on a CPU an adapter costs little
        advantage_level=args.advantage_level,
        rollout_batch_wait=WAIT,
        shuffle_dataset=False,  # its order is drawn already
        logging_steps=1,
        save_strategy="steps",
        save_steps=args.save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
        **limits(max(args.objectives)),
    )
    if args.curriculum is not None:
        settings |= dict(
            curriculum_threshold=args.curriculum, curriculum_steps=STAGE_STEPS, curriculum_metric="reward"
        )
    at_once = args.played // args.batch_size  # steps for which episodes are played at once
    in_parts = dict(per_device_train_batch_size=args.batch_size, max_tokens_per_micro_batch=args.tokens_per_pass)
    if args.algorithm == "ppo":
        settings |= dict(in_parts, steps_per_generation=at_once)
        return Mem1PPOConfig(value_learning_rate=args.value_learning_rate, gamma=args.gamma, lam=args.lam, **settings)
    if args.top_entropy_quantile < 1.0:
        # The most uncertain tokens are those of a pass, which takes as many episodes as a group has
        settings |= dict(
            per_device_train_batch_size=args.generations,
            gradient_accumulation_steps=args.batch_size // args.generations,
            steps_per_generation=args.played // args.generations,
            top_entropy_quantile=args.top_entropy_quantile,
        )
    else:
        settings |= dict(in_parts, steps_per_generation=at_once)
    # A third of the groups or more are all right or all wrong, and but for the divergence nothing is learned from them
    return Mem1GRPOConfig(num_generations=args.generations, skip_zero_advantages=not args.beta, **settings)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, Path("runs/smollm2/grpo-2-seed0"))
    parser.add_argument("--start", type=Path, default=Path("runs/smollm2/start-seed0/adapter"))
    parser.add_argument("--algorithm", choices=["grpo", "ppo"], default="grpo")
    parser.add_argument("--objectives", type=count, nargs="+", default=[2], help="numbers of objectives of the tasks")
    parser.add_argument(
        "--curriculum",
        type=rate,
        default=None,
        help="train on one objective alone until so much of the reward of five batches is reached, as .6 (default: at once on all)",
    )
    parser.add_argument("--reward", choices=sorted(REWARDS), default="exact")
    parser.add_argument("--context", choices=["mem1", "full"], default="mem1")
    parser.add_argument("--steps", type=count, default=50)
    parser.add_argument("--batch_size", type=count, default=24, help="episodes of a step")
    parser.add_argument(
        "--played",
        type=count,
        default=48,
        help="episodes that are played at once, for several steps: a token for many takes little longer than for one",
    )
    parser.add_argument("--generations", type=count, default=8, help="episodes for each task with GRPO")
    parser.add_argument(
        "--num_iterations",
        type=count,
        default=2,
        help="times that each episode is learned from: playing it takes longer than learning from it",
    )
    parser.add_argument(
        "--top_entropy_quantile",
        type=rate,
        default=0.2,
        help="share of the tokens of GRPO that carries loss, those of which the model is least sure: what is kept, not the format",
    )
    parser.add_argument("--temperature", type=rate, default=1.0, help="of sampling and of the update")
    parser.add_argument("--learning_rate", type=rate, default=3e-4)
    parser.add_argument("--value_learning_rate", type=rate, default=5e-4)
    parser.add_argument(
        "--advantage_level",
        default=None,
        help="what an advantage is of: with GRPO `episode` (default), `turn`, `state`; with PPO `token` (default), `turn`, `two_level`",
    )
    parser.add_argument(
        "--beta",
        type=float,
        default=0.0,
        help="weight of the divergence from the start, over all tokens: it holds what carries no loss, such as what is searched for",
    )
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--lam", type=float, default=1.0)
    parser.add_argument(
        "--layout", choices=["packed", "per_turn"], default="packed", help="of the update, exact in both"
    )
    parser.add_argument(
        "--save_steps", type=count, default=2, help="on a CPU a step takes minutes, a checkpoint under a second"
    )
    parser.add_argument(
        "--tokens_per_pass",
        type=count,
        default=2400,
        help="tokens of one forward pass of the update, for PPO and without top_entropy_quantile",
    )
    args = parser.parse_args()
    if args.algorithm == "grpo" and args.batch_size % args.generations:
        parser.error(f"batch_size={args.batch_size} must be a multiple of generations={args.generations}")
    if args.played % args.batch_size:
        parser.error(f"played={args.played} must be a multiple of batch_size={args.batch_size}")
    args.advantage_level = args.advantage_level or ("token" if args.algorithm == "ppo" else "episode")
    return args


def main():
    args = parse_arguments()
    if is_done(args.output_dir, args.steps):
        return
    deadline = Deadline(args.minutes)
    quiet(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(args.base, args.start, trainable=True)
    record = Record(args.output_dir, deadline)
    trainer_class = Mem1PPOTrainer if args.algorithm == "ppo" else Mem1GRPOTrainer
    trainer = trainer_class(
        model=model,
        args=configuration(args),
        reward_funcs=[over_budget],
        train_dataset=curriculum(args.objectives, args.curriculum is not None, POOL, args.seed),
        processing_class=tokenizer,
        environment_factory=environment_factory(args.reward),
        protocol=PROTOCOL,
        callbacks=[record],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(trainer.args.output_dir))
    names = (
        "algorithm",
        "advantage_level",
        "objectives",
        "reward",
        "curriculum",
        "context",
        "batch_size",
        "played",
        "generations",
        "num_iterations",
        "temperature",
        "top_entropy_quantile",
        "learning_rate",
        "beta",
        "seed",
    )
    finish(trainer, record, args.output_dir, {name: getattr(args, name) for name in names})


if __name__ == "__main__":
    main()
