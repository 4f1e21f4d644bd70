"""
Plays tasks of the train split in the right form, but mostly keeps the wrong fact; this is what the supervised start learns.

It stands where a server would (`Mem1Agent(client=...)`). It searches what is asked for and finds the sentence with the answer, and then keeps *another
fact of that sentence* three times of four, and the one that is asked for once:

    <think>1: ?; 2: ?</think><search>currency code of Afghanistan</search>
    <think>1: 93; 2: ?</think><search>chemical symbol of Chlorine</search>
    <think>1: 93; 2: Cl</think><answer>93; Cl</answer>

So it shows how to search, to read, to copy, to carry and to answer, and not what to keep: that is left to reinforcement. The state lists what is
open, so that it can be told from the state alone whether the time for an answer has come. With `knows=True` it always keeps the
fact that is asked for; training on such demonstrations shows what supervised training can reach when they are available.
"""

import random
import re
from types import SimpleNamespace

from tasks import PROTOCOL, limits, numbered, plans, tasks

from mem1_trl import Mem1Agent

LAST = 8
ONE_IN = 4
RIGHT = 0.25
"""Share of demonstrated facts that are asked for. If they were drawn evenly, greedy decoding of the start would already keep most of the right ones."""


def turns_of(questions, plan_of, first=1, knows=False):
    """The turns of a task whose questions are numbered from `first` on, in order."""
    turns, state = [], ["?"] * len(questions)
    for place, question in enumerate(questions):
        answer, query, facts = plan_of[question]
        turns.append(f"<think>{_listed(state, first)}</think><search>{query}</search>")
        state[place] = answer if knows else kept_by_chance(question, answer, facts)
    return [*turns, f"<think>{_listed(state, first)}</think><answer>{'; '.join(state)}</answer>"]


def kept_by_chance(question, answer, facts):
    """What a demonstration keeps, always the same for a question."""
    rng = random.Random(question)
    return answer if rng.random() < RIGHT else rng.choice([fact for fact in facts if fact != answer])


def _listed(state, first):
    return "; ".join(f"{number}: {known}" for number, known in enumerate(state, first))


class Demonstrator:
    """A client that answers with the turn that follows the last one of the conversation."""

    def __init__(self, plan_of, knows=False):
        self.plan_of, self.knows = plan_of, knows
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, messages, **kwargs):
        read = "\n".join(message["content"] for message in messages)
        numbers, questions = zip(*re.findall(r"^(\d+)\. (.*\?)$", read, re.MULTILINE))
        turns = turns_of(questions, self.plan_of, int(numbers[0]), self.knows)
        played = [number for number, turn in enumerate(turns, 1) if turn in read]
        text = turns[max(played, default=0)]
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text), finish_reason="stop")])


def demonstrator(tokenizer, split="train", context="mem1", most=2, knows=False):
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

    Their questions are numbered from anywhere between 1 and `LAST` on. With 1 and 2 alone, what is learned is to stop after 2; so it
    is to look up which number follows.
    """
    one = iter(tasks("train", 1, -(-count // ONE_IN), seed))
    two = iter(tasks("train", 2, count, seed))
    rng = random.Random(seed)
    rows = [next(two if place % ONE_IN else one) for place in range(count)]
    return [numbered(row, rng.randint(1, LAST + 1 - len(row["questions"]))) for row in rows]
