"""
Plays tasks of the train split in the right form, but keeps any fact; what is kept is mostly left out of what the supervised start learns.

It stands where a server would (`Mem1Agent(client=...)`). It searches what is asked for and finds the sentence with the answer, and then keeps *any
fact of that sentence*, whether it is asked for or not:

    <think>next 1</think><search>currency code of Afghanistan</search>
    <think>1: 93; next 2</think><search>chemical symbol of Chlorine</search>
    <think>1: 93; 2: Cl</think><answer>93; Cl</answer>

[`mostly_without_kept`] takes the loss off the tokens of what a turn keeps, `93` in the second line and `Cl` in the third, in all but every third demonstration. So the start
learns to search, to carry and to answer, and that facts are kept, but not which: that is left to reinforcement. With no loss on them at all it
kept the name of what is asked about, and 0 to 2 of 100 sampled answers were right, too few to begin from. The state lists what is open, so that it
can be told from the state alone whether the time for an answer has come; after a number stands only what is known, since a mark
for what is open would be learned as something to keep. With `knows=True` it always keeps the
fact that is asked for; training on all of such demonstrations shows what supervised training can reach when they are available.
"""

import random
import re
from types import SimpleNamespace

from tasks import KNOWN, PROTOCOL, SEPARATOR, limits, numbered, plans, tasks

from mem1_trl import Mem1Agent

MOST_KNOWN = 6
ONE_IN = 4
SHOWN_IN = 3
"""In every third demonstration what is kept is learned, too: any fact, as it is written."""


def turns_of(questions, plan_of, known=(), knows=False):
    """The turns of a task whose questions are numbered on from the facts that are `known` already, in order."""
    turns, state = [], list(known)
    last = len(known) + len(questions)
    for question in questions:
        answer, query, facts = plan_of[question]
        turns.append(f"<think>{listed(state, last)}</think><search>{query}</search>")
        state.append(answer if knows else random.Random(question).choice(facts))
    return [*turns, f"<think>{listed(state, last)}</think><answer>{SEPARATOR.join(state)}</answer>"]


def listed(known, last):
    """The state: what is known under its number, and which number of up to `last` is next."""
    items = [f"{number}: {fact}" for number, fact in enumerate(known, 1)]
    return SEPARATOR.join(items if len(known) == last else [*items, f"next {len(known) + 1}"])


def kept_by(turn, before):
    """`(begin, end)` in the text of a demonstrated turn of the one fact that it keeps and the state `before` did not hold."""
    (item,) = (new for new in turn.state.split(SEPARATOR) if ": " in new and new not in before.split(SEPARATOR))
    end = turn.text.index(item) + len(item)
    return end - len(item.split(":", 1)[1]), end  # with the space, which tells numbers from words


def mostly_without_kept(dataset, trajectories, tokenizer):
    """Rows of [`mem1_trl.demonstrations.demonstration_dataset`]; without loss on what is kept for the first time, in all but every third episode."""

    def mask(row):
        if row["turn"] == 0 or row["episode"] % SHOWN_IN == 0:
            return row
        before, turn = trajectories[row["episode"]].turns[row["turn"] - 1 : row["turn"] + 1]
        begin, end = kept_by(turn, before.state)
        encoded = tokenizer(turn.text, add_special_tokens=False, return_offsets_mapping=True)
        labels = list(row["labels"])
        for place, (left, right) in enumerate(encoded["offset_mapping"], len(turn.prompt_ids)):
            if left < end and begin < right:
                labels[place] = -100
        return {"labels": labels}

    return dataset.map(mask)


class Demonstrator:
    """A client that answers with the turn that follows the last one of the conversation."""

    def __init__(self, plan_of, knows=False):
        self.plan_of, self.knows = plan_of, knows
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, messages, **kwargs):
        read = "\n".join(message["content"] for message in messages)
        questions = re.findall(r"^\d+\. (.*\?)$", read, re.MULTILINE)
        known = re.findall(rf"^{KNOWN}(.*)$", read, re.MULTILINE)
        known = [item.split(": ", 1)[1] for item in known[0].split(SEPARATOR)] if known else []
        turns = turns_of(questions, self.plan_of, known, self.knows)
        played = [number for number, turn in enumerate(turns, 1) if turn in read]
        text = turns[max(played, default=0)]
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text), finish_reason="stop")])


def demonstrator(tokenizer, split="train", context="mem1", most=8, knows=False):
    """An agent that demonstrates, in the tokens of the model that learns."""
    client = Demonstrator(plans(split), knows)
    return Mem1Agent(
        "demonstrator",
        tokenizer,
        PROTOCOL,
        client=client,
        backend="chat",
        context=context,
        batch_size=16,
        **limits(most),
    )


def lessons(seed, count):
    """
    Tasks of two objectives, and every `ONE_IN`th of one: to go on after the first search is harder to learn than to answer after it.

    Up to `MOST_KNOWN` other facts are known in them from the beginning, and have to be carried and answered with the rest. Without them every
    state holds at most two facts, and what is learned is to stop at two; so it is to look up whether a question with the next number follows.
    """
    one = iter(tasks("train", 1, -(-count // ONE_IN), seed))
    two = iter(tasks("train", 2, count, seed))
    rng = random.Random(seed)
    facts = sorted({fact for *_, facts in plans("train").values() for fact in facts})
    rows = [next(two if place % ONE_IN else one) for place in range(count)]
    return [numbered(row, rng.sample(facts, rng.choice(range(MOST_KNOWN + 1)))) for row in rows]
