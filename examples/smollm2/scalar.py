"""
The best constants on logits of the supervised start, and its best temperature: what no training is needed for.

    python examples/smollm2/scalar.py                      # into runs/smollm2/scalar-seed0
    python examples/smollm2/evaluate_tasks.py --label scalar --adapter runs/smollm2/start-seed0/adapter --control runs/smollm2/scalar-seed0/control.json

They are searched on tasks of the train split, since those of the test are for the test alone.
"""

import argparse
from pathlib import Path

from model import load
from runs import Deadline, add_options, count, quiet, scalar_control
from tasks import PROTOCOL, WAIT, environment_factory, limits, tasks

from mem1_trl import Mem1Agent

# Which end the episode, go on, end the state, say that a question is left
TOKENS = ("><answer", "><search", "</think", " next")
VALIDATION = 7919


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, Path("runs/smollm2/scalar-seed0"))
    parser.add_argument("--start", type=Path, default=Path("runs/smollm2/start-seed0/adapter"))
    parser.add_argument("--objectives", type=count, nargs="+", default=[2], help="numbers of objectives of the tasks")
    parser.add_argument("--tasks", type=count, default=100, help="of each number")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    # Two nats changed no episode: the start is sure of its format
    parser.add_argument("--values", type=float, nargs="+", default=[-6.0, 6.0], help="constants to try, in nats")
    args = parser.parse_args()
    path = args.output_dir / "control.json"
    if path.is_file():
        return
    quiet(args)
    agent = Mem1Agent(
        *load(args.base, args.start),
        PROTOCOL,
        batch_size=args.together,
        rollout_batch_wait=WAIT,
        **limits(max(args.objectives)),
    )
    rows = [row for n in args.objectives for row in tasks("train", n, args.tasks, VALIDATION + args.seed)]
    scalar_control(
        agent, rows, environment_factory(), TOKENS, path, Deadline(args.minutes),
        values=args.values, temperatures=args.temperatures, most=1, batch_size=args.together, seed=args.seed,
    )  # fmt: skip


if __name__ == "__main__":
    main()
