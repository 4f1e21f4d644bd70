"""
The small world of `run.py`: invented names, passages, questions, and the words that a model needs for them.

Every entity has a passage of six facts, each three words long: name, attribute, value. Two of them link to other entities, so
that a search for one entity finds its own passage and those of two others, which speak of the same attributes:

    search:  bamiko home
    finds:   Doc 1(Title: bamiko) bamiko home tarel bamiko food ossun ...
             Doc 2(Title: lorune) lorune home kedash lorune friend bamiko ...

Names and their split are always the same; which value belongs to which attribute is drawn again for every seed, so nothing can
be memorised.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `lessons`, shared with the other examples

from datasets import Dataset, concatenate_datasets
from lessons import word_tokenizer

from mem1_trl import Mem1Protocol, compose_objectives

ATTRIBUTES = ("home", "food", "song", "trade", "tool", "game", "coat", "garden")
LINKS = ("friend", "rival")
ATTRIBUTES_PER_ENTITY = 4
TRAIN_ENTITIES, TEST_ENTITIES, VALUES = 300, 200, 400
TAGS = [f"<{slash}{name}>" for name in ("think", "search", "information", "answer") for slash in ("", "/")]
WORDS = ["Doc", "1", "2", "3", "(", "Title", ":", ")", "|", "/", ".", ";", "...", *ATTRIBUTES, *LINKS]
PROTOCOL = Mem1Protocol(
    action_tags={"search": "search"},
    instructions="/ {prompt} .",
    observation_template=" <{tag}> {observation} </{tag}> ",
    truncation_marker=" ...",
)


def invent_words(count):
    """Always the same `count` different words."""
    rng, words = random.Random(0), {}
    while len(words) < count:
        syllables = (rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
        word = "".join(syllables) + rng.choice(["", "l", "m", "n", "r", "s", "sh", "th"])
        if word not in WORDS:
            words[word] = None
    return list(words)


_INVENTED = invent_words(TRAIN_ENTITIES + TEST_ENTITIES + VALUES)
TRAIN_NAMES = _INVENTED[:TRAIN_ENTITIES]
TEST_NAMES = _INVENTED[TRAIN_ENTITIES : TRAIN_ENTITIES + TEST_ENTITIES]
VALUE_NAMES = _INVENTED[TRAIN_ENTITIES + TEST_ENTITIES :]


def build_tokenizer():
    """One token per word, mark and tag; text comes back with single spaces."""
    return word_tokenizer([*WORDS, *_INVENTED], TAGS)


class World:
    """
    Facts about all entities.

    Args:
        seed (`int`):
            Decides every fact and which questions are asked.

    Attributes:
        corpus (`Dataset`):
            Columns `title` and `text`, one passage per entity.
        train_questions, test_questions (`Dataset`):
            Columns `question` (`bamiko home`) and `answer`. Train: all attributes of the train entities. Test: one attribute
            of each held-out entity, no two with the same answer.
    """

    def __init__(self, seed):
        rng = random.Random(f"world {seed}")
        names = [*TRAIN_NAMES, *TEST_NAMES]
        asked_values = iter(rng.sample(VALUE_NAMES, len(TEST_NAMES)))
        facts = {}
        for name in names:
            attributes = rng.sample(ATTRIBUTES, ATTRIBUTES_PER_ENTITY)
            facts[name] = {attribute: rng.choice(VALUE_NAMES) for attribute in attributes}
        test = []
        for name in TEST_NAMES:
            attribute = rng.choice(list(facts[name]))
            facts[name][attribute] = next(asked_values)
            test.append({"question": f"{name} {attribute}", "answer": facts[name][attribute]})
        train = [
            {"question": f"{name} {attribute}", "answer": value}
            for name in TRAIN_NAMES
            for attribute, value in facts[name].items()
        ]
        for link in LINKS:  # a ring through all entities: each is named by exactly one other
            ring = rng.sample(names, len(names))
            for name, linked in zip(ring, [*ring[1:], ring[0]]):
                facts[name][link] = linked
        self.corpus = Dataset.from_list(
            [{"title": name, "text": passage_text(name, list(facts[name].items()), rng)} for name in names]
        )
        self.train_questions, self.test_questions = Dataset.from_list(train), Dataset.from_list(test)
        self.seed = seed

    def train_tasks(self, n):
        """Tasks of `n` objectives about the train entities."""
        return compose(self.train_questions, n, self.seed)

    def test_tasks(self, n, count):
        """`count` tasks of `n` objectives about held-out entities; the questions are shuffled again for every round."""
        rounds = []
        while sum(map(len, rounds)) < count:
            rounds.append(compose(self.test_questions, n, 1000 * (self.seed + 1) + len(rounds)))
        return concatenate_datasets(rounds).select(range(count))


def compose(questions, n, seed):
    """[`compose_objectives`] without semicolons: a question is two words, so none is needed to tell them apart."""
    tasks = compose_objectives(questions, n=n, seed=seed)
    return tasks.map(lambda row: {"prompt": " ".join(row["questions"])}, load_from_cache_file=False)


def passage_text(name, facts, rng):
    """Facts of one entity, `(attribute, value)`, in random order."""
    return " ".join(f"{name} {attribute} {value}" for attribute, value in rng.sample(facts, len(facts)))
