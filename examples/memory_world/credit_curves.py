"""
Kinds of credit beside each other, at equal steps of training: also of runs that have not come to their end.

What is compared is what training itself logs, the episodes of each step: kinds that are asked for, sampled at temperature 1.
"""

from statistics import fmean

import matplotlib.pyplot as plt
from long_runs import steps_of
from result_pages import markdown_table, smooth
from train import PHASES
from world import LEVELS

KINDS_OF_CREDIT = {
    "GRPO": {"grpo": "episodes", "grpo-turn": "turns", "grpo-state": "turns that read the same, too"},
    "PPO": {"ppo-token": "tokens", "ppo-turn": "turns", "ppo-two-level": "turns, and tokens in them"},
}
"""What advantages are of, for each label of a run."""
COLOURS = ("tab:blue", "tab:orange", "tab:green")
WINDOW = 25  # steps


def boundaries(steps):
    """The step at which each phase of training ends."""
    shares = [share for share, _ in PHASES]
    return [round(sum(shares[: at + 1]) * steps) for at in range(len(shares))]


def columns(steps):
    """Level and step of what is compared: what is tested, at the end of each phase but the first, in which little is learned yet."""
    ends = zip(boundaries(steps)[1:], PHASES[1:])
    return [(level, end) for end, (_, levels) in ends for level in levels if level in LEVELS]


def read_runs(root):
    """`{label: {seed: (reward, kept)}}`: of each step, counted from 1, the reward, and the share of needed rows kept on each level."""
    runs = {}
    for label in [label for labels in KINDS_OF_CREDIT.values() for label in labels]:
        for folder in sorted(root.glob(f"{label}-seed*")):
            reward = {
                step: row["reward"] for step, row in steps_of(folder / "training.jsonl").items() if "reward" in row
            }
            kept = {}
            for step, record in steps_of(folder / "memory.jsonl").items():
                for key, (held, count) in record["kept"].items():
                    level, need, _ = key.split()
                    if need == "needed" and step + 1 in reward:  # logged before the step is counted
                        of_level = kept.setdefault(level, {}).setdefault(step + 1, [0, 0])
                        of_level[0] += held
                        of_level[1] += count
            if reward:
                runs.setdefault(label, {})[int(folder.name.rpartition("-seed")[2])] = (reward, kept)
    return runs


def kept_at(kept, level, end):
    """Share of the needed rows of a level that the last `WINDOW` steps before `end` have kept; `None` for a run that stopped before."""
    steps = kept.get(level, {})
    counts = [steps[step] for step in range(end - WINDOW + 1, end + 1) if step in steps]
    if not counts or max(steps) < end:
        return None
    held, count = map(sum, zip(*counts))
    return held / count


def compare_credit(runs, steps):
    """`{label: {"level-step": {seed: share kept}}}`, as far as the runs have come."""
    record = {}
    for label, seeds in runs.items():
        for level, end in columns(steps):
            shares = {seed: kept_at(kept, level, end) for seed, (_, kept) in seeds.items()}
            shares = {seed: share for seed, share in shares.items() if share is not None}
            if shares:
                record.setdefault(label, {})[f"{level}-{end}"] = shares
    return record


def credit_table(record, steps):
    """Rows: kinds of credit. Cells: the mean over seeds, and each of them."""
    rows = []
    for algorithm, labels in KINDS_OF_CREDIT.items():
        for label, name in labels.items():
            of_label = record.get(label, {})
            cells = []
            for level, end in columns(steps):
                seeds = of_label.get(f"{level}-{end}", {})
                each = ", ".join(f"{share:.2f}" for share in seeds.values())
                cells.append(f"{fmean(seeds.values()):.2f} ({each})" if seeds else "")
            if of_label:
                # A run whose end was not reached is not in the later columns
                rows.append([f"{algorithm}, {name}", ", ".join(map(str, next(iter(of_label.values())))), *cells])
    heads = [f"{level}, steps {end - WINDOW + 1} to {end}" for level, end in columns(steps)]
    return markdown_table(["advantages of", "seeds", *heads], rows)


def plot_credit(runs, steps, path):
    """Reward in training by kind of credit: a line for each seed."""
    algorithms = [name for name, labels in KINDS_OF_CREDIT.items() if any(label in runs for label in labels)]
    figure, panels = plt.subplots(1, len(algorithms), figsize=(5 * len(algorithms), 3.6), sharey=True, squeeze=False)
    for axes, algorithm in zip(panels[0], algorithms):
        for colour, (label, name) in zip(COLOURS, KINDS_OF_CREDIT[algorithm].items()):
            for number, (reward, _) in enumerate(runs.get(label, {}).values()):
                at = sorted(reward)
                axes.plot(
                    at, smooth([reward[step] for step in at], WINDOW), color=colour, linewidth=1.3, alpha=0.85,
                    label=None if number else name,
                )  # fmt: skip
        for end in boundaries(steps)[:-1]:
            axes.axvline(end, color="gray", linewidth=0.8, linestyle=":")
        axes.set(title=algorithm, xlabel="optimizer step", xlim=(0, steps), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(title="advantages of", loc="lower right", fontsize=8, title_fontsize=8)
    panels[0][0].set_ylabel("reward: share of slots that are right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
