"""
The whole experiment, seed by seed; stopped at any point, it goes on when it is started again.

    OMP_NUM_THREADS=1 python examples/memory_world/run_all.py                  # everything, hours of one core
    python examples/memory_world/run_all.py --seeds 0 --stages start grpo      # a part of it
    python examples/memory_world/run_all.py --minutes 60                       # an hour of it
    python examples/memory_world/run_all.py --stages ppo-token --stop_at 260   # the first steps of a training, tested
    python examples/memory_world/run_all.py --short --output_dir runs/short    # every stage in a minute or two; the numbers mean nothing
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agents import TOGETHER, TRAINED_ON, load_agent, test_agent
from example_options import count
from imitate import RULES
from long_runs import UNFINISHED, Deadline, is_done, quiet, scalar_control, write_json
from warm_up import warm_up
from world import ASKED, KINDS, LEVELS, SLOTS, Passages, tasks

HERE = Path(__file__).parent
ABLATIONS = {  # label -> options of train.py; of the first seed
    "grpo-embeddings": ["--train_embeddings"],
    "grpo-no-carry": ["--without_carry"],
    "grpo-stitched": ["--layout", "paper"],
    "ppo-discounted": ["--algorithm", "ppo", "--gamma", "0.99", "--lam", "0.9"],
}
CREDIT = {  # label -> options of train.py; of every seed
    "grpo-turn": ["--advantage_level", "turn", "--lam", "0.9"],
    "grpo-state": ["--advantage_level", "state"],
    "ppo-token": ["--algorithm", "ppo"],
    "ppo-turn": ["--algorithm", "ppo", "--advantage_level", "turn", "--gamma", "0.99", "--lam", "0.9"],
    "ppo-two-level": ["--algorithm", "ppo", "--advantage_level", "two_level", "--gamma", "0.99", "--lam", "0.9"],
}
TRAININGS = {"grpo": [], **ABLATIONS, **CREDIT}
STAGES = ("start", "grpo", *RULES, "scalar", "twin", *ABLATIONS, *CREDIT)


class Experiment:
    """The stages of one seed."""

    def __init__(self, args, seed):
        self.args, self.seed, self.deadline = args, seed, args.deadline
        self.start = self.folder("warm-up")

    def folder(self, label):
        return self.args.output_dir / f"{label}-seed{self.seed}"

    def run(self, stage):
        print(f"== {stage}, seed {self.seed}, {time.strftime('%H:%M:%S')}", flush=True)
        if stage == "start":
            self.teach(self.start, "mem1")
            self.test("start", self.start / "model")
        elif stage in RULES:
            self.script("imitate", stage, "--like", self.folder("grpo"), "--start", self.start / "model",
                        "--output_dir", self.folder(stage))  # fmt: skip
            self.test(stage, Path(json.loads((self.folder(stage) / "done.json").read_text())["model"]))
        elif stage == "scalar":
            self.scalar()
        elif stage == "twin":
            place = self.folder("twin-warm-up")
            self.teach(place, "full")
            self.test("twin-start", place / "model", "full")
            self.train("twin", place / "model", "--context", "full")
            self.test("twin", self.folder("twin") / "model", "full")
        else:
            end, place = self.args.stop_at, self.folder(stage)
            part = [] if end is None else ["--stop_at", end]
            self.train(stage, self.start / "model", *part, *TRAININGS[stage])
            if end is None:
                self.test(stage, place / "model")
            else:  # a later call goes on with it
                self.test(stage, place / "checkpoints" / f"checkpoint-{end}", part=f"at-{end}")

    def teach(self, place, context):
        if is_done(place):
            return
        if not self.deadline.leaves(60):
            raise SystemExit(UNFINISHED)
        record = warm_up(place / "model", context, self.seed, self.args.warm_up_steps)
        write_json(place / "done.json", record)

    def train(self, label, start, *options):
        self.script("train", "--start", start, "--output_dir", self.folder(label), "--steps", self.args.steps,
                    "--batch_size", self.args.batch_size, *options)  # fmt: skip

    def script(self, name, *options):
        command = [sys.executable, HERE / f"{name}.py", *options, "--seed", self.seed, "--threads", self.args.threads]
        if self.args.minutes is not None:
            command += ["--minutes", f"{max(0.0, (self.deadline.end - time.monotonic()) / 60):.2f}"]
        status = subprocess.run(list(map(str, command))).returncode
        if status:
            raise SystemExit(status)

    def test(self, label, model, context="mem1", change=None, part=""):
        test_agent(label, model, self.folder(label) / part, self.seed, self.deadline, self.args.tasks, context, change)

    def scalar(self):
        """The best constants on logits of the start, by the reward on tasks of their own; one search for all levels."""
        path = self.folder("scalar") / "control.json"
        rows = [
            row
            for level in LEVELS
            for row in tasks(level, self.args.tasks // 2, TRAINED_ON, f"validation {self.seed}", ASKED)
        ]
        tokens = ["<answer>", "<search>", "</think>", ";", *SLOTS[:3], *(KINDS[:3] if self.args.short else KINDS)]
        control = scalar_control(
            load_agent(self.start / "model"), rows, Passages, tokens, path, self.deadline,
            values=(-4.0, 4.0), temperatures=(0.0, 0.5, 1.0, 1.5), most=1, batch_size=TOGETHER, seed=self.seed,
        )  # fmt: skip

        def change(settings):
            # Beside sampling at 1, the temperature that was found
            return dataclasses.replace(
                control.apply(settings), temperature=settings.temperature or control.temperature
            )

        self.test("scalar", self.start / "model", change=change)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/memory-world"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=count, default=450)
    parser.add_argument("--batch_size", type=count, default=128)
    parser.add_argument("--warm_up_steps", type=count, default=900)
    parser.add_argument("--tasks", type=count, default=200, help="tasks of a cell of the tests")
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument(
        "--stop_at", type=count, default=None, help="train to this step only, and test what was learned"
    )
    parser.add_argument("--short", action="store_true", help="a few steps of everything; the numbers mean nothing")
    args = parser.parse_args()
    args.seed, args.deadline = args.seeds[0], Deadline(args.minutes)
    quiet(args)
    if args.stop_at is not None and not set(args.stages) <= set(TRAININGS):
        parser.error(f"--stop_at needs --stages of {', '.join(TRAININGS)}, but they are {', '.join(args.stages)}")
    if args.short:
        args.seeds, args.steps, args.batch_size, args.warm_up_steps, args.tasks = [0], 2, 32, 20, 4
    for seed in args.seeds:
        experiment = Experiment(args, seed)
        for stage in args.stages:
            if stage in ABLATIONS and seed != args.seeds[0]:
                continue
            experiment.run(stage)


if __name__ == "__main__":
    main()
