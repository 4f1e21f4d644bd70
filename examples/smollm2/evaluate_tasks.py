"""
Test an adapter on held-out entities and write the raw result of every task; it resumes within a cell.

    python examples/smollm2/evaluate_tasks.py --label start --adapter runs/smollm2/start-seed0/adapter
    python examples/smollm2/evaluate_tasks.py --label start --adapter runs/smollm2/start-seed0/adapter --temperature 1
    python examples/smollm2/evaluate_tasks.py --label demonstrations --demonstrator
    python examples/smollm2/evaluate_tasks.py --label twin-start --adapter runs/smollm2/twin-start-seed0/adapter --context full
    python examples/smollm2/evaluate_tasks.py --label truncation --adapter runs/smollm2/twin-imitation-seed0/round3/adapter --context truncate
    python examples/smollm2/evaluate_tasks.py --label scalar --adapter runs/smollm2/start-seed0/adapter --control runs/smollm2/scalar-seed0/control.json

Each line of `<label>-<objectives>-t<temperature>-seed<seed>.jsonl` is one task:

| field | meaning |
|---|---|
| `task`, `seed`, `objectives` | the same in all files, so that agents can be compared task by task |
| `em`, `positional` | share of objectives right by `exact_match` (0 unless there are N answers), and by position |
| `peak_tokens`, `peak_tokens_without_prompt`, `state_tokens` | largest context, and largest state |
| `retained` | share of the seen answers that stood in the memory of the last turn; null if none was seen before it |
| `turns`, `stop_reason`, `answer`, `answers`, `weights` | what happened, and a checksum of the weights (null for the demonstrator) |
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from demonstrator import demonstrator
from model import load, prepare
from runs import TOGETHER, UNFINISHED, Deadline, add_options, count, quiet, read_lines
from tasks import PROTOCOL, WAIT, environment_factory, largest_state, limits, tasks
from transformers import AutoTokenizer

from mem1_trl import Mem1Agent
from mem1_trl.evaluation import ScalarControl, evaluate_agent

OBJECTIVES = (1, 2, 4, 3, 6, 8)
TRUNCATED_TO = 512


def line_of(task, number, seed, n, weights):
    """The record of an evaluated task."""
    kept = [trace.kept[-1] for trace in task.objectives_detail if trace.kept]
    scores, trajectory = task.scores, task.trajectory
    return {
        "task": f"{n}-{seed}-{number}",
        "seed": seed,
        "objectives": n,
        "em": scores["exact_match_per_objective"],
        "positional": scores.get("reward", 0.0),
        "peak_tokens": scores.get("peak_tokens"),
        "peak_tokens_without_prompt": scores.get("peak_tokens_without_prompt"),
        "state_tokens": largest_state(trajectory),
        "retained": statistics.mean(kept) if kept else None,
        "turns": len(trajectory.turns),
        "stop_reason": str(trajectory.stop_reason),
        "answer": trajectory.answer,
        "answers": task.task["answers"],
        "weights": weights,
    }


def evaluate(agent, path, n, count, seed, deadline, split="test", together=TOGETHER):
    """
    Play a cell to its end, or as far as the time allows; what the file holds already is not played again.

    Any agent will do, for instance one whose logits a control changes.
    """
    lines, weights = read_lines(path), agent.describe()["weights"]
    if lines and lines[0]["weights"] != weights:
        raise SystemExit(f"{path} holds tasks of other weights ({lines[0]['weights']}, not {weights}): remove it.")
    agent.settings = replace(agent.settings, **limits(n))
    rows = tasks(split, n, count, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    while len(lines) < count:
        if not deadline.leaves(120):
            raise SystemExit(UNFINISHED)
        begin = len(lines)
        chunk = rows.select(range(begin, min(begin + together, count)))
        result = evaluate_agent(agent, chunk, environment_factory(), batch_size=together, seed=1000 * seed + begin)
        new = [line_of(task, begin + task.index, seed, n, weights) for task in result.tasks]
        with path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in new))
        lines += new
    return lines[:count]


def summary(label, n, lines):
    """One line for people: means, with the standard error of the first."""
    mean = {
        key: statistics.mean([line[key] for line in lines if line[key] is not None] or [float("nan")])
        for key in ("em", "positional", "peak_tokens", "retained")
    }
    error = statistics.stdev(line["em"] for line in lines) / len(lines) ** 0.5 if len(lines) > 1 else float("nan")
    return (
        f"{label}, {n} objectives, {len(lines)} tasks: EM {mean['em']:.3f} (se {error:.3f}), positional {mean['positional']:.3f}, "
        f"peak {mean['peak_tokens']:.0f} tokens, retained {mean['retained']:.2f}"
    )


def _agent(args):
    if args.demonstrator:
        return demonstrator(AutoTokenizer.from_pretrained(prepare(args.base)), split="test")
    agent = Mem1Agent(
        *load(args.base, args.adapter),
        PROTOCOL,
        batch_size=args.together,
        temperature=args.temperature,
        context=args.context,
        rollout_batch_wait=WAIT,
        max_context_length=TRUNCATED_TO if args.context == "truncate" else None,
        **limits(1),
    )
    if args.control is not None:
        agent.settings = ScalarControl.load(args.control).apply(agent.settings)
    return agent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, Path("runs/smollm2/evaluation"))
    parser.add_argument("--label", required=True, help="name of the agent in files and tables")
    parser.add_argument("--adapter", type=Path, default=None, help="(default: the plain model)")
    parser.add_argument(
        "--demonstrator",
        action="store_true",
        help="test what the start was taught by, in place of a model: the most that learning it by heart can give",
    )
    parser.add_argument("--context", choices=["mem1", "full", "truncate"], default="mem1")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--control", type=Path, default=None, help="constants and temperature that scalar.py found")
    parser.add_argument("--objectives", type=count, nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--tasks", type=count, default=150)
    args = parser.parse_args()
    if args.demonstrator and (args.adapter or args.control or args.temperature or args.context != "mem1"):
        parser.error(
            "--demonstrator has no model, so it goes with no --adapter, --control, --temperature or --context"
        )
    deadline = Deadline(args.minutes)
    quiet(args)
    paths = {
        n: args.output_dir / f"{args.label}-{n}-t{args.temperature:g}-seed{args.seed}.jsonl" for n in args.objectives
    }
    if all(len(read_lines(path)) >= args.tasks for path in paths.values()):
        return
    agent = _agent(args)
    for n, path in paths.items():
        lines = evaluate(agent, path, n, args.tasks, args.seed, deadline, together=args.together)
        print(summary(args.label, n, lines), flush=True)


if __name__ == "__main__":
    main()
