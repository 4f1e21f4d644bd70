"""
Ask the real model, and watch it remember: episodes turn by turn, in about a minute.

    python examples/smollm2/ask.py                                             # two held-out tasks, every adapter that is there
    python examples/smollm2/ask.py --adapter runs/smollm2/grpo-mixed-seed0/adapter "What is the capital of Peru?" "Which block does iron belong to?"

Adapters in `examples/smollm2/adapters/` are shown one after the other: the supervised start, and what reinforcement made of it (seed 0).
"""

import argparse
from pathlib import Path

from model import load
from rich.console import Console
from runs import add_options, quiet
from tasks import PROTOCOL, environment_factory, limits, numbered, tasks

from mem1_trl import Mem1Agent
from mem1_trl.display import print_trajectory

ADAPTERS = Path(__file__).parent / "adapters"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, None)
    parser.add_argument("questions", nargs="*", help="questions of one task (default: two held-out tasks of two)")
    parser.add_argument("--adapter", type=Path, nargs="+", default=None, help="folders of adapters")
    args = parser.parse_args()
    adapters = args.adapter or [path.parent for path in sorted(ADAPTERS.glob("*/adapter_config.json"))]
    if not adapters:
        parser.error(
            f"--adapter must name a folder with an adapter, since {ADAPTERS} has none: start.py and train.py make one"
        )
    quiet(args)
    if args.questions:
        rows = [numbered({"questions": args.questions})]
    else:
        rows = [dict(row) for row in tasks("test", 2, 2, args.seed)]
    console = Console()
    for adapter in adapters:
        console.rule(str(adapter))
        model, tokenizer = load(args.base, adapter)
        agent = Mem1Agent(model, tokenizer, PROTOCOL, **limits(max(2, len(args.questions))))
        for trajectory, row in zip(agent.run_batch(rows, [environment_factory()() for _ in rows]), rows):
            print_trajectory(trajectory, tokenizer, console)
            if row.get("answers"):
                console.print(f"right answers: {'; '.join(accepted[0] for accepted in row['answers'])}")


if __name__ == "__main__":
    main()
