"""
Writes `RESULTS.md`, `results.json`, `tasks.jsonl` and a picture from the runs and tests that are finished.

    python examples/smollm2/write_results.py runs/smollm2 --to docs/smollm2

`tasks.jsonl` has a line for each tested task, see `evaluate_tasks.py`, with the label of the agent. Those of `"part": "last"` are of an adapter,
named by `seed`, on the tasks of another seed.
"""

import json
import statistics
from collections import Counter, defaultdict

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from compared import cell, difference, mean, read_tests, seeds_of
from demonstrator import MOST_KNOWN
from mistakes import tables as mistakes
from runs import read_lines, steps_of, write_json
from tasks import STATE_TOKENS, answers_in, plans

# `runs` made this importable, too
from result_pages import difference_cell, markdown_table, page_parser, smooth  # isort: skip

NAMES = {
    "demonstrations": "the demonstrations themselves",
    "start": "supervised start",
    "grpo-mixed": "GRPO from the start, reward by position",
    "grpo-counted": "GRPO from the start, then a price on answers too many",
    "supervised": "supervised training, as long as GRPO from the start",
    "grpo-exact": "GRPO from supervised training",
    "grpo-anchored-part": "GRPO from supervised training, held to it, first part alone",
    "grpo-anchored": "GRPO from supervised training, held to it",
    "grpo-small": "GRPO from supervised training, held to it, in three times as many steps",
    "supervised-longer": "supervised training for as long again",
    "grpo-2": "GRPO on two objectives",
    "ppo-2": "PPO on two objectives",
    "scalar": "supervised training, best constants and temperature",
    "again": "as long on the demonstrations of the start",
    "taught": "as long on demonstrations that keep what is asked for",
    "imitation": "imitation of successes",
    "imitation-longer": "imitation of successes, then as much again on two to four objectives",
    "grpo-four": "imitation of successes, then GRPO on two to four objectives",
    "twin-start": "full history, its warm-up",
    "twin": "full history, GRPO",
    "twin-imitation": "full history, imitation of successes",
    "truncation": "full history, imitation of successes, cut to the last 512 tokens",
}
AGENT, BEFORE, AS_LONG = "grpo-anchored", "supervised", "supervised-longer"
"""What the page is about, what it was before reinforcement, and what supervised training makes of that in as much time."""
COMPARED = (
    ("What reinforcement adds", "differences", AGENT, None),
    (
        "What reinforcement adds to imitation", "differences_after_imitation", "grpo-four",
        ("imitation", "imitation-longer", AGENT, "demonstrations"),
    ),
    (
        "Beside a twin that forgets nothing", "differences_to_twin", "imitation",
        ("twin-start", "twin-imitation", "truncation"),
    ),
    (
        "Reinforcement beside that twin", "differences_of_reinforcement_to_twin", AGENT,
        ("twin-start", "twin", "twin-imitation", "truncation"),
    ),
)  # fmt: skip
"""Title of each section of paired differences, its key in `results.json`, whose differences they are, and to which others; `None`: to all."""
LOOKED_AT = 2
"""Objectives of the tasks whose answers are told apart: short enough for most of them to be looked up by every agent."""
METRICS = {
    "em": "exact match per objective",
    "positional": "right by position",
    "retained": "found and still in the state",
}
WINDOW = 5  # steps of a running mean
STYLES = ("-", "--", ":", "-.")
ENDS = 8  # batches of episodes at the begin and at the end of a training


def named(label):
    """What a page calls an agent; one that is none of the experiment's has the name that its test gave it."""
    return NAMES.get(label, label)


def differences(tests, agent, metric, numbers, others=None):
    """Paired differences of an agent to others at temperature 0; to all of them by default."""
    rows, record = [], {}
    for label, temperature in tests:
        if label == agent or temperature or (others is not None and label not in others):
            continue
        texts = []
        for n in numbers:
            found = difference(tests[agent, 0.0].get(n, {}), tests[label, 0.0].get(n, {}), metric)
            if found is None:
                texts.append("")
                continue
            record.setdefault(label, {})[n] = _numbers(found)
            texts.append(_difference_cell(found))
        rows.append([f"minus {named(label)}", *texts])
    return rows, record


def pairs_of(tests, agent, numbers, others=None):
    """The paired differences of an agent as text and as a record; nothing where it was not tested, or none of the others."""
    tables, record = "", {}
    beside = {label for label, temperature in tests if not temperature and label != agent}
    if (agent, 0.0) not in tests or not (beside if others is None else beside.intersection(others)):
        return tables, record
    for metric in ("positional", "em"):
        rows, record[metric] = differences(tests, agent, metric, numbers, others)
        heads = ["", *(f"{n} objective{'s' * (n > 1)}" for n in numbers)]
        tables += f"\n{METRICS[metric].capitalize()}:\n\n{markdown_table(heads, rows)}\n"
    return (
        f"""*{named(agent)[0].upper()}{named(agent)[1:]}*, minus each of the others.

Paired differences over the same tasks, greedy, with 95 % bootstrap intervals over seeds and tasks, widened in the same way; bold where the interval leaves out 0.
In brackets the difference of each seed: with two of them an interval is narrower than it should be.
{tables}""",
        record,
    )


def last_word(tests, agent, metric):
    """A section about tests on tasks by which nothing was chosen, with means and the paired differences of an agent; `""` without any."""
    if (agent, 0.0) not in tests:
        return "", {}
    rows, record = [], {}
    for n, mine in sorted(tests[agent, 0.0].items()):
        for label in (label for label, temperature in tests if not temperature and n in tests[label, temperature]):
            theirs = tests[label, 0.0][n]
            found = None if label == agent else difference(mine, theirs, metric)
            statistic = mean(theirs, metric)
            record.setdefault(label, {})[n] = {
                **statistic,
                **({} if found is None else {"difference": _numbers(found)}),
            }
            rows.append([named(label), str(n), cell(statistic), "" if found is None else _difference_cell(found)])
    table = markdown_table(["", "objectives", METRICS[metric], f"*{named(agent)}* minus it"], rows)
    return (
        f"""
## The last word

The same adapters on tasks about other entities, the third part of the test, by which no choice between runs was made. Each adapter plays all of them; intervals and brackets as above.

{table}
""",
        record,
    )


def _numbers(found):
    return [found.difference, found.low, found.high, found.count, found.by_seed]


def _difference_cell(found):
    """A paired difference with its interval and, in brackets, that of each seed."""
    each = f" ({', '.join(f'{one:+.2f}' for one in found.by_seed)})" if len(found.by_seed) > 1 else ""
    return difference_cell(found) + each


def endings(lines):
    """How the episodes ended, most frequent first, how many turns they had, and how many answers were given."""
    reasons = Counter(line["stop_reason"] for line in lines).most_common()
    turns = sorted(Counter(line["turns"] for line in lines).items())
    given = sorted(Counter(len(answers_in(line["answer"])) for line in lines).items())
    ended = ", ".join(f"{name} {count}" for name, count in reasons)
    turns, given = (", ".join(f"{number} in {count}" for number, count in counts) for counts in (turns, given))
    return f"{ended}; turns: {turns}; answers: {given}"


def plot_agents(cells, numbers, path):
    """Exact match of all agents with its interval, greedy, a panel for each number of objectives."""
    labels = [name.removesuffix(" t0") for name in cells if name.endswith(" t0")]
    figure, panels = plt.subplots(
        1, len(numbers), figsize=(3.2 + 2.6 * len(numbers), 0.8 + 0.3 * len(labels)), layout="constrained",
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for axes, n in zip(panels[0], numbers):
        for at, label in enumerate(labels):
            found = cells[f"{label} t0"]["em"].get(n)
            if found is not None:
                color = "C1" if label == AGENT else "C0"
                around = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
                axes.errorbar(found["mean"], at, xerr=around, fmt="o", color=color, capsize=3)
        axes.set(title=f"{n} objective{'s' * (n > 1)}", xlabel="exact match per objective")
        axes.set_xlim(left=-0.02)  # room for the dot of what is never right
        axes.grid(alpha=0.3, axis="x")
    panels[0][0].set_yticks(range(len(labels)), [named(label) for label in labels])
    panels[0][0].invert_yaxis()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot(root, path):
    """Reward, turns and entropy of every run of reinforcement."""
    runs = {each.parent.name: steps_of(each) for each in sorted(root.glob("*-seed*/training.jsonl"))}
    runs = {name: log for name, log in runs.items() if any("reward" in record for record in log.values())}
    if not runs:
        return False
    kinds = list(dict.fromkeys(name.rpartition("-seed")[0] for name in runs))
    shown = {"reward": "reward", "episode/turns": "turns", "entropy": "entropy, nats"}
    figure, panels = plt.subplots(1, len(shown), figsize=(11, 3.2), layout="constrained")
    for axes, (key, name) in zip(panels, shown.items()):
        for label, log in runs.items():
            steps = {step: record[key] for step, record in sorted(log.items()) if key in record}
            kind, _, seed = label.rpartition("-seed")  # a colour for each kind, a style for each seed
            style = {"color": f"C{kinds.index(kind)}", "linestyle": STYLES[int(seed) % len(STYLES)]}
            (line,) = axes.plot(list(steps), smooth(list(steps.values()), WINDOW), label=label, **style)
            axes.plot(list(steps), list(steps.values()), color=line.get_color(), alpha=0.2)
        axes.set(xlabel="optimizer step", title=name)
        axes.grid(alpha=0.3)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def reward_in_words(log):
    """How the reward of sampled episodes went in a run of reinforcement."""
    rewards = [record["reward"] for _, record in sorted(log.items()) if "reward" in record]
    if len(rewards) < 2 * ENDS:
        return ""
    first, last = statistics.mean(rewards[:ENDS]), statistics.mean(rewards[-ENDS:])
    return (
        f"; sampled reward {first:.2f} in the first {ENDS} batches and {last:.2f} in the last {ENDS}, with a standard deviation of "
        f"{statistics.stdev(rewards):.2f} between batches"
    )


def rounds_in_words(folder, done):
    """What imitation has played, and how long it has learned from what was right."""
    rounds = [json.loads(path.read_text()) for path in sorted(folder.glob("round*/done.json"))]
    steps, seconds = (sum(one[name] for one in rounds) for name in ("steps", "cpu_seconds"))
    return (
        f"{done['episodes']} episodes in {len(done['kept'])} rounds, {', '.join(map(str, done['kept']))} of them right, which it learned in {steps} steps of "
        f"{done['batch_size']}, {seconds / 60:.0f} processor minutes"
    )


def training(root):
    """A line for each run."""
    lines = []
    for path in sorted(root.glob("*-seed*/training.jsonl")):
        if not (path.parent / "done.json").is_file():
            log = steps_of(path)
            minutes = sum(record["cpu_seconds"] for record in log.values()) / 60
            lines.append(
                f"- `{path.parent.name}`, not finished: {len(log)} steps, {minutes:.0f} processor minutes{reward_in_words(log)}."
            )
    for path in sorted(root.glob("*-seed*/done.json")):
        done = json.loads(path.read_text())
        if "kept" in done:
            lines.append(f"- `{path.parent.name}`: {rounds_in_words(path.parent, done)}.")
            continue
        what = f"{done['steps']} steps" if "steps" in done else f"{done['episodes']} episodes"
        if "batch_size" in done:
            what += f" of {done['batch_size']}"
        if done.get("num_iterations", 1) > 1:
            what += f", {done['num_iterations']} with each batch"
        time = f", {done['cpu_seconds'] / 60:.0f} processor minutes" if "cpu_seconds" in done else ""
        lines.append(
            f"- `{path.parent.name}`: {what}{time}{reward_in_words(steps_of(path.parent / 'training.jsonl'))}."
        )
    return "\n".join(sorted(lines))


def constants(root):
    """A table of the settings that the searches of `scalar.py` tried, with the score of each on the tasks of its search."""
    found = defaultdict(dict)
    for path in sorted(root.glob("scalar-seed*/control.jsonl")):
        for tried in read_lines(path):
            moved = ", ".join(f"`{token}` {value:+g}" for token, value in tried["constants"].items()) or "none"
            found[moved, tried["temperature"]][path.parent.name.rpartition("-seed")[2]] = f"{tried['score']:.2f}"
    if not found:
        return ""
    seeds = sorted({seed for scores in found.values() for seed in scores})
    rows = [
        [moved, f"{temperature:g}", *(scores.get(seed, "") for seed in seeds)]
        for (moved, temperature), scores in found.items()
    ]
    table = markdown_table(["constant, nats", "temperature", *(f"seed {seed}" for seed in seeds)], rows)
    return f"""
## Constants on logits of the start

Right by position on those tasks of the train split on which the best setting is searched. How it does on the tasks of the test is in the tables above.

{table}
"""


def main():
    parser = page_parser(__doc__)
    args = parser.parse_args()
    tests, others = read_tests(args.root / "evaluation", NAMES)
    if not tests:
        parser.error(f"root must hold tests of evaluate_tasks.py, but {args.root / 'evaluation'} has none")
    args.to.mkdir(parents=True, exist_ok=True)
    numbers = sorted({n for cells in tests.values() for n in cells})
    has_picture = plot(args.root, args.to / "training.png")
    heads = ["", "temperature", "seeds", *(f"{n} objective{'s' * (n > 1)}" for n in numbers)]
    cells, tables = {}, {}
    for metric in [*METRICS, "peak_tokens_without_prompt"]:
        rows = []
        for (label, temperature), of_agent in tests.items():
            found = {n: mean(of_agent[n], metric) for n in numbers if n in of_agent}
            cells.setdefault(f"{label} t{temperature:g}", {})[metric] = found
            seeds = seeds_of(line for lines in of_agent.values() for line in lines.values())
            form = ".0f" if metric.startswith("peak") else ".2f"
            rows.append(
                [
                    named(label),
                    f"{temperature:g}",
                    ", ".join(map(str, seeds)),
                    *(cell(found.get(n), form) for n in numbers),
                ]
            )
        tables[metric] = markdown_table(heads, rows)
    plot_agents(cells, numbers, args.to / "agents.png")
    pairs, records = "", {}
    for title, key, agent, beside in COMPARED:
        found, records[key] = pairs_of(tests, agent, numbers, beside)
        pairs += f"\n## {title}\n\n{found}" if found else ""
    last, last_record = last_word(others, AGENT, "em")
    ends = "\n".join(
        f"- {named(label)}{f' at temperature {temperature:g}' * bool(temperature)}, {n} objective{'s' * (n > 1)}: {endings(of_agent[n].values())}."
        for (label, temperature), of_agent in tests.items()
        for n in sorted(of_agent)
    )
    beside = {
        named(label): of_agent[LOOKED_AT].values()
        for (label, temperature), of_agent in tests.items()
        if not temperature and LOOKED_AT in of_agent
    }
    outcomes, by_relation = (markdown_table(*table) for table in mistakes(beside))
    at = args.commit
    counts = {n: max(len(of_agent.get(n, {})) for of_agent in tests.values()) for n in numbers}
    facts = [len(found) for *_, found in plans("test").values()]
    chance = statistics.mean(1 / count for count in facts)
    text = f"""# A real language model

{f"{args.note}{chr(10)}{chr(10)}" if args.note else ""}Written by `python examples/smollm2/write_results.py` from runs at commit {at}: SmolLM2-135M-Instruct with LoRA adapters, in float32. Natural questions about held-out entities, three
passages for each search, a state of at most {STATE_TOKENS} tokens; the supervised start saw demonstrations of one and two objectives that keep any fact, with loss on it in every third, in
which up to {MOST_KNOWN} other facts are known from the beginning. The sentence that answers a question states {statistics.mean(facts):.1f} facts on average: one picked at random is right in {chance:.2f}. Tasks: {", ".join(f"{count} of {n}" for n, count in counts.items())}. Each cell is a mean over tasks with
its 95 % bootstrap interval over tasks, widened since a question is asked in several of them; in brackets the mean of each seed.

## Exact match per objective

![exact match per objective of all agents](agents.png)

{tables["em"]}

0 for all objectives of a task unless there are as many answers as questions. Right by position, so that an answer too few costs only its share:

{tables["positional"]}

## Memory

Of the right answers that an observation showed, the share whose text is somewhere in the state when the answer is written. A part of another fact and the number of an
item count, too: the demonstrations hold one fact for each question, of which as many are right as answers, see above.

{tables["retained"]}

Largest context with its output, in tokens, without the questions:

{tables["peak_tokens_without_prompt"]}
{pairs}{last}
## What is answered

Objectives of tasks of {LOOKED_AT}, greedy. Another fact of the sentence: it was read and the wrong one kept. The last column leaves wrong copies out; the
demonstrations choose at random.

{outcomes}

Right by position, by what is asked for:

{by_relation}
{constants(args.root)}
## How the episodes ended

{ends}

## Training

{training(args.root)}
{f"{chr(10)}![reward, turns and entropy of the training](training.png){chr(10)}" if has_picture else ""}"""
    (args.to / "RESULTS.md").write_text(text)
    with (args.to / "tasks.jsonl").open("w") as file:
        for (label, temperature), of_agent in tests.items():
            for lines in of_agent.values():
                for line in lines.values():
                    file.write(json.dumps({"agent": label, "temperature": temperature, **line}) + "\n")
        for (label, temperature), of_agent in others.items():
            for lines in of_agent.values():
                for line in lines.values():  # of an adapter whose seed is not that of the task
                    file.write(json.dumps({"agent": label, "temperature": temperature, "part": "last", **line}) + "\n")
    steps = {path.parent.name: max(steps_of(path)) for path in args.root.glob("*-seed*/training.jsonl")}
    write_json(
        args.to / "results.json",
        {
            "commit": at,
            "agent": AGENT,
            "before": BEFORE,
            "as_long": AS_LONG,
            "names": NAMES,
            "cells": cells,
            **records,
            "last_word": last_record,
            "steps": dict(sorted(steps.items())),
            "seeds": len(
                seeds_of(line for of_agent in tests.values() for n in of_agent for line in of_agent[n].values())
            ),
        },
    )
    print(args.to / "RESULTS.md")


if __name__ == "__main__":
    main()
