"""
What tested agents answered, objective by objective: right, another fact of the same sentence, or something else.

The first is what was asked for; the second is a right reading of which the wrong fact was kept; the third is a wrong copy, a fact
of something else, or nothing.
"""

from collections import Counter, defaultdict
from functools import cache
from itertools import zip_longest

from tasks import answers_in, plans, tasks

from mem1_trl.facts import load_facts
from mem1_trl.rewards import exact_match

RIGHT, OTHER_FACT, ELSE = OUTCOMES = ("right", "another fact of the sentence", "something else")


@cache
def relations():
    """Question of the test split -> the relation that it asks for."""
    return {row["question"]: row["relation"] for row in load_facts().questions("test")}


@cache
def _asked(n, seed, count):
    """Questions of the first `count` tasks; a page asks for them once for each of its cells."""
    return tasks("test", n, count, seed)["questions"]


def questions_of(names):
    """`{task: its questions}` of tasks by their names in the lines of `evaluate_tasks.py`."""
    cells, found = defaultdict(dict), {}
    for name in names:
        n, seed, number = map(int, name.split("-"))
        cells[n, seed][name] = number
    for (n, seed), numbers in cells.items():
        asked = _asked(n, seed, max(numbers.values()) + 1)
        found |= {name: asked[number] for name, number in numbers.items()}
    return found


def outcomes(lines):
    """`{relation: Counter of outcomes}` of the lines of `evaluate_tasks.py`, by position."""
    lines = list(lines)
    found, asked = defaultdict(Counter), questions_of(line["task"] for line in lines)
    for line in lines:
        questions = asked[line["task"]]
        given = answers_in(line["answer"])[: len(questions)]
        for question, part in zip_longest(questions, given, fillvalue=""):
            found[relations()[question]][outcome(part, question)] += 1
    return dict(found)


def outcome(given, question):
    """Which of `OUTCOMES` an answer to a question of the test split is."""
    answer, _, facts = plans("test")[question]
    if exact_match(given, [answer]):
        return RIGHT
    return OTHER_FACT if any(exact_match(given, [fact]) for fact in facts) else ELSE


def tables(of_agents):
    """
    Heads and rows of two tables: outcomes of agents, and what they answer right, relation by relation.

    `of_agents` are their names and the lines of their tests.
    """
    found = {name: outcomes(lines) for name, lines in of_agents.items()}
    total = {name: sum(by_relation.values(), Counter()) for name, by_relation in found.items()}
    shares = [
        [name, *(f"{count[one] / count.total():.2f}" for one in OUTCOMES), _chosen(count)]
        for name, count in total.items()
    ]
    asked = Counter()
    for by_relation in found.values():
        for relation, count in by_relation.items():
            asked[relation] = max(asked[relation], count.total())
    rows = [
        [relation.replace("_", " "), str(most), *(_share(found[name].get(relation)) for name in found)]
        for relation, most in asked.most_common()
    ]
    return (["", *OUTCOMES, "right, of the facts of the sentence"], shares), (["", "asked", *found], rows)


def _chosen(count):
    """Of the facts that were read rightly, how many are what was asked for."""
    facts = count[RIGHT] + count[OTHER_FACT]
    return f"{count[RIGHT] / facts:.2f}" if facts else ""


def _share(count):
    return f"{count[RIGHT] / count.total():.2f}" if count else ""
