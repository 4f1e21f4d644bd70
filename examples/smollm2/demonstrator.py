"""
Plays tasks of the train split as they should be played; what it writes is what the supervised start learns.

It stands where a server would (`Mem1Agent(client=...)`), and copies only what its turn reads:

    <think>nothing yet</think><search>currency code of Afghanistan</search>
    <think>1: AFN</think><search>discovery place of Chlorine</search>
    <think>1: AFN; 2: Sweden</think><search>currency code of Sweden</search>
    <think>1: AFN; 2: Sweden, SEK, so SEK</think><answer>AFN; SEK</answer>
"""

import re
from types import SimpleNamespace

from tasks import COMPARED, PROTOCOL, limits, plans, tasks

from mem1_trl import Mem1Agent


def turns_of(questions, plan_of):
    """The turns of a task, in order."""
    done, turns = [], []
    state = "nothing yet"
    for number, question in enumerate(questions, 1):
        answer, searches = plan_of[question]
        read = []
        for query, entity, value in searches:
            turns.append(f"<think>{state}</think><search>{query}</search>")
            compared = any(question.startswith(text.split("{")[0]) for text, _ in COMPARED.values())
            read.append(f"{entity} {value}" if compared else value)
            so = f", so {answer}" if len(read) == len(searches) > 1 else ""
            state = "; ".join([*done, f"{number}: {', '.join(read)}{so}"])
        done.append(f"{number}: {answer}")
    answers = "; ".join(plan_of[question][0] for question in questions)
    return [*turns, f"<think>{state}</think><answer>{answers}</answer>"]


class Demonstrator:
    """A client that answers with the turn that follows the last one of the conversation."""

    def __init__(self, plan_of):
        self.plan_of = plan_of
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, messages, **kwargs):
        read = "\n".join(message["content"] for message in messages)
        turns = turns_of(re.findall(r"^\d+\. (.*\?)$", read, re.MULTILINE), self.plan_of)
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
    """Tasks of one and of two objectives, alternating."""
    one, two = tasks("train", 1, count // 2, seed), tasks("train", 2, count - count // 2, seed)
    rows = [row for pair in zip(two, one) for row in pair]
    return rows + list(two)[len(one) :]
