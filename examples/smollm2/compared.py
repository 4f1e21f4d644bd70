"""Tests that `evaluate_tasks.py` wrote: means with their intervals, and paired differences between agents."""

import re
import statistics
from collections import defaultdict

from mistakes import questions_of
from runs import read_lines

from mem1_trl import StopReason, Trajectory
from mem1_trl.evaluation import Evaluation, compare
from mem1_trl.evaluation.intervals import summarize
from mem1_trl.evaluation.result import EvaluatedTask

FILE = re.compile(
    r"(?P<label>.+?)(-seed(?P<adapter>\d+))?-(?P<objectives>\d+)-t(?P<temperature>[\d.]+)-seed(?P<seed>\d+)"
)
"""A file of tests: that of one seed of an agent, or of an agent without seeds, `start-2-t0-seed0`."""


def read_tests(folder, order):
    """
    What is tested, twice `{(label, temperature): {objectives: {key: line}}}`, agents in a given order.

    The first are tests of an adapter on the tasks of its own seed, by the name of the task. The second are those on the tasks of another one, which
    no choice was made by; their `seed` is that of the adapter, and a task is there once for each.
    """
    own, others = (defaultdict(lambda: defaultdict(dict)) for _ in range(2))
    for path in sorted(folder.glob("*.jsonl")):
        match = FILE.fullmatch(path.stem)
        for line in read_lines(path) if match else []:
            place = (match["label"], float(match["temperature"])), int(match["objectives"])
            if match["adapter"] in (None, match["seed"]):
                own[place[0]][place[1]][line["task"]] = line
            else:
                adapter = int(match["adapter"])
                others[place[0]][place[1]][line["task"], adapter] = {**line, "seed": adapter}
    found = []
    for tests in (own, others):
        names = list(dict.fromkeys([*order, *sorted(label for label, _ in tests)]))
        found.append(dict(sorted(tests.items(), key=lambda item: (names.index(item[0][0]), item[0][1]))))
    return found


def mean(lines, metric):
    """Mean of `{key: line}` with its interval over tasks, their number, and the mean of each seed; `None` if no task has a value."""
    values = {key: line[metric] for key, line in lines.items() if line[metric] is not None}
    if not values:
        return None
    asked = questions_of(lines[key]["task"] for key in values)
    found = summarize(list(values.values()), questions=[asked[lines[key]["task"]] for key in values])
    seeds = {
        seed: statistics.mean(value for key, value in values.items() if lines[key]["seed"] == seed)
        for seed in seeds_of(lines[key] for key in values)
    }
    return {"mean": found.mean, "low": found.low, "high": found.high, "tasks": found.count, "seeds": seeds}


def seeds_of(lines):
    return sorted({line["seed"] for line in lines})


def cell(statistic, form=".2f"):
    """A mean with its interval and, in brackets, each seed."""
    if statistic is None:
        return ""
    text = f"{statistic['mean']:{form}} [{statistic['low']:{form}}, {statistic['high']:{form}}]"
    seeds = statistic["seeds"].values()
    return f"{text} ({', '.join(f'{value:{form}}' for value in seeds)})" if len(seeds) > 1 else text


def evaluation(lines, metric):
    """Lines of one seed as the package compares them."""
    asked = questions_of(line["task"] for line in lines)
    nothing = Trajectory(turns=[], stop_reason=StopReason.ERROR)  # its turns are not in the lines, and not compared
    return Evaluation(
        [
            EvaluatedTask(
                number,
                {"task": line["task"], "questions": asked[line["task"]]},
                "",
                nothing,
                {} if line[metric] is None else {metric: line[metric]},
            )
            for number, line in enumerate(lines)
        ]
    )


def difference(mine, theirs, metric):
    """The paired difference over the tasks that both have played, seed by seed; `None` if there are none."""
    both = [key for key in mine if key in theirs]
    sides = [
        [
            evaluation([lines[key] for key in both if mine[key]["seed"] == seed], metric)
            for seed in seeds_of(mine[key] for key in both)
        ]
        for lines in (mine, theirs)
    ]
    return compare(*sides, metric) if both else None
