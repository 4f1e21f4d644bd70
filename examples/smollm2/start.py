"""
The supervised start: demonstrations of one and of two objectives teach format, searching, carrying and answering, and not what to keep.

Its adapter is rounded to half precision, in which the repository keeps it, so that whatever goes on from a kept one goes on from the same weights.

    python examples/smollm2/start.py    # into runs/smollm2/start-seed0
"""

import argparse
from pathlib import Path

from demonstrator import demonstrator, lessons, mostly_without_kept
from model import keep, load
from runs import Deadline, add_options, count, is_done, quiet, rate, supervised
from tasks import environment_factory

from mem1_trl.demonstrations import collect_trajectories, demonstration_dataset


def demonstrations(tokenizer, rows, path, context="mem1", knows=False):
    """Rows for `SFTTrainer`, of demonstrated episodes; what they keep is learned from all of them only if they keep what is asked for."""
    agent = demonstrator(tokenizer, context=context, knows=knows)
    played = collect_trajectories(agent, rows, environment_factory(), path, disable_tqdm=True)
    dataset = demonstration_dataset(played)
    return dataset if knows else mostly_without_kept(dataset, played, tokenizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, Path("runs/smollm2/start-seed0"))
    parser.add_argument("--steps", type=count, default=400)
    parser.add_argument("--batch_size", type=count, default=4, help="turns in one step")
    parser.add_argument(
        "--demonstrations", type=count, default=600, help="tasks that are demonstrated, of two or three turns each"
    )
    parser.add_argument("--learning_rate", type=rate, default=1e-3)
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="compute in bfloat16, the adapter stays float32; twice as fast where the processor can",
    )
    args = parser.parse_args()
    if is_done(args.output_dir, args.steps):
        return
    deadline = Deadline(args.minutes)
    quiet(args)
    model, tokenizer = load(args.base, trainable=True)
    rows = lessons(args.seed, args.demonstrations)
    dataset = demonstrations(tokenizer, rows, args.output_dir / "demonstrations.jsonl")
    settings = {
        name: getattr(args, name) for name in ("batch_size", "learning_rate", "seed", "bf16", "demonstrations")
    }
    supervised(model, tokenizer, dataset, args.output_dir, args.steps, deadline, settings, bf16=args.bf16)
    keep(args.output_dir / "adapter", args.output_dir / "adapter")


if __name__ == "__main__":
    main()
