"""
Plays tasks of the train split as they should be played; what it writes is what the supervised start learns.

It stands where a server would (`Mem1Agent(client=...)`), and copies only what its turn reads:

    <think>1: ?; 2: ?</think><search>currency code of Afghanistan</search>
    <think>1: AFN; 2: ?</think><search>discovery place of Chlorine</search>
    <think>1: AFN; 2: Sweden, ?</think><search>currency code of Sweden</search>
    <think>1: AFN; 2: Sweden, SEK, so SEK</think><answer>AFN; SEK</answer>

The state lists what is open, so that it can be told from the state alone whether the time for an answer has come.
"""

import random
import re
from types import SimpleNamespace

from tasks import COMPARED, PROTOCOL, limits, numbered, plans, tasks

from mem1_trl import Mem1Agent

LAST = 8


def turns_of(questions, plan_of, first=1):
    """The turns of a task whose questions are numbered from `first` on, in order."""
    turns, state = [], ["?"] * len(questions)
    for place, question in enumerate(questions):
        answer, searches = plan_of[question]
        compared = any(question.startswith(text.split("{")[0]) for text, _ in COMPARED.values())
        read = []
        for query, entity, value in searches:
            turns.append(f"<think>{_listed(state, first)}</think><search>{query}</search>")
            # How an earlier answer was found is shown once
            state[:place] = [plan_of[earlier][0] for earlier in questions[:place]]
            read.append(f"{entity} {value}" if compared else value)
            left = len(searches) - len(read)
            state[place] = ", ".join([*read, *(["?"] if left else [f"so {answer}"] if len(read) > 1 else [])])
    answers = "; ".join(plan_of[question][0] for question in questions)
    return [*turns, f"<think>{_listed(state, first)}</think><answer>{answers}</answer>"]


def _listed(state, first):
    return "; ".join(f"{number}: {known}" for number, known in enumerate(state, first))


class Demonstrator:
    """A client that answers with the turn that follows the last one of the conversation."""

    def __init__(self, plan_of):
        self.plan_of = plan_of
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, messages, **kwargs):
        read = "\n".join(message["content"] for message in messages)
        numbers, questions = zip(*re.findall(r"^(\d+)\. (.*\?)$", read, re.MULTILINE))
        turns = turns_of(questions, self.plan_of, int(numbers[0]))
        played = [number for number, turn in enumerate(turns, 1) if turn in read]
        text = turns[max(played, default=0)]
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text), finish_reason="stop")])


def demonstrator(tokenizer, split="train", context="mem1", most=2):
    """An agent that demonstrates, in the tokens of the model that learns."""
    client = Demonstrator(plans(split))
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
    Tasks of one and of two objectives, alternating.

    Their questions are numbered from anywhere between 1 and `LAST` on. With 1 and 2 alone, what is learned is to stop after 2; so it
    is to look up which number follows.
    """
    one, two = tasks("train", 1, count // 2, seed), tasks("train", 2, count - count // 2, seed)
    rng = random.Random(seed)
    rows = [row for pair in zip(two, one) for row in pair]
    rows += list(two)[len(one) :]
    return [numbered(row, rng.randint(1, LAST + 1 - len(row["questions"]))) for row in rows]
