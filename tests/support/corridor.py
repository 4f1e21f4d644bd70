"""A long world in text that tests play: a corridor of doors, each opened by the word that stands beside it."""

from __future__ import annotations

import random
import re

WORDS = ("amber", "birch", "cobalt", "dune", "ember", "flint", "garnet", "hazel", "iris", "juniper", "kelp", "linden")


class Corridor:
    """
    `length` doors; a door opens to its word, a wrong word costs nothing but the turn.

    Args:
        length (`int`): Number of doors.
    """

    def __init__(self, length: int = 60):
        self.length = length

    def begin(self, seed: int | None) -> str:
        self.words = [random.Random(f"{seed}.{door}").choice(WORDS) for door in range(self.length)]
        self.passed = 0
        return self.describe()

    def describe(self) -> str:
        if self.done:
            return "You are outside."
        return f"You stand before door {self.passed + 1} of {self.length}. On the wall you read: {self.words[self.passed]}."

    @property
    def done(self) -> bool:
        return self.passed == self.length

    def say(self, word: str) -> tuple[str, float]:
        """The text that follows, and the reward: an equal share for each door."""
        right = not self.done and word == self.words[self.passed]
        self.passed += right
        text = "The door opens. " if right else "Nothing happens. "
        return text + self.describe(), right / self.length


def read_the_wall(text: str) -> str:
    """What an agent does that knows nothing but the newest observation: the last word that stands on a wall in `text`."""
    return re.findall(r"you read: (\w+)\.", text)[-1]
