"""
Controls without reinforcement: supervised learning of the better ones among as many episodes as a run of `train.py` has played.

    python examples/memory_world/imitate.py success --like runs/memory-world/grpo-seed0 --start runs/memory-world/warm-up-seed0

In three rounds, each from the model of the last one. What is imitated:

| rule | episodes |
|---|---|
| `success` | those with every slot right |
| `quartile` | the quarter with the highest reward; equal ones by lot |
| `best_of_group` | of the episodes of one task those with the highest reward, if others have less |
"""

import argparse
import json
import random
import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agents import TOGETHER, TRAINED_ON, freeze_embeddings, load_agent
from datasets import Dataset
from example_options import count, rate
from long_runs import UNFINISHED, Deadline, is_done, quiet, supervised, write_json
from world import ASKED, LEVELS, Passages, draw_task

from mem1_trl.demonstrations import collect_trajectories, demonstration_dataset

RULES = ("success", "quartile", "best_of_group")


def played_tasks(count, seed, group):
    """Tasks of all levels, each `group` times in a row."""
    rng = random.Random(f"imitate {seed}")
    rows = [
        draw_task(rng, rng.choice(LEVELS), TRAINED_ON, ASKED, beside=ASKED).row() for _ in range(-(-count // group))
    ]
    return Dataset.from_list([row for row in rows for _ in range(group)][:count])


def choose(rule, played, group, seed):
    """The episodes to imitate."""
    if rule == "success":
        return [t for t in played if t.reward == 1.0]
    if rule == "quartile":
        order = random.Random(seed).sample(played, len(played))
        return sorted(order, key=lambda t: -t.reward)[: len(played) // 4]
    chosen = []
    for _, members in groupby(enumerate(played), key=lambda pair: pair[0] // group):
        episodes = [t for _, t in members]
        best = max(t.reward for t in episodes)
        chosen += [t for t in episodes if t.reward == best] if min(t.reward for t in episodes) < best else []
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rule", choices=RULES)
    parser.add_argument("--like", type=Path, required=True, help="finished run of train.py that it is held against")
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, default=None)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--epochs", type=count, default=3, help="times that each round reads its episodes")
    parser.add_argument("--batch_size", type=count, default=128, help="turns in one step")
    parser.add_argument("--learning_rate", type=rate, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--minutes", type=float, default=None)
    args = parser.parse_args()
    args.output_dir = args.output_dir or args.like.with_name(f"{args.rule}-{args.like.name}")
    if is_done(args.output_dir):
        return
    if not is_done(args.like):
        parser.error(f"--like must be a finished run of train.py, but {args.like} has no done.json")
    like = json.loads((args.like / "done.json").read_text())
    deadline = Deadline(args.minutes)
    quiet(args)
    settings = {name: getattr(args, name) for name in ("rule", "batch_size", "learning_rate", "seed")}
    each, group = like["steps"] * like["batch_size"] // args.rounds, like["generations"]
    model, kept = args.start, []
    for number in range(1, args.rounds + 1):
        place = args.output_dir / f"round{number}"
        if not deadline.leaves(120):
            raise SystemExit(UNFINISHED)
        agent = load_agent(model, temperature=1.0)
        rows = played_tasks(each, args.seed * 10 + number, group if args.rule == "best_of_group" else 1)
        path = place / "episodes.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        played = collect_trajectories(agent, rows, Passages, path, batch_size=TOGETHER, disable_tqdm=True)
        chosen = choose(args.rule, played, group, args.seed)
        kept.append(len(chosen))
        if chosen and not is_done(place):
            dataset = demonstration_dataset(chosen)
            freeze_embeddings(agent.model)
            steps = max(1, args.epochs * len(dataset) // args.batch_size)
            supervised(
                agent.model,
                agent.tokenizer,
                dataset,
                place,
                steps,
                deadline,
                settings,
                saved_as="model",
                save_steps=50,
            )
            agent.protocol.save_pretrained(place / "model")
        model = place / "model" if chosen else model
    record = {**settings, "episodes": each * args.rounds, "kept": kept, "model": str(model)}
    write_json(args.output_dir / "done.json", record)


if __name__ == "__main__":
    main()
