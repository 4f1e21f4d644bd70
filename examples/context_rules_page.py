"""The page of results of `context_rules.py`: tables, reasons, and a picture, all from `results.json`."""

import platform

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from result_pages import markdown_table

REWARD = "exact_match_per_objective"
COLUMNS = {
    REWARD: ("answers right", ".2f"),
    "peak_tokens": ("peak tokens", ",.0f"),
    "total_tokens": ("total tokens", ",.0f"),
    "dependency_length": ("attention pairs", ",.0f"),
}
SUMMARIES = {
    "turns": ("turns", ".1f"),
    "summaries": ("summaries", ".1f"),
    "summary_saved_tokens": ("tokens saved by them", ",.0f"),
    "summary_lost_answers": ("answers lost in them", ".2f"),
}
ENDS = {
    "context_overflow": "the next context exceeds the window of {window} tokens",
    "invalid_action": "a turn has no action that can be called",
    "truncated": "a turn is cut at {completion} tokens",
    "max_turns": "no turn is left",
    "error": "the environment failed",
}
COLORS = ("#4477aa", "#ee7733")
END = "stop_reason/"


def numbers(one, columns):
    return [f"{one[key]:{form}}" if key in one else "-" for key, (_, form) in columns.items()]


def result_table(rules, questions):
    rows = []
    for rule, found in rules.items():
        one = found["tested"][questions]
        low, high = one["interval"]
        right, *others = numbers(one, COLUMNS)
        rows.append([f"`{rule}`", f"{right} [{low:.2f}, {high:.2f}]", *others, *numbers(one, SUMMARIES)])
    heads = [name for name, _ in (*COLUMNS.values(), *SUMMARIES.values())]
    return markdown_table(["rule", *heads], rows)


def reasons(rules, questions, limits):
    """A line for each rule whose interval lies below that of the best: how its episodes ended, and what its answers missed."""
    tested = {rule: found["tested"][questions] for rule, found in rules.items()}
    best = max(tested, key=lambda rule: tested[rule][REWARD])
    lines = []
    for rule, one in tested.items():
        if one["interval"][1] >= tested[best]["interval"][0]:
            continue
        ends = {end: one.get(END + end, 0.0) for end in ENDS}
        texts = [
            f"in {share:.0%} of its episodes {ENDS[end].format(**limits)}"
            for end, share in sorted(ends.items(), key=lambda pair: -pair[1])
            if share > 0.02
        ]
        answered = one.get(END + "answer", 0.0)
        if answered > 0.02:
            texts.append(
                f"{answered:.0%} end with an answer, of which {min(1.0, one[REWARD] / answered):.0%} is right"
            )
        if one.get("summary_lost_answers", 0.0) > 0.05:
            texts.append(f"summaries lose {one['summary_lost_answers']:.1f} answers that had been found")
        lines.append(f"- `{rule}` ({one[REWARD]:.2f}, `{best}` {tested[best][REWARD]:.2f}): {'; '.join(texts)}.")
    return "\n".join(lines) or "No rule is clearly below the best: all intervals overlap with its own."


def training_table(rules):
    rows = []
    for rule, found in rules.items():
        earned, part = found["reward_in_training"], max(1, len(found["reward_in_training"]) // 5)
        first, last = sum(earned[:part]) / part, sum(earned[-part:]) / part
        cells = (
            f"{found['imitation_loss']:.3f}",
            str(found["steps"]),
            f"{found['tokens']:,}",
            f"{first:.2f}",
            f"{last:.2f}",
        )
        rows.append([f"`{rule}`", *cells, f"{found['cpu_seconds']['training']:.0f}", found["commit"]])
    heads = ["rule", "loss of imitation, nats", "steps of GRPO", "tokens of GRPO", "reward, first fifth", "last fifth"]
    return markdown_table([*heads, "CPU seconds", "commit"], rows)


def plot(rules, path):
    """A panel for reward, peak tokens, total tokens and attention pairs each, with a bar for each number of questions."""
    figure, axes = plt.subplots(1, len(COLUMNS), figsize=(14, 4), sharey=True)
    tested = list(next(iter(rules.values()))["tested"])
    height = 0.8 / len(tested)
    for axis, (key, (name, form)) in zip(axes, COLUMNS.items()):
        largest = 0.0
        for place, (questions, color) in enumerate(zip(tested, COLORS)):
            values = [found["tested"][questions][key] for found in rules.values()]
            largest = max([largest, *values])
            centers = [row + (place - (len(tested) - 1) / 2) * height for row in range(len(values))]
            bars = axis.barh(centers, values, height, color=color, label=f"{questions} questions")
            axis.bar_label(bars, [f"{value:{form}}" for value in values], padding=2, fontsize=8)
        axis.set_xlim(0, max(largest, 1e-9) * 1.35)
        axis.set_title(name, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_yticks(range(len(rules)), list(rules))
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(tested), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write_results(results, output):
    """Write `RESULTS.md` and `context_rules.png` beside `results.json`."""
    rules, options = results["rules"], results["options"]
    few, many = next(iter(rules.values()))["tested"]
    limits = {"window": options["window"], "completion": 48}
    minutes = sum(found["cpu_seconds"]["all"] for found in rules.values()) / 60
    page = f"""# Rules of context on one task

Written by `python examples/context_rules.py` at commit {results["commit"]}, on {platform.machine()} with torch {torch.__version__}, one thread. All rules
together took {minutes:.0f} minutes of processor time.

The world is small and invented: a search finds three passages, and an agent has to copy the right word from the right place, turn after turn. A model of
700,000 parameters that can do so already is adapted to each rule. The numbers show what a rule costs, and where it breaks, when the agent keeps a full state
in any case; they do not show which rule suits a large language model. There is one seed.

Under every rule the same: the model to start from, {options["examples"]} scripted episodes to imitate, {options["imitation_tokens"]:,} tokens of imitation,
{options["tokens"]:,} tokens of GRPO on tasks of {few} questions (tokens that turns read and write, so that a rule with long contexts plays fewer
episodes), and a window of {options["window"]} tokens. Each number is a mean over {options["tasks"]} tasks about held-out names, decoded greedily; intervals are
95% bootstrap intervals over tasks. *Total tokens* are what all turns of an episode read and write, *attention pairs* the pairs of a token and one that it
reads.

![reward, peak, total tokens and attention pairs of each rule](context_rules.png)

## {few} questions, as in training

{result_table(rules, few)}

Below the best, and why:

{reasons(rules, few, limits)}

## {many} questions

{result_table(rules, many)}

Below the best, and why:

{reasons(rules, many, limits)}

## Training

{training_table(rules)}

The reward is the number of right answers of an episode, {few} at most. GRPO stops after the step in which its budget is spent.
"""
    (output / "RESULTS.md").write_text(page)
    plot(rules, output / "context_rules.png")
