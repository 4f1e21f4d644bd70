"""
Controls that need no reinforcement, of the same size as a finished run of `train.py`.

    python examples/smollm2/imitate.py imitation --like runs/smollm2/grpo-anchored-seed0
    python examples/smollm2/imitate.py supervised --like runs/smollm2/grpo-anchored-seed0
    python examples/smollm2/imitate.py again --like runs/smollm2/grpo-anchored-seed0
    python examples/smollm2/imitate.py taught --like runs/smollm2/grpo-anchored-seed0
    python examples/smollm2/imitate.py imitation --context full --like runs/smollm2/grpo-anchored-seed0   # of the twin that appends

`imitation` plays as many episodes as that run did (with those it goes on from), of as many objectives, in three rounds, and learns those that answered everything; each round plays
the model of the last one. The others train on demonstrations for as many processor seconds as that run took: `supervised` on new ones, `again` on
those of the start, and `taught` on new ones that keep what is asked for, which shows what reinforcement has to find by itself.
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset
from demonstrator import lessons
from model import load
from runs import UNFINISHED, Deadline, add_options, count, is_done, quiet, rate, read_lines, supervised, write_json
from start import demonstrations
from tasks import PROTOCOL, WAIT, environment_factory, limits, tasks

from mem1_trl import Mem1Agent
from mem1_trl.demonstrations import collect_trajectories, demonstration_dataset, select_trajectories


def play(args, adapter, rows, path, deadline):
    """Sampled episodes of an adapter, as far as the time allows."""
    model, tokenizer = load(args.base, adapter)
    agent = Mem1Agent(
        model,
        tokenizer,
        PROTOCOL,
        context=args.context,
        temperature=args.temperature,
        batch_size=args.together,
        rollout_batch_wait=WAIT,
        **limits(max(args.objectives)),
    )
    for end in range(args.together, len(rows) + args.together, args.together):
        if not deadline.leaves(60):
            raise SystemExit(UNFINISHED)
        played = collect_trajectories(
            agent, rows.select(range(min(end, len(rows)))), environment_factory(), path, batch_size=args.together,
            disable_tqdm=True,
        )  # fmt: skip
    return played


def imitate(args, settings, deadline):
    """Rounds of playing and learning; the adapter of the last round is the result."""
    adapter, kept_in_rounds = args.start, []
    each = args.episodes // args.rounds
    for number in range(1, args.rounds + 1):
        place = args.output_dir / f"round{number}"
        rows = _mixed(args.objectives, each, args.seed * 100 + number)
        played = play(args, adapter, rows, place / "episodes.jsonl", deadline)
        kept = [t for t in played if t.reward == 1.0]
        kept_in_rounds.append(len(kept))
        if kept and not is_done(place):
            dataset = demonstration_dataset(select_trajectories(kept, best_per_task=2))
            steps = max(1, args.epochs * len(dataset) // settings["batch_size"])
            model, tokenizer = load(args.base, adapter, trainable=True)
            supervised(model, tokenizer, dataset, place, steps, deadline, settings, save_steps=args.save_steps)
        adapter = place / "adapter" if kept else adapter
    record = {**settings, "episodes": each * args.rounds, "kept": kept_in_rounds, "adapter": str(adapter)}
    write_json(args.output_dir / "done.json", record)


def _mixed(objectives, count, seed):
    """Tasks of several numbers of objectives in turn, so that any part of them is a mixture."""
    each = [tasks("train", n, -(-count // len(objectives)), seed) for n in objectives]
    return Dataset.from_list([row for rows in zip(*each) for row in rows][:count])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("control", choices=["imitation", "supervised", "again", "taught"])
    add_options(parser, None)
    parser.add_argument(
        "--like",
        type=Path,
        nargs="+",
        default=[],
        help="folder of the run of train.py that it is held against, and of those from which that one goes on",
    )
    parser.add_argument(
        "--episodes", type=count, default=None, help="of imitation, where that run is not finished yet"
    )
    parser.add_argument(
        "--objectives",
        type=count,
        nargs="+",
        default=None,
        help="of the tasks of imitation, where that run is not finished yet",
    )
    parser.add_argument(
        "--cpu_seconds", type=rate, default=None, help="of supervised training, where that run is not finished yet"
    )
    parser.add_argument(
        "--temperature", type=rate, default=1.0, help="of imitation, where that run is not finished yet"
    )
    parser.add_argument("--context", choices=["mem1", "full"], default="mem1", help="full: of the twin that appends")
    parser.add_argument("--start", type=Path, default=Path("runs/smollm2/start-seed0/adapter"))
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--epochs", type=count, default=2, help="times that each round reads its successful episodes")
    parser.add_argument("--batch_size", type=count, default=4, help="turns in one step")
    parser.add_argument("--learning_rate", type=rate, default=2e-4)
    parser.add_argument("--save_steps", type=count, default=2)
    args = parser.parse_args()
    size = "episodes" if args.control == "imitation" else "cpu_seconds"
    if args.output_dir is None:
        if not args.like:
            parser.error("--like or --output_dir must be given")
        of_twin = "twin-" if args.context == "full" else ""
        args.output_dir = args.like[0].with_name(f"{of_twin}{args.control}-{args.like[0].name}")
    if is_done(args.output_dir):
        return
    if getattr(args, size) is None:
        unfinished = [folder for folder in args.like if not is_done(folder)]
        if unfinished or not args.like:
            parser.error(
                f"--like must be finished runs of train.py, but {unfinished[0] if unfinished else 'it'} has no done.json; or --{size} must be given"
            )
        runs = [json.loads((folder / "done.json").read_text()) for folder in args.like]
        args.episodes = sum(run["steps"] * run["batch_size"] // run["num_iterations"] for run in runs)
        args.cpu_seconds, args.temperature = sum(run["cpu_seconds"] for run in runs), runs[-1]["temperature"]
        args.objectives = args.objectives or runs[0]["objectives"]
    args.objectives = args.objectives or [2]
    deadline = Deadline(args.minutes)
    quiet(args)
    settings = {name: getattr(args, name) for name in ("control", "context", "batch_size", "learning_rate", "seed")}
    if args.control == "imitation":
        return imitate(args, settings, deadline)
    model, tokenizer = load(args.base, args.start, trainable=True)
    # No step is that short, so the processor seconds end it
    steps = max(1, int(50 * args.cpu_seconds))
    if args.control == "again":
        path = args.start.with_name("demonstrations.jsonl")
        if not path.is_file():
            parser.error(
                f"--start must be an adapter of start.py, with its demonstrations beside it, but there is no {path}"
            )
        rows = lessons(args.seed, len(read_lines(path)))
    else:
        rows = lessons(args.seed + 1000, min(2000, steps * args.batch_size))
        path = args.output_dir / "demonstrations.jsonl"
    dataset = demonstrations(tokenizer, rows, path, args.context, knows=args.control == "taught")
    supervised(
        model, tokenizer, dataset, args.output_dir, steps, deadline, settings, args.cpu_seconds, "constant",
        save_steps=args.save_steps,
    )  # fmt: skip


if __name__ == "__main__":
    main()
