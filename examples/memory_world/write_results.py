"""
Writes `RESULTS.md`, `results.json` and the plots from the runs that are finished.

    python examples/memory_world/write_results.py runs/memory-world --to docs/memory_world

`tasks.json.gz` holds the scores of every task: `{agent: {seed: {cell: {score: [of each task]}}}}`.
"""

import gzip
import json
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from agents import TRAINED_ON, TWICE, cell_name
from credit_curves import compare_credit, credit_table, plot_credit
from credit_curves import read_runs as runs_of_credit
from imitate import RULES
from long_runs import steps_of, write_json
from result_pages import control_in_words, difference_cell, markdown_table, page_parser, smooth
from run_all import CREDIT
from world import LEVELS

from mem1_trl.evaluation import ScalarControl, compare
from mem1_trl.evaluation.intervals import summarize
from mem1_trl.evaluation.result import Evaluation

NAMES = {
    "grpo": "GRPO",
    "start": "before RL",
    "scalar": "before RL, best constant and temperature",
    "success": "imitation of successes",
    "quartile": "imitation of the best quarter",
    "best_of_group": "imitation of the best of each group",
    "twin": "full history, GRPO",
    "twin-start": "full history, before RL",
    "grpo-embeddings": "GRPO, embeddings trained, too",
    "grpo-no-carry": "GRPO, no level `carry` in training",
    "grpo-stitched": "GRPO, stitched mask",
    "ppo-token": "PPO",
    "ppo-discounted": "PPO, gamma 0.99, lambda 0.9",
    "grpo-turn": "GRPO, turns of a group compared, lambda 0.9",
    "grpo-state": "GRPO, turns that read the same compared, too",
    "ppo-turn": "PPO between turns, gamma 0.99, lambda 0.9",
    "ppo-two-level": "PPO between turns and inside them, gamma 0.99, lambda 0.9",
}
COLOURS = {"needed": "tab:blue", "other": "tab:gray"}
SCORES = ("kept", "success", "topic_kept")
WINDOW = 15  # steps of a running mean
AIMS = {"asked": 0.9, "held-out": 0.85}


def read_runs(root, part=""):
    """
    `{label: {seed: {cell: Evaluation}}}` of the finished evaluations.

    Args:
        part: Folder in that of a run, for what was tested before the end.
    """
    runs = {}
    for label in NAMES:
        for folder in sorted(root.glob(f"{label}-seed*")):
            seed = int(folder.name.removeprefix(f"{label}-seed"))
            files = (folder / part / "evaluation").glob("*.json")
            cells = {path.stem: Evaluation.load(path.parent, path.stem) for path in files}
            if cells:
                runs.setdefault(label, {})[seed] = cells
    return runs


def read_parts(root):
    """`{step: runs}` of trainings that were tested before their end (`run_all.py --stop_at`)."""
    steps = {int(path.name.removeprefix("at-")) for path in root.glob("*-seed*/at-*")}
    found = {step: read_runs(root, f"at-{step}") for step in sorted(steps)}
    return {step: runs for step, runs in found.items() if runs}


def pooled_cells(runs):
    """`{label: {cell: {score: mean, interval and seeds}}}`."""
    return {
        label: {
            cell: {metric: pooled(runs, label, cell, metric) for metric in SCORES}
            for cell in next(iter(runs[label].values()))
        }
        for label in runs
    }


def tested_parts(parts):
    """What was learned by a step before the end."""
    texts = []
    for step, runs in parts.items():
        texts.append(f"""
### Tested at step {step}

Needed rows that stand in the last state, greedy, as in the first table. A level that has not been trained by then is tested, too.

{table(runs, "kept")}
""")
    return "".join(texts)


def pooled(runs, label, cell, metric):
    """Mean with its interval over the tasks of all seeds, and the mean of each seed; `None` without any."""
    found = {seed: cells[cell] for seed, cells in runs[label].items() if cell in cells}
    values = [task.scores[metric] for evaluation in found.values() for task in evaluation.tasks]
    if not values:
        return None
    statistic = summarize(values)
    seeds = {seed: evaluation.metrics[metric] for seed, evaluation in found.items()}
    return {"mean": statistic.mean, "low": statistic.low, "high": statistic.high, "seeds": seeds}


def columns():
    """Heading and cell of each column."""
    found = [(f"{level}, {kinds}", cell_name(level, TRAINED_ON, kinds, 0.0)) for kinds in AIMS for level in LEVELS]
    return found + [(f"{level}, {TWICE} passages", cell_name(level, TWICE, "asked", 0.0)) for level in LEVELS]


def table(runs, metric, temperature=0.0):
    rows = []
    for label in runs:
        texts = []
        for _, cell in columns():
            found = pooled(runs, label, cell.replace("-t0", f"-t{temperature:g}"), metric)
            texts.append("" if found is None else cell_of(found))
        rows.append([NAMES[label], ", ".join(map(str, runs[label])), *texts])
    return markdown_table(["", "seeds", *(name for name, _ in columns())], rows)


def cell_of(found):
    """A mean with its interval and, in brackets, each seed."""
    text = f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
    seeds = found["seeds"].values()
    return f"{text} ({', '.join(f'{value:.2f}' for value in seeds)})" if len(seeds) > 1 else text


def tables(found):
    return "\n\n".join(table for table, _ in found.values())


def learners(runs):
    """GRPO, and the kinds of credit that were trained to the end with all of its seeds."""
    return [label for label in ("grpo", *CREDIT) if label in runs and set(runs["grpo"]) <= set(runs[label])]


def differences(runs, metric, learner):
    """Paired differences of a learner to all others."""
    rows, record = [], {}
    for label in runs:
        if label == learner:
            continue
        texts = []
        for _, cell in columns():
            seeds = [s for s in runs[label] if cell in runs[label][s] and cell in runs[learner].get(s, {})]
            if not seeds:
                texts.append("")
                continue
            found = compare([runs[learner][s][cell] for s in seeds], [runs[label][s][cell] for s in seeds], metric)
            record.setdefault(label, {})[cell] = [found.difference, found.low, found.high]
            texts.append(difference_cell(found))
        rows.append([f"minus {NAMES[label]}", *texts])
    return markdown_table([NAMES[learner], *(name for name, _ in columns())], rows), record


def aims(runs):
    """What was to be reached, and what was: the mean, and each seed; bold where it was not."""
    rows = []
    for label in learners(runs):
        texts = []
        for kinds, wanted in AIMS.items():
            for level in LEVELS:
                found = pooled(runs, label, cell_name(level, TRAINED_ON, kinds, 0.0), "kept")
                mean = f"{found['mean']:.2f}" if found["mean"] >= wanted else f"**{found['mean']:.2f}**"
                texts.append(f"{mean} ({', '.join(f'{value:.2f}' for value in found['seeds'].values())})")
        rows.append([NAMES[label], *texts])
    heads = [f"{level}, {kinds}: {wanted}" for kinds, wanted in AIMS.items() for level in LEVELS]
    return markdown_table(["", *heads], rows)


def finished(root):
    """Folders of GRPO's runs that came to their end."""
    return [path.parent for path in sorted(root.glob("grpo-seed*/done.json"))]


def memory_curves(path):
    """`{(level, need, age): (steps, share kept)}` of the training of one seed."""
    curves = {}
    for step, record in sorted(steps_of(path).items()):
        for key, (kept, count) in record["kept"].items():
            level, need, age = key.split()
            if count:
                curves.setdefault((level, need, int(age)), []).append((step, kept / count))
    return {key: tuple(zip(*points)) for key, points in curves.items()}


def plot_memory(root, path):
    """What the last state holds of each passage, by need and by age, over training; one line for each seed."""
    runs = [memory_curves(each / "memory.jsonl") for each in finished(root)]
    if not runs:
        return False
    ages = range(TRAINED_ON, 0, -1)
    figure, panels = plt.subplots(len(LEVELS), TRAINED_ON, figsize=(9, 7), sharex=True, sharey=True)
    for row, level in zip(panels, LEVELS):
        for axes, age in zip(row, ages):
            for curves in runs:
                for need, colour in COLOURS.items():
                    if (level, need, age) in curves:
                        steps, shares = curves[level, need, age]
                        axes.plot(steps, smooth(shares, WINDOW), color=colour, linewidth=1.2)
            axes.set_ylim(-0.02, 1.02)
            axes.grid(alpha=0.3)
            if level == LEVELS[0]:
                axes.set_title(f"read {age} turn{'s' * (age > 1)} before the answer", fontsize=9)
            if level == LEVELS[-1]:
                axes.set_xlabel("optimizer step")
        row[0].set_ylabel(f"{level}: share kept")
    lines = [plt.Line2D([], [], color=colour) for colour in COLOURS.values()]
    figure.legend(lines, ["rows that are needed", "other rows"], loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def plot_agents(runs, path):
    """Kept and right of every agent, on asked and held-out kinds."""
    figure, panels = plt.subplots(2, len(LEVELS), figsize=(11, 6), sharex=True, sharey=True)
    labels = list(runs)[::-1]
    for row, kinds in zip(panels, AIMS):
        for axes, level in zip(row, LEVELS):
            for metric, colour, shift in (("kept", "tab:blue", 0.2), ("success", "tab:orange", -0.2)):
                found = [pooled(runs, label, cell_name(level, TRAINED_ON, kinds, 0.0), metric) for label in labels]
                places = [at + shift for at, one in enumerate(found) if one]
                means = [one["mean"] for one in found if one]
                errors = [
                    [one["mean"] - one["low"] for one in found if one],
                    [one["high"] - one["mean"] for one in found if one],
                ]
                axes.barh(places, means, 0.38, xerr=errors, color=colour, error_kw={"linewidth": 0.8})
            axes.set(title=f"{level}, {kinds} kinds", xlim=(0, 1.02))
            axes.set_yticks(range(len(labels)), [NAMES[label] for label in labels], fontsize=8)
            axes.grid(axis="x", alpha=0.3)
    bars = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in ("tab:blue", "tab:orange")]
    figure.legend(bars, ["needed rows kept", "every slot right"], loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_reward(root, path):
    """Reward in training, every seed."""
    figure, axes = plt.subplots(figsize=(6, 3.4))
    for each in finished(root):
        log = steps_of(each / "training.jsonl")
        steps = {step: record["reward"] for step, record in sorted(log.items()) if "reward" in record}
        (line,) = axes.plot(list(steps), smooth(list(steps.values()), WINDOW), label=each.name.removeprefix("grpo-"))
        axes.plot(list(steps), list(steps.values()), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="optimizer step", ylabel="reward: share of slots that are right", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def imitated(root):
    """How many episodes each rule has imitated."""
    lines = []
    for rule in RULES:
        for path in sorted(root.glob(f"{rule}-seed*/done.json")):
            record = json.loads(path.read_text())
            kept = ", ".join(f"{count:,}" for count in record["kept"])
            lines.append(
                f"- {NAMES[rule]}, {path.parent.name.rpartition('-')[2]}: {kept} of {record['episodes'] // len(record['kept']):,} each round."
            )
    return "\n".join(lines)


def scalar_found(root):
    texts = []
    for path in sorted(root.glob("scalar-seed*/control.json")):
        texts.append(f"{path.parent.name.rpartition('-')[2]}: {control_in_words(ScalarControl.load(path))}")
    return "; ".join(texts)


def main():
    parser = page_parser(__doc__)
    args = parser.parse_args()
    runs, parts = read_runs(args.root), read_parts(args.root)
    if "grpo" not in runs:
        parser.error(f"root must hold an evaluated run of train.py, but {args.root} has no grpo-seed*/evaluation")
    done = json.loads((args.root / f"grpo-seed{min(runs['grpo'])}" / "done.json").read_text())
    at = args.commit
    args.to.mkdir(parents=True, exist_ok=True)
    has_memory = plot_memory(args.root, args.to / "memory.png")
    plot_agents(runs, args.to / "agents.png")
    plot_reward(args.root, args.to / "reward.png")
    curves = runs_of_credit(args.root)
    credit = compare_credit(curves, done["steps"])
    plot_credit(curves, done["steps"], args.to / "credit.png")
    differ = {
        metric: {label: differences(runs, metric, label) for label in learners(runs)} for metric in ("success", "kept")
    }
    episodes = done["steps"] * done["batch_size"]
    tasks = len(next(iter(next(iter(runs["grpo"].values())).values())).tasks)
    missing = [NAMES[label] for label in NAMES if label not in runs]
    text = (
        f"""# What to keep: learned by reinforcement?
{f"{chr(10)}{args.note}{chr(10)}" if args.note else ""}
Written by `python examples/memory_world/write_results.py` from runs of `run_all.py` at commit {at}. GRPO: {
            done["steps"]
        } steps of {done["batch_size"]} episodes, groups of
{done["generations"]}, {episodes:,} episodes in all. Each cell: {
            tasks
        } tasks for each seed, greedy decoding, mean with a 95% bootstrap interval over the tasks, in brackets each seed. A seed has a
warm-up, tasks and an order of its own.{" Not run: " + ", ".join(missing) + "." if missing else ""}

The [world]({
            os.path.relpath(Path(__file__).with_name("README.md"), args.to)
        }): an agent reads passages and has room for a part of what they hold; one word says which part will be asked
for. The supervised start reads, copies and follows the format, and keeps what stands last, whatever is asked for. *Asked* kinds are asked for in training;
*held-out* kinds are not; the supervised start reads them, and is taught to find the row of any kind. *{
            TWICE
        } passages*: twice as many as in training.

![every agent](agents.png)

## Needed rows that stand in the last state

{table(runs, "kept")}

## Tasks with every slot right

{table(runs, "success")}

Sampled at temperature 1:

{table(runs, "success", 1.0)}

## Paired differences, tasks with every slot right

Bold where the 95% bootstrap interval, over seeds and tasks, leaves out 0. With two or three seeds it is narrower than it should be, and three of one sign
make it bold: look at each seed above. Imitation plays the three levels in equal parts, without `carry` and without the order in which reinforcement meets them.

{tables(differ["success"])}

The same for needed rows that are kept:

{tables(differ["kept"])}

## Aims

Needed rows that are kept: the aim stands in the head, and what does not reach it is bold.

{aims(runs)}

## Training

![reward](reward.png)
{
            ""
            if not has_memory
            else '''
What the last state holds, by need and by the turns since it was read:

![memory over training](memory.png)
'''
        }
## Credit, at equal steps

Share of the needed rows that the last state holds in the episodes of training (kinds that are asked for, temperature 1): the mean over seeds, and each seed in their order.
A cell without a seed: its run has not come so far. Settings: `CREDIT` in `run_all.py`; dotted lines in the picture: another phase of training begins.

{credit_table(credit, done["steps"])}

![reward by kind of credit](credit.png)
{tested_parts(parts)}
## Controls

- Constants on logits, searched on validation tasks of all levels: {scalar_found(args.root) or "not run"}.
{imitated(args.root)}""".rstrip()
        + "\n"
    )
    (args.to / "RESULTS.md").write_text(text)
    write_json(
        args.to / "results.json",
        {
            "commit": at,
            "settings": done,
            "names": NAMES,
            "aims": AIMS,
            "cells": pooled_cells(runs),
            "parts": {step: pooled_cells(of_step) for step, of_step in parts.items()},
            "differences": {
                metric: {label: record for label, (_, record) in of_metric.items()}
                for metric, of_metric in differ.items()
            },
            "credit": credit,
        },
    )
    scores = {
        label: {
            seed: {
                cell: {metric: [task.scores[metric] for task in found.tasks] for metric in SCORES}
                for cell, found in sorted(of_seed.items())
            }
            for seed, of_seed in seeds.items()
        }
        for label, seeds in runs.items()
    }
    # Without a time in its head, so that the same scores are the same file
    (args.to / "tasks.json.gz").write_bytes(gzip.compress(json.dumps(scores).encode(), mtime=0))
    print(args.to / "RESULTS.md")


if __name__ == "__main__":
    main()
