"""Writes `RESULTS.md`, `results.json` and the plots of `run.py` from the files of its runs."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `result_pages`, shared with the other examples

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from result_pages import control_in_words, difference_cell, markdown_table, smooth

from mem1_trl.evaluation import ScalarControl, compare
from mem1_trl.evaluation.intervals import summarize
from mem1_trl.evaluation.result import Evaluation, questions_of, rows_of

COLORS = {
    "MEM1 PPO": "tab:blue",
    "MEM1 GRPO": "tab:green",
    "full history PPO": "tab:red",
    "MEM1 before RL": "tab:gray",
    "full history before RL": "tab:brown",
    "MEM1 before RL, sampled": "tab:olive",
    "MEM1 before RL, one constant": "tab:orange",
}
SHOWN = (
    "exact_match_per_objective",
    "success",
    "peak_tokens",
    "peak_tokens_without_prompt",
    "dependency_length",
    "seconds",
)
REWARD = "rewards/RetrievalQAEnvironment/mean"
MISMATCH = "sampling/max_logp_difference"
AIMS = {2: 0.95, 8: 0.8, 16: 0.6}
WINDOW = 5  # steps of a running mean
PAPER_GROWTH = 1.63  # peak tokens of MEM1 from 2 to 16 objectives, MEM1 paper, table of multi-objective QA


def read_runs(args, labels, folder):
    """`{label: {seed: {"evaluation": {n: Evaluation}, "training": record or None}}}`, of the finished runs."""
    runs = {}
    for label in labels:
        for seed in args.seeds:
            place = folder(label, seed)
            finished = [n for n in args.objectives if (place / "evaluation" / f"{n}.json").is_file()]
            evaluation = {n: Evaluation.load(place / "evaluation", str(n)) for n in finished}
            training = place / "training.json"
            record = json.loads(training.read_text()) if training.is_file() else None
            if evaluation:
                runs.setdefault(label, {})[seed] = {"evaluation": evaluation, "training": record}
    return runs


def missing(args, runs, labels):
    """Sentences about missing or smaller evaluations; empty if there are none."""
    gaps, fewer = {}, {}
    for label in labels:
        for seed in args.seeds:
            known = runs.get(label, {}).get(seed, {"evaluation": {}})["evaluation"]
            absent = [str(n) for n in args.objectives if n not in known]
            if absent:
                where = "all tasks" if len(absent) == len(args.objectives) else f"{', '.join(absent)} objectives"
                gaps.setdefault((label, where), []).append(str(seed))
            for n, evaluation in known.items():
                if len(evaluation.tasks) < args.tasks:
                    fewer.setdefault((label, seed, len(evaluation.tasks)), []).append(str(n))
    text = ""
    if gaps:
        texts = [f"{label} with seed {' and '.join(seeds)} on {where}" for (label, where), seeds in gaps.items()]
        text += f"\n\n**This run is incomplete.** Not evaluated: {'; '.join(texts)}."
    if fewer:
        texts = [
            f"{label} with seed {seed}: {count} tasks on {', '.join(numbers)} objectives"
            for (label, seed, count), numbers in fewer.items()
        ]
        text += f"\n\nEvaluated on fewer tasks to save time: {'; '.join(texts)}."
    return text


def pooled(runs, label, n, metric):
    """Statistic over the tasks of all seeds, and the means of the seeds; `None` if there are none."""
    evaluations = [run["evaluation"][n] for run in runs[label].values() if n in run["evaluation"]]
    tasks = [task for evaluation in evaluations for task in evaluation.tasks]
    if not tasks:
        return None
    values = [task.scores[metric] for task in tasks]
    statistic = summarize(values, tasks=rows_of(tasks), questions=questions_of(tasks))
    return statistic, [evaluation.metrics[metric] for evaluation in evaluations]


def tabulate(args, runs):
    table = {}
    for label in runs:
        for n in args.objectives:
            for metric in SHOWN:
                found = pooled(runs, label, n, metric)
                if found:
                    statistic, means = found
                    cell = {"mean": statistic.mean, "low": statistic.low, "high": statistic.high, "seeds": means}
                    table.setdefault(label, {}).setdefault(str(n), {})[metric] = cell
    return table


def metric_rows(args, table, labels, metric, form, interval=True):
    rows = []
    for label in labels:
        texts = []
        for n in args.objectives:
            cell = table[label].get(str(n), {}).get(metric)
            text = f"{cell['mean']:{form}}" if cell else "-"
            texts.append(text + (f" [{cell['low']:{form}}, {cell['high']:{form}}]" if cell and interval else ""))
        rows.append([label, *texts])
    return markdown_table(["", *map(str, args.objectives)], rows)


def minutes(args, runs):
    """Wall time of the training and of the evaluation, over all seeds."""
    training = sum(run["training"]["seconds"] for run in runs.values() if run["training"])
    finished = [each for run in runs.values() for each in run["evaluation"].values()]
    evaluation = sum(task.scores["seconds"] for each in finished for task in each.tasks)
    return {"training": training / 60, "evaluation": evaluation / 60}


def growth(args, table, label):
    """Growth of the peak from 2 to 16 objectives: `(with the task prompt, without it)`."""
    known = [n for n in args.objectives if str(n) in table[label]]
    first, last = (2 if 2 in known else known[0]), known[-1]
    return [
        table[label][str(last)][metric]["mean"] / table[label][str(first)][metric]["mean"]
        for metric in ("peak_tokens", "peak_tokens_without_prompt")
    ]


def rewards_of(run):
    """Steps and the environment's reward in each, a reward for the format not counted."""
    logs = [(log["step"], log[REWARD]) for log in run["training"]["history"] if REWARD in log]
    return list(zip(*logs))


def plot_metric(args, table, metric, labels, title, path, top=None):
    figure, axes = plt.subplots(figsize=(6, 4))
    for label in labels:
        known = [n for n in args.objectives if str(n) in table[label]]
        cells = [table[label][str(n)][metric] for n in known]
        color, style = COLORS.get(label), "--" if "before" in label else "-"
        marker, size = ("s", 9) if label == "MEM1 PPO" else ("o", 4)  # its curve may lie under another
        means = [c["mean"] for c in cells]
        axes.plot(
            known, means, style, color=color, label=label, marker=marker, markersize=size, markerfacecolor="none"
        )
        lows, highs = [min(c["seeds"]) for c in cells], [max(c["seeds"]) for c in cells]
        axes.fill_between(known, lows, highs, color=color, alpha=0.15)
    axes.axvline(2, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="objectives of a task (dotted: trained on)", title=title, xticks=args.objectives)
    axes.set_ylim(0, top)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the curves
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def rewards_logged(run):
    return bool(run["training"]) and any(REWARD in log for log in run["training"]["history"])


def ablation_rows(runs, labels):
    """Table with the reward at the end of training and the log-prob difference between rollout and update, for each seed."""
    rows = []
    for label in labels:
        earned, apart = [], []
        for run in filter(rewards_logged, runs[label].values()):
            _, rewards = rewards_of(run)
            part = max(1, len(rewards) // 5)
            earned.append(f"{sum(rewards[-part:]) / part:.2f}")
            found = [log[MISMATCH] for log in run["training"]["history"] if MISMATCH in log]
            apart.append(f"{sum(found) / len(found):.1e}")
        if earned:
            rows.append([label, ", ".join(earned), ", ".join(apart)])
    return markdown_table(["", "reward, last fifth of training", "largest difference of log-probs, nats"], rows)


def imitated(runs):
    """Sentence about the episodes that the imitating agent learned from."""
    records = [run["training"] for label in runs for run in runs[label].values() if "kept" in (run["training"] or {})]
    if not records:
        return ""
    kept, played = (", ".join(str(record[key]) for record in records) for key in ("kept", "episodes"))
    return f"""
*MEM1 SFT only* played as many episodes as the others before any update, and imitated those with both answers right for three epochs ({kept} of
{played} episodes).
"""


def plot_rewards(args, runs, labels, path):
    figure, panels = plt.subplots(1, len(labels), figsize=(4 * len(labels), 3.4), sharey=True, squeeze=False)
    for axes, label in zip(panels[0], labels):
        for seed, run in runs[label].items():
            steps, rewards = rewards_of(run)
            (line,) = axes.plot(steps, smooth(rewards, WINDOW), label=f"seed {seed}")
            axes.plot(steps, rewards, color=line.get_color(), alpha=0.25)
        axes.set(title=label, xlabel="optimizer step")
        axes.set_ylim(0, 2.05)
    panels[0][0].set_ylabel("reward (answers right, of 2)")
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def reached(flag):
    return "reached" if flag else "not reached"


def aims(args, table, runs, labels):
    """Aims and results, one line each."""
    lines = []
    mem1 = [label for label in labels if label.startswith("MEM1")]
    for n, wanted in AIMS.items():
        if n in args.objectives:
            for label in mem1:
                cell = table[label].get(str(n), {}).get("exact_match_per_objective")
                if cell is None:
                    continue
                lines.append(
                    f"- EM per objective on {n}, {label}: aim {wanted}, got {cell['mean']:.3f} "
                    f"(seeds {', '.join(f'{m:.3f}' for m in cell['seeds'])}): {reached(cell['mean'] >= wanted)}."
                )
    for label in labels:
        last = max(map(int, table[label]))
        whole, without = growth(args, table, label)
        line = f"- Peak tokens from 2 to {last} objectives, {label}: {whole:.2f}x with the questions, {without:.2f}x without"
        lines.append(line + (f" (aim {PAPER_GROWTH}x): {reached(without <= PAPER_GROWTH)}." if label in mem1 else "."))
    for label in labels:
        changes = []
        for seed, run in runs[label].items():
            _, rewards = rewards_of(run)
            part = max(1, len(rewards) // 5)
            changes.append(f"seed {seed} {sum(rewards[:part]) / part:.2f} to {sum(rewards[-part:]) / part:.2f}")
        lines.append(f"- Reward, first and last fifth of the training of {label}: {'; '.join(changes)}.")
    return "\n".join(lines)


def failures(args, runs, labels):
    """Table of the kinds of wrong answers, by number of objectives."""
    rows = []
    for label in labels:
        for n in (n for n in args.objectives if n in (2, 8, 16)):
            counts = {}
            stops = {}
            having = [run for run in runs[label].values() if n in run["evaluation"]]
            if not having:
                continue
            for run in having:
                evaluation = run["evaluation"][n]
                for name, count in evaluation.failures.items():
                    counts[name] = counts.get(name, 0) + count
                for name, share in evaluation.stop_reasons.items():
                    stops[name] = stops.get(name, 0.0) + share / len(having)
            total = max(1, sum(counts.values()))
            rows.append(
                [label, str(n)]
                + [
                    f"{counts.get(name, 0) / total:.3f}"
                    for name in ("correct", "never_found", "forgotten", "misreported")
                ]
                + [f"{stops.get('answer', 0.0):.2f}"]
            )
    heads = [
        "",
        "objectives",
        "right",
        "never found",
        "found and forgotten",
        "kept and misreported",
        "episodes that answered",
    ]
    return markdown_table(heads, rows)


def differences(args, runs, label, others):
    """Table of the paired differences of `label` to others, over all seeds."""
    rows = []
    for other in others:
        texts = []
        for n in args.objectives:
            seeds = [seed for seed in runs[label] if seed in runs[other]]
            pairs = [
                (runs[label][seed]["evaluation"].get(n), runs[other][seed]["evaluation"].get(n)) for seed in seeds
            ]
            pairs = [(mine, theirs) for mine, theirs in pairs if mine and theirs]
            if not pairs:
                texts.append("-")
                continue
            found = compare(*map(list, zip(*pairs)), "exact_match_per_objective")
            texts.append(difference_cell(found))
        rows.append([f"{label} minus {other}", *texts])
    return markdown_table(["", *map(str, args.objectives)], rows)


def constants(args, folder, label):
    """What the search has found for each seed, in words."""
    texts = []
    for seed in args.seeds:
        path = folder(label, seed) / "control.json"
        if path.is_file():
            texts.append(f"seed {seed}: {control_in_words(ScalarControl.load(path))}")
    return "; ".join(texts)


def learned(args, table, runs, folder, labels):
    """The section that holds reinforcement learning against its controls."""
    agent, constant, sampled, imitation = labels
    known = [label for label in (constant, imitation) if label in runs]
    if agent not in runs or not known:
        return ""
    shown = [label for label in labels if label in runs]
    gaps = {
        other: {
            n: table[agent][str(n)]["exact_match_per_objective"]["mean"]
            - table[other][str(n)]["exact_match_per_objective"]["mean"]
            for n in args.objectives
            if str(n) in table[agent] and str(n) in table[other]
        }
        for other in known
    }
    sentences = [
        f"On the numbers of objectives below, {agent} minus *{other}* is {min(gap.values()):+.2f} to {max(gap.values()):+.2f}."
        for other, gap in gaps.items()
    ]
    return f"""
## What was learned, and what was not

The models before RL can do everything that a task needs, on 1 to 18 objectives; the warm-up makes them give up with a fixed probability after any
finding. What RL has to learn is one decision. {" ".join(sentences)} So this experiment does not show that reinforcement
learning teaches memory.

- *{constant}*: before RL, with the temperature and the one constant on a logit that did best on {args.tasks} training tasks of 2 objectives
  ({constants(args, folder, constant)}).
- *{sampled}*: before RL, at the temperature of the training.
- *{imitation}*: supervised learning of the successes among as many episodes as RL plays.

{metric_rows(args, table, shown, "exact_match_per_objective", ".2f")}

Paired differences over the tasks of all seeds, with 95 % bootstrap intervals over seeds and tasks; bold where the interval leaves out 0:

{differences(args, runs, agent, known)}

What it does show: **the exact update keeps what the model could before** where it may be lost with the stitched mask (one objective, ablations below), and
**the context hardly grows**, before training as after it, where an appended one does (peak tokens below). All seeds share one warm-up and the same held-out names; facts, tasks and order differ.
"""


def write_results(args, groups, folder, facts):
    """Write everything into `args.output_dir`; returns the path of `RESULTS.md`."""
    agents, baselines, ablations = groups
    runs = read_runs(args, [*agents, *baselines, *ablations], folder)
    missed = missing(args, runs, [*agents, *baselines, *ablations])
    agents, baselines, ablations = ([label for label in group if label in runs] for group in groups)
    table = tabulate(args, runs)
    place = args.output_dir
    facts = {**facts, "minutes": {label: minutes(args, runs[label]) for label in runs}}
    everything = [*agents, *baselines]
    plot_metric(
        args,
        table,
        "exact_match_per_objective",
        everything,
        "Exact match per objective, held-out",
        place / "em.png",
        1.02,
    )
    plot_metric(args, table, "peak_tokens", everything, "Peak tokens of an episode", place / "peak.png")
    reinforced = [label for label in [*agents, *ablations] if any(map(rewards_logged, runs[label].values()))]
    plot_rewards(args, runs, reinforced, place / "reward.png")
    warm = json.loads((args.assets / "warmup.json").read_text())
    budget = f"{args.steps} optimizer steps of {args.batch_size} trajectories"
    times = markdown_table(
        ["", "training, minutes", "evaluation, minutes"],
        [[label, f"{m['training']:.1f}", f"{m['evaluation']:.1f}"] for label, m in facts["minutes"].items()],
    )
    commits = {
        run["training"].get("commit") for label in runs for run in runs[label].values() if run["training"] is not None
    }
    known = sorted(each for each in commits if each)
    trained_at = ", ".join([*known, *(["earlier commits, not recorded"] if None in commits else [])])
    total = sum(sum(m.values()) for m in facts["minutes"].values())
    controls = ("MEM1 PPO", "MEM1 before RL, one constant", "MEM1 before RL, sampled", "MEM1 SFT only")
    text = f"""# An exact update, and a context that hardly grows

A policy that was trained on 2 objectives, tested on 1 to {args.objectives[-1]}, and held against a model before RL with one constant.

Written by `python examples/multi_objective/run.py` at commit {facts["commit"]} from its own runs (trained at {trained_at}), on
{facts["hardware"]} with torch {facts["torch"]}, {args.threads} thread for each run. Training and evaluation took {total:.0f} minutes of wall time,
summed over the runs (by default two at the same time), without start-up and warm-up.

The world is small and invented: a search finds three passages, and an agent has to copy the right words from the right place, turn
after turn. The numbers do not show how well a language model would do.

Seeds: {", ".join(map(str, args.seeds))}. A seed has facts, questions, tasks and random numbers of its own. Every agent has {warm["parameters"]:,} parameters and
was trained by reinforcement on 2 objectives only, for {budget}. Each cell is a mean over {args.tasks} test
tasks about held-out entities for each seed, decoded greedily, with its 95% bootstrap interval over the tasks. In the plots, the band spans
the seeds. How well an agent copies depends on its warm-up (last table), and the twin has longer contexts to copy from: compare
how the agents change with the number of objectives rather than the heights of their curves.{missed}
{learned(args, table, runs, folder, controls)}
## Exact match per objective

{metric_rows(args, table, everything, "exact_match_per_objective", ".2f")}

![exact match](em.png)

## Tasks with every answer right

{metric_rows(args, table, everything, "success", ".2f")}

## Peak tokens: the largest context with its output, questions included

{metric_rows(args, table, everything, "peak_tokens", ".0f")}

![peak tokens](peak.png)

Without the questions, as the paper counts:

{metric_rows(args, table, everything, "peak_tokens_without_prompt", ".0f", interval=False)}

## Dependency length: attention pairs of the generated tokens

{metric_rows(args, table, everything, "dependency_length", ",.0f", interval=False)}

## Seconds per trajectory, 100 played in parallel, on a machine that also did other work

{metric_rows(args, table, everything, "seconds", ".2f", interval=False)}

## Reward during training

![reward](reward.png)

## Aims

{aims(args, table, runs, agents)}

## Where wrong answers come from

Share of the objectives, and share of the episodes that ended with an answer.

{failures(args, runs, agents)}
"""
    if ablations:
        text += f"""
## Ablations, MEM1 by PPO: exact match per objective

{metric_rows(args, table, ["MEM1 PPO", *ablations], "exact_match_per_objective", ".2f")}
{imitated(runs)}
The *paper layout* updates on one stitched sequence with the paper's mask, everything else alike. For each seed, the number of answers that
were right at the end of training (of 2), and the largest difference between the log-prob that a token was sampled with and the one that the update
computes for it, mean over the steps:

{ablation_rows(runs, ["MEM1 PPO", *ablations])}
"""
    text += f"""
## Wall time, all seeds together

{times}

## The warm-up

{warm["description"]}

The MEM1 model was taught for {warm["models"]["mem1"]["steps"]:,} optimizer steps of about 2,000 tokens ({warm["models"]["mem1"]["minutes"]:.0f} minutes),
and its copy that became the twin for {warm["models"]["full"]["steps"]:,} more ({warm["models"]["full"]["minutes"]:.0f} minutes). Share of rows without any wrong
token, on held-out names, the decision to give up apart; a row is one turn for MEM1, and all turns so far for the twin:

{markdown_table(["objectives / settled", *warm["models"]["mem1"]["rows_right_held_out"]], [[name, *(f"{share:.2f}" for share in stage["rows_right_held_out"].values())] for name, stage in (("MEM1", warm["models"]["mem1"]), ("twin", warm["models"]["full"]))])}
"""
    (place / "results.json").write_text(
        json.dumps(
            {"facts": facts, "settings": json.loads((place / "settings.json").read_text()), "table": table}, indent=2
        )
        + "\n"
    )
    path = place / "RESULTS.md"
    path.write_text(text)
    return path
