"""
Reinforcement learning of what to keep, from a model of `warm_up.py`; it resumes after any interruption.

    python examples/memory_world/train.py --start runs/memory-world/warm-up-seed0 --output_dir runs/memory-world/grpo-seed0

The tasks get harder: first which row of a passage to keep (`choose`), then also with a kind that has to be carried from the first observation,
where it stands alone (`carry`) and then among others (`cue`), then also whether to replace a row (`evict`).
"""

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agents import TRAINED_ON, freeze_embeddings, limits, state_rows
from datasets import Dataset
from example_options import count, rate
from long_runs import Deadline, Record, finish, is_done, quiet
from transformers import AutoTokenizer, PrinterCallback
from world import ASKED, LEVELS, PROTOCOL, Passages, draw_task, rows_of

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.trainers.checkpoints import last_complete_checkpoint

PHASES = ((0.2, ("choose",)), (0.12, ("choose", "carry")), (0.25, ("choose", "carry", "cue")), (0.43, LEVELS))
"""
Share of the steps, and the levels that are mixed in them.

Without `carry` one of two seeds did not learn the cue: it had learned to find rows by the kind in the prompt, so that a kind in the state
did not pay, and none was kept there.
"""
WITHOUT_CARRY = ((0.23, ("choose",)), (0.32, ("choose", "cue")), (0.45, LEVELS))


def curriculum(count, seed, phases=PHASES):
    """
    Tasks in the order in which they are trained on.

    Kinds that are held out do not stand beside others either: what is never right would be learned to be wrong.
    """
    rng = random.Random(f"train {seed}")
    levels = [rng.choice(levels) for share, levels in phases for _ in range(round(share * count))]
    return Dataset.from_list([draw_task(rng, level, TRAINED_ON, ASKED, beside=ASKED).row() for level in levels])


class MemoryLog:
    """
    Writes after each batch what the last states hold: of the needed rows and of the others, the share kept by the turns since they were read.

    It is given as a reward function and rewards nothing.
    """

    __name__ = "memory_log"

    def __init__(self, path):
        self.path = path

    def __call__(self, prompts, trajectories, observations, wanted, level, trainer_state, **row):
        counts = {}
        for trajectory, shown, needed, of in zip(trajectories, observations, wanted, level):
            _, held = state_rows(trajectory.turns[-1].state if trajectory.turns else None)
            passages = shown[1:] if of in ("carry", "cue") else shown
            for age, passage in enumerate(reversed(passages), start=1):
                for text in rows_of(passage.removesuffix(" end")):
                    found = counts.setdefault(f"{of} {'needed' if text in needed else 'other'} {age}", [0, 0])
                    found[0] += text in held
                    found[1] += 1
        with self.path.open("a") as file:
            file.write(json.dumps({"step": trainer_state.global_step, "kept": counts}) + "\n")
        return [None] * len(prompts)


CREDIT = ("advantage_level", "gamma", "lam")
"""Settings of credit; the default of each is that of the algorithm."""


def configuration(args):
    settings = dict(
        output_dir=str(args.output_dir / "checkpoints"),
        max_steps=args.steps,
        context=args.context,
        layout=args.layout,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        beta=args.beta,
        temperature=1.0,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        logging_steps=1,
        save_strategy="steps",
        save_steps=10,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
        model_init_kwargs={"dtype": "float32"},
        **limits(TRAINED_ON),
    )
    settings |= {name: getattr(args, name) for name in CREDIT if getattr(args, name) is not None}
    if args.algorithm == "ppo":
        # In the reward the penalty would be divided, as all advantages are, by their standard deviation of about a quarter,
        # and so be four times that of GRPO: the critic is to be the only difference
        return Mem1PPOConfig(value_learning_rate=1e-3, kl_in_reward=False, **settings)
    return Mem1GRPOConfig(num_generations=args.generations, **settings)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--algorithm", choices=["grpo", "ppo"], default="grpo")
    parser.add_argument("--context", choices=["mem1", "full"], default="mem1")
    parser.add_argument("--layout", choices=["packed", "paper"], default="packed")
    parser.add_argument("--without_carry", action="store_true", help="go on from `choose` to the cue at once")
    parser.add_argument(
        "--train_embeddings", action="store_true", help="what words are said, and which are not, is learned, too"
    )
    parser.add_argument("--steps", type=count, default=450)
    parser.add_argument("--batch_size", type=count, default=128, help="episodes of a step")
    parser.add_argument("--generations", type=count, default=16, help="episodes for each task with GRPO")
    parser.add_argument("--learning_rate", type=rate, default=7e-4)
    parser.add_argument(
        "--beta", type=float, default=0.04, help="weight of the KL to the start: keeps what is not decided yet open"
    )
    parser.add_argument(
        "--advantage_level",
        default=None,
        help="what is credited: token, turn or two_level (PPO), episode, turn or state (GRPO)",
    )
    parser.add_argument("--gamma", type=float, default=None)
    parser.add_argument("--lam", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long")
    parser.add_argument(
        "--stop_at",
        type=count,
        default=None,
        help="stop after this step with a checkpoint, from which a later call goes on",
    )
    return parser.parse_args()


def main():
    args = parse_arguments()
    checkpoint = last_complete_checkpoint(args.output_dir / "checkpoints")
    come_to = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    if come_to == args.stop_at or (args.stop_at is None and is_done(args.output_dir, args.steps)):
        return
    if args.stop_at is not None and not come_to < args.stop_at < args.steps:
        raise SystemExit(
            f"--stop_at must be a step after the last checkpoint, {come_to}, and before the end, {args.steps}, "
            f"but is {args.stop_at}"
        )
    quiet(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    record = Record(args.output_dir, Deadline(args.minutes), stop_at=args.stop_at)
    # As many tasks as are read: each `generations` times with GRPO, once with PPO
    each = args.generations if args.algorithm == "grpo" else 1
    trainer_class = Mem1PPOTrainer if args.algorithm == "ppo" else Mem1GRPOTrainer
    trainer = trainer_class(
        model=str(args.start),
        args=configuration(args),
        reward_funcs=[MemoryLog(args.output_dir / "memory.jsonl")],
        train_dataset=curriculum(
            args.steps * args.batch_size // each, args.seed, WITHOUT_CARRY if args.without_carry else PHASES
        ),
        processing_class=AutoTokenizer.from_pretrained(args.start),
        environment_factory=Passages,
        protocol=PROTOCOL,
        callbacks=[record],
    )
    trainer.remove_callback(PrinterCallback)
    if not args.train_embeddings:
        freeze_embeddings(trainer.model)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step == args.stop_at:
        return
    names = ["algorithm", "context", "layout", "batch_size", "generations", "learning_rate", "beta", *CREDIT, "train_embeddings", "seed"]  # fmt: skip
    finish(trainer, record, args.output_dir, {name: getattr(args, name) for name in names}, "model")


if __name__ == "__main__":
    main()
