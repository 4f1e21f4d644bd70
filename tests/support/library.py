"""A small library to look facts up in, turns of an agent that does so, and a rule that asks for summaries in few words."""

from __future__ import annotations

import dataclasses

from mem1_trl.context_rules import Compact

TASK = "alps and loch?"
FACTS = {"alps": "alps are high", "loch": "loch is deep", "snow": "alps have snow", "bus": "a bus stops" * 9}
REQUEST = "Sum up in <{state}>."


class Library:
    """Knows a few facts."""

    def reset(self, **row): ...

    def search(self, query: str) -> str:
        """Look a fact up."""
        return FACTS[query]


@dataclasses.dataclass(frozen=True)
class ShortRequest(Compact):
    """With a short request, since the tiny tokenizer spends one token on a byte."""

    def next(self, past):
        return dataclasses.replace(super().next(past), request=REQUEST)


def turn(query: str) -> str:
    return f"<think>{query[0]}</think><search>{query}</search>"


def seen(text: str, hint: str) -> str:
    return f"<information>{hint}{FACTS.get(text, text)}</information>"


ANSWER = "<think>d</think><answer>x</answer>"
