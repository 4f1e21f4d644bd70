"""
A world made for one question: does reinforcement learning teach an agent what to keep?

An agent reads passages one after the other and has room for one row of each, or one row for each slot. Which rows it will need
is said by one word, the kind:

    / red .                                      the task: the kind that will be asked for
    1 blue kiren 1 red bamiko 1 gold musol       a passage: slot, kind, value
    <think> red ; 1 red bamiko </think>          the state: the kind, and a row for each slot
    <answer> 1 red bamiko 2 red loren </answer>  the answer: the right row of each slot, and nothing else

Levels:

| level | what is to be decided |
|---|---|
| `choose` | which row of each passage to keep |
| `evict` | whether to keep the row of a slot or to take the one that the passage offers instead |
| `cue` | as `choose`, but the kind is marked among others in the first observation, which is gone when the passages come |

A fourth level is for training only: in `carry` the marked kind stands alone in the first observation, so that it has to be carried and not to be
found.

Kinds, values and their places are drawn for every task. Eight kinds are never asked for in reinforcement (`HELD_OUT`). The supervised
start reads them, and is taught to find the row of any kind; what it is not taught is to keep that row.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `lessons`, shared with the other examples

from datasets import Dataset
from lessons import word_tokenizer

from mem1_trl import Mem1Protocol

LEVELS = ("choose", "evict", "cue")
KINDS = [
    "red",
    "blue",
    "green",
    "white",
    "black",
    "gold",
    "pink",
    "gray",
    "brown",
    "lime",
    "teal",
    "navy",
    "plum",
    "rose",
    "sand",
    "rust",
    "mint",
    "wine",
    "jade",
    "coal",
    "cyan",
    "ruby",
    "sage",
    "moss",
    "amber",
    "azure",
    "beige",
    "coral",
    "cream",
    "denim",
    "ebony",
    "fawn",
    "flax",
    "hazel",
    "indigo",
    "ivory",
    "khaki",
    "lemon",
    "lilac",
    "linen",
    "mauve",
    "ochre",
    "olive",
    "onyx",
    "opal",
    "pearl",
    "peach",
    "pewter",
    "quartz",
    "saffron",
    "sepia",
    "silver",
    "tan",
    "taupe",
    "umber",
    "violet",
]
ASKED, HELD_OUT = KINDS[:48], KINDS[48:]
VALUES = [
    a + b
    for a in ("gor", "pel", "sin", "fa", "ju", "hol", "wet", "ba", "lo", "ki")
    for b in ("an", "ix", "ob", "ud", "es", "ay")
]
LONGEST = 6  # passages of a task
SLOTS = [str(number) for number in range(1, LONGEST + 1)]
EVICTED_SLOTS = 3
KINDS_OFFERED = 4  # rows of a passage of `choose` and `cue`
WORDS = ["/", ".", ";", ",", "!", "?", "go", "more", "end", "..."]
TAGS = [f"<{slash}{name}>" for name in ("think", "search", "information", "answer") for slash in ("", "/")]
PROTOCOL = Mem1Protocol(
    action_tags={"search": "search"},
    instructions="/ {prompt} .",
    observation_template=" <{tag}> {observation} </{tag}> ",
    truncation_marker=" ...",
)


def build_tokenizer():
    """One token per word, mark and tag; text comes back with single spaces."""
    return word_tokenizer([*WORDS, *SLOTS, *KINDS, *VALUES], TAGS)


@dataclass(frozen=True)
class Task:
    """
    One task, before it is written down.

    Attributes:
        level: One of `LEVELS`, or `carry`.
        kind: The kind that is asked for.
        cue: Kinds of the first observation, in order; empty if the prompt names the kind.
        passages: For each passage its rows `(slot, kind, value)`, in order.
    """

    level: str
    kind: str
    cue: tuple
    passages: tuple

    @property
    def topic(self):
        """The word of the prompt."""
        return "go" if self.cue else self.kind

    @property
    def wanted(self):
        """The rows of the right answer, by slot."""
        rows = {row for passage in self.passages for row in passage if row[1] == self.kind}
        return sorted(rows, key=lambda row: int(row[0]))

    @property
    def observations(self):
        """Lists of words."""
        shown = [[word for row in passage for word in row] for passage in self.passages]
        if self.cue:
            shown.insert(0, [word for kind in self.cue for word in ("!" if kind == self.kind else ",", kind)])
        shown[-1] = [*shown[-1], "end"]
        return shown

    def row(self):
        """The task as a row of a data set."""
        return {
            "prompt": self.topic,
            "observations": [" ".join(words) for words in self.observations],
            "wanted": [" ".join(row) for row in self.wanted],
            "kind": self.kind,
            "level": self.level,
        }


def draw_task(rng, level, passages, asked=KINDS, slots=EVICTED_SLOTS, beside=KINDS):
    """
    A task of some passages.

    Args:
        asked: Kinds of which one is asked for.
        slots: Slots of a task of the level `evict`.
        beside: Kinds that may stand beside it.
    """
    kind = rng.choice(asked)
    count = passages if level == "evict" else KINDS_OFFERED
    kinds = [kind, *rng.sample([other for other in beside if other != kind], count - 1)]
    names = sorted(rng.sample(SLOTS, slots if level == "evict" else passages), key=int)
    if level == "evict":  # over the passages each slot is offered each kind once
        orders = [rng.sample(kinds, count) for _ in names]
        rows = [[(slot, order[at]) for slot, order in zip(names, orders)] for at in range(passages)]
    else:
        rows = [[(slot, other) for other in rng.sample(kinds, count)] for slot in names]
    values = iter(rng.sample(VALUES, sum(map(len, rows))))
    shown = tuple(tuple((*row, next(values)) for row in passage) for passage in rows)
    cue = (kind,) if level == "carry" else tuple(rng.sample(kinds, count)) if level == "cue" else ()
    return Task(level, kind, cue, shown)


def tasks(level, count, passages, seed, asked=ASKED):
    """A data set of tasks, always the same for the same arguments."""
    rng = random.Random(f"{level} {passages} {seed} {' '.join(asked)}")
    return Dataset.from_list([draw_task(rng, level, passages, asked).row() for _ in range(count)])


def rows_of(text):
    """The rows of a text, in order."""
    words = (text or "").split()
    return [" ".join(words[i : i + 3]) for i in range(0, len(words), 3)]


def right_rows(text, wanted):
    """How many rows of a text are right, if it has as many as it should; else 0."""
    rows = rows_of(text)
    return sum(a == b for a, b in zip(rows, wanted)) if len(rows) == len(wanted) else 0


class Passages:
    """Shows the observations of a task one after the other; the reward is the share of slots that are answered right."""

    def reset(self, prompt, observations, wanted, **row):
        self.left, self.wanted = list(observations), list(wanted)
        self.done, self.score = False, 0.0

    def search(self, query: str) -> str:
        """
        Show the next passage.

        Args:
            query: Anything.

        Returns:
            The passage.
        """
        return self.left.pop(0) if self.left else "."

    def answer(self, text: str) -> str:
        """
        Answer.

        Args:
            text: A row for each slot.

        Returns:
            Nothing of use.
        """
        self.score, self.done = right_rows(text, self.wanted) / len(self.wanted), True
        return "."

    def get_reward(self) -> float:
        return self.score
