"""
The tasks: natural questions about the bundled facts, of which an agent reads a handful at once and may keep a few.

    Which currency code is used in Afghanistan?
    What is the atomic number of chlorine?

Passages are sentences. A search finds three of them, mostly the whole article on what is asked about, with up to eight facts; the state
may have `STATE_TOKENS`, less than one search shows, and has to hold the answers to all questions.
"""

import re
from functools import cache

from datasets import Dataset

from mem1_trl import Mem1Protocol
from mem1_trl.curriculum import compose_curriculum
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.evaluation.retention import contains_answer
from mem1_trl.facts import KEYWORDS, load_facts
from mem1_trl.retrieval import open_retriever
from mem1_trl.rewards import ANSWER_SEPARATOR, exact_match
from mem1_trl.tasks import sample_objectives

PASSAGES = 3
STATE_TOKENS = 64
TEST_PARTS = 3
SEPARATOR = "; "
KNOWN = "Known: "
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


class FactsEnvironment(RetrievalQAEnvironment):
    """Search and answer as in the package; the reward is the share of objectives that are right by their position."""

    def get_reward(self):
        """Between 0 and 1, see [`positional_score`]; `None` for a row without answers."""
        return None if self._answers is None else positional_score(self.final_answer, self._answers)


class ExactFactsEnvironment(FactsEnvironment):
    """The same, but the reward is 0 unless there are as many answers as questions, so that it never pays to leave one out."""

    def get_reward(self):
        """Between 0 and 1, the paper's exact match for each objective; `None` for a row without answers."""
        return None if self._answers is None else exact_match(self.final_answer, self._answers) / len(self._answers)


class CountedFactsEnvironment(FactsEnvironment):
    """The same by position, but answers beyond the questions cost: it never pays to search for one more."""

    def get_reward(self):
        """Between 0 and 1: right answers by position, divided by how many were asked for or given, whichever is more."""
        if self._answers is None:
            return None
        asked = len(self._answers)
        return (
            positional_score(self.final_answer, self._answers) * asked / max(asked, len(answers_in(self.final_answer)))
        )


REWARDS = {"exact": ExactFactsEnvironment, "positional": FactsEnvironment, "counted": CountedFactsEnvironment}


def answers_in(answer):
    """The answers that were given; none where the episode ended without any."""
    return answer.split(ANSWER_SEPARATOR) if answer else []


def positional_score(answer, answers):
    """
    The share of objectives whose answer stands at their position.

    `"HUN; DZD"` for the answers HUN, DZD, Paris, 7 scores .5, where [`mem1_trl.rewards.exact_match`] gives 0 because there are not
    four of them: this one rises with every answer that is added.
    """
    return sum(exact_match(part, [gold]) for part, gold in zip(answers_in(answer), answers) if part.strip()) / len(
        answers
    )


def over_budget(completions, trajectories, **kwargs):
    """TRL reward function: -1 for an episode in which a state had more than `STATE_TOKENS` tokens."""
    return [-float(largest_state(trajectory) > STATE_TOKENS) for trajectory in trajectories]


def largest_state(trajectory):
    return max((turn.state_tokens for turn in trajectory.turns), default=0)


@cache
def sentences():
    """Search in the corpus by passages of one sentence, under the title of their article; indexed once."""
    return open_retriever(
        {"title": article["title"], "text": sentence}
        for article in load_facts().corpus
        for sentence in re.split(r"(?<=\.) (?=[A-Z])", article["text"])
    )


def environment_factory(reward="positional"):
    return REWARDS[reward].factory(sentences(), top_k=PASSAGES)


def limits(most):
    """Budgets of an agent on up to `most` objectives: a search for each, one to spare, and an answer, which follows a full state."""
    return {
        "max_turns": most + 2,
        "max_completion_length": STATE_TOKENS + 16 + 8 * most,
        "max_observation_length": 200,
    }


@cache
def plans(split):
    """
    Question -> `(answer, query, facts)` of a split; `facts` are all that the answering sentence says of its entity.

    A question stays only if its query finds that sentence, and it says two things or more.
    """
    asked = [row for row in load_facts().questions(split) if row["relation"] in KEYWORDS]
    values = {}
    for row in asked:
        values.setdefault(row["entity"], []).append(row["answer"])
    found = {}
    for row in asked:
        facts = beside(row, values[row["entity"]])
        if len(facts) > 1:
            found[row["question"]] = row["answer"], row["keywords"], facts
    return found


def beside(row, values):
    """Which of the values stand in the first sentence about the entity with the answer, each once, in order; none if it is not found."""
    passages = environment_factory()().search(row["keywords"]).split("\n")
    about = (passage.split(") ", 1)[1] for passage in passages if f"(Title: {row['entity']})" in passage)
    sentence = next((one for one in about if contains_answer(one, [row["answer"]])), "")
    return list(dict.fromkeys(value for value in values if contains_answer(sentence, [value])))


def pool(split):
    """The questions of a split, a row each."""
    return Dataset.from_list([{"question": q, "answer": answer} for q, (answer, *_) in sorted(plans(split).items())])


def tasks(split, n, count, seed):
    """
    `count` tasks of `n` objectives as messages, with the columns of [`mem1_trl.tasks.compose_objectives`].

    Fewer tasks of one seed are the first of more tasks, so that a test can be continued. The test questions of the seeds 0, 1 and 2
    are disjoint.
    """
    questions = pool(split)
    if split == "test":
        questions = questions.select(range(seed % TEST_PARTS, len(questions), TEST_PARTS))
    return Dataset.from_list([numbered(row) for row in sample_objectives(questions, n, count, seed=seed)])


def curriculum(objectives, one_first, count, seed):
    """Tasks of the train split, equally many of each number of objectives in any order; before them so many of one, as a stage of its own."""
    stages = [(count, {n: 1 / len(objectives) for n in objectives})]
    stages = [(count, {1: 1.0}), *stages] if one_first else stages
    return Dataset.from_list([numbered(row) for row in compose_curriculum(pool("train"), stages, seed=seed)])


def numbered(row, known=()):
    """A task with its questions in the prompt, numbered on from the facts that are known already, which stand before them."""
    given = KNOWN + SEPARATOR.join(f"{number}: {fact}" for number, fact in enumerate(known, 1))
    asked = [f"{number}. {question}" for number, question in enumerate(row["questions"], len(known) + 1)]
    return {**row, "prompt": [{"role": "user", "content": "\n".join([given, *asked] if known else asked)}]}
