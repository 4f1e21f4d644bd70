"""
The tasks: natural questions about the bundled facts, each a lookup, a comparison of two entities, or a join over two passages.

    Which currency code is used in Afghanistan?                                        one search
    Which has the higher atomic number, Chlorine or Iron?                              a number is needed only one search later
    What is the currency code of the country where Chlorine was discovered?            the second search follows from the first
    What is the chemical symbol of the element whose atomic number is the calling code of Afghanistan?

A search finds three passages of about 72 tokens, each with up to eight facts of the kind that is asked for. The state may have
`STATE_TOKENS`, less than one passage, so that it can only hold what was read out of them.
"""

import random
from collections import defaultdict
from functools import cache

from datasets import Dataset

from mem1_trl import Mem1Protocol
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation.retention import contains_answer
from mem1_trl.facts import KEYWORDS, load_facts
from mem1_trl.rewards import ANSWER_SEPARATOR, exact_match
from mem1_trl.tasks import sample_objectives

PASSAGES = 3
STATE_TOKENS = 64
TEST_PARTS = 3
WAIT = 1.0
"""Seconds for which an episode waits for others: a search takes none, so that all of them are generated together."""
PROTOCOL = Mem1Protocol(
    action_tags={"search": "search"},
    instructions=(
        "Answer the questions. You see only your last turn and its result, so first write into <{state}> what you have found, "
        "then <search>keywords</search>, or at the end <{answer}>the answers in order, separated by ;</{answer}>.\n{prompt}"
    ),
    observation_template="\n<{tag}>\n{observation}</{tag}>\n",
    hint_template="",
    last_hint_template="",
)
COMPARED = {  # relation -> question, and whether the higher number is asked for
    "atomic_number": ("Which has the higher atomic number, {} or {}?", True),
    "discovery_year": ("Which was discovered earlier, {} or {}?", False),
    "calling_code": ("Which has the lower calling code, {} or {}?", False),
}
COUNTRY = ("capital", "currency", "calling_code", "demonym", "alpha2", "alpha3")
ELEMENT = ("symbol", "period", "block")


class FactsEnvironment(RetrievalQAEnvironment):
    """Search and answer as in the package; the reward is the share of objectives that are right by their position."""

    def get_reward(self):
        """Between 0 and 1, see [`positional_score`]; `None` for a row without answers."""
        return None if self._answers is None else positional_score(self.final_answer, self._answers)


def positional_score(answer, answers):
    """
    The share of objectives whose answer stands at their position.

    `"HUN; DZD"` for the answers HUN, DZD, Paris, 7 scores .5, where [`mem1_trl.rewards.exact_match`] gives 0 because there are not
    four of them: this one rises with every answer that is added.
    """
    given = [] if answer is None else answer.split(ANSWER_SEPARATOR)
    return sum(exact_match(part, [gold]) for part, gold in zip(given, answers) if part.strip()) / len(answers)


def over_budget(completions, trajectories, **kwargs):
    """TRL reward function: -1 for an episode in which a state had more than `STATE_TOKENS` tokens."""
    return [-float(largest_state(trajectory) > STATE_TOKENS) for trajectory in trajectories]


def largest_state(trajectory):
    return max((turn.state_tokens for turn in trajectory.turns), default=0)


@cache
def environment_factory():
    return FactsEnvironment.factory(load_facts().corpus, top_k=PASSAGES)


def limits(most):
    """Budgets of an agent on up to `most` objectives: two searches for each and an answer, which follows a full state."""
    return {
        "max_turns": 2 * most + 2,
        "max_completion_length": STATE_TOKENS + 16 + 8 * most,
        "max_observation_length": 360,
    }


@cache
def plans(split):
    """
    Question -> `(answer, searches)` of a split, by entity; each search is `(query, entity, what it has to find)`.

    Half of them are lookups. A question stays only if its searches find what they have to.
    """
    rng, facts = random.Random(split), load_facts().questions(split)
    values, names = defaultdict(dict), {}
    for row in facts:
        values[row["entity"]][row["relation"]] = row["answer"]
        names[row["entity"]] = row["kind"]
    everything = (
        values if split == "train" else values | {k: v for k, v in _values("train").items() if k not in values}
    )
    of_number = {v["atomic_number"]: name for name, v in everything.items() if "atomic_number" in v}

    def step(entity, relation):
        return KEYWORDS[relation].format(entity), entity, everything[entity][relation]

    two = {}
    for relation, (question, higher) in COMPARED.items():
        known = [name for name in values if values[name].get(relation, "").isdigit()]
        for name in known:
            for other in rng.sample(known, min(2, len(known))):
                pair = (name, other)
                numbers = [int(values[one][relation]) for one in pair]
                if numbers[0] != numbers[1]:
                    answer = pair[numbers.index(max(numbers) if higher else min(numbers))]
                    two[question.format(*pair)] = answer, [step(one, relation) for one in pair]
    for name, own in values.items():
        place, number = own.get("discovery_place"), of_number.get(own.get("calling_code"))
        if place in everything:
            for relation in set(COUNTRY) & set(everything[place]):
                asked = KEYWORDS[relation].format(f"the country where {name} was discovered")
                steps = [step(name, "discovery_place"), step(place, relation)]
                two[f"What is the {asked}?"] = everything[place][relation], steps
        if number is not None:
            for relation in set(ELEMENT) & set(everything[number]):
                asked = KEYWORDS[relation].format(f"the element whose atomic number is the calling code of {name}")
                query = KEYWORDS[relation].format(f"the element with atomic number {own['calling_code']}")
                steps = [step(name, "calling_code"), (query, number, everything[number][relation])]
                two[f"What is the {asked}?"] = everything[number][relation], steps
    one = {
        row["question"]: (row["answer"], [step(row["entity"], row["relation"])])
        for row in facts
        if row["relation"] in KEYWORDS
    }
    one, two = ({q: plan for q, plan in sorted(some.items()) if all(map(_is_found, plan[1]))} for some in (one, two))
    return {q: one[q] for q in rng.sample(sorted(one), min(len(one), len(two)))} | two


def _values(split):
    values = defaultdict(dict)
    for row in load_facts().questions(split):
        values[row["entity"]][row["relation"]] = row["answer"]
    return values


def _is_found(step):
    query, entity, value = step
    passages = environment_factory()().search(query).split("\n")
    return any(f"(Title: {entity})" in passage and contains_answer(passage, [value]) for passage in passages)


def tasks(split, n, count, seed):
    """
    `count` tasks of `n` objectives as messages, with the columns of [`mem1_trl.tasks.compose_objectives`].

    Fewer tasks of one seed are the first of more tasks, so that a test can be continued. The test questions of the seeds 0, 1 and 2
    are disjoint.
    """
    pool = Dataset.from_list([{"question": q, "answer": answer} for q, (answer, _) in sorted(plans(split).items())])
    if split == "test":
        pool = pool.select(range(seed % TEST_PARTS, len(pool), TEST_PARTS))
    return Dataset.from_list([numbered(row) for row in sample_objectives(pool, n, count, seed=seed)])


def numbered(row, first=1):
    """A task with its questions in the prompt, numbered from `first` on."""
    text = "\n".join(f"{number}. {question}" for number, question in enumerate(row["questions"], first))
    return {**row, "prompt": [{"role": "user", "content": text}]}
