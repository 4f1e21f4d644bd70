"""
Environments as users of `GRPOTrainer(environment_factory=...)` write them, none of them for this package.

The first ones have the shape of those in TRL's documentation and examples (an echo, a word game that raises when it is over, two
games in one class that a column chooses between); the others are what a newcomer may come up with.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal


class Echo:
    """State for the reward on the instance, nothing to reset to, no `get_reward`."""

    def __init__(self):
        self.reward = 0.0

    def reset(self, **kwargs) -> str | None:
        self.reward = 0.0
        return None

    def echo(self, message: str) -> str:
        """
        Echo the message back from the environment.

        Args:
            message: The message to echo

        Returns:
            The echoed message.
        """
        self.reward = len(message) / 10
        return message


class WordGame:
    """Says what it is in `reset`, and raises once it is over."""

    def reset(self, word: str = "crane", **kwargs) -> str | None:
        self.word, self.done, self.reward = word, False, 0.0
        return "Guess a word of five letters."

    def guess(self, guess: str) -> str:
        """
        Make a guess.

        Args:
            guess: A word of five letters.

        Returns:
            G, Y or X for each letter.
        """
        if self.done:
            raise ValueError("Game over.")
        if len(guess) != 5:
            raise ValueError("five letters, please")
        marks = ["G" if a == b else "Y" if a in self.word else "X" for a, b in zip(guess, self.word)]
        self.done = guess == self.word
        self.reward = marks.count("G") / 5
        return " ".join(marks)


class TwoGames:
    """A column of the dataset chooses the game; tools of the other one raise."""

    def __init__(self):
        self.active = None

    def reset(self, **kwargs) -> str | None:
        self.active = kwargs.get("env", "catch")
        self.place = 2
        return f"Playing {self.active}."

    def move(self, direction: Literal["left", "right"]) -> str:
        """
        Move the paddle.

        Args:
            direction: Either "left" or "right".
        """
        if self.active != "catch":
            raise ValueError("move is only available in catch")
        self.place += 1 if direction == "right" else -1
        return f"paddle at {self.place}"

    def stay(self) -> str:
        """Do nothing and let the ball fall one step."""
        return f"paddle at {self.place}"


class Counter:
    """The smallest one."""

    def reset(self, **kwargs):
        self.count = 0

    def increment(self, step: int = 1) -> int:
        """
        Count on.

        Args:
            step: How far.
        """
        self.count += step
        return self.count


class Calculator:
    """Two typed arguments, and an error that is Python's own."""

    def reset(self, prompt, **kwargs):
        self.results = []

    def divide(self, a: float, b: float) -> float:
        """
        Divide two numbers.

        Args:
            a: The dividend.
            b: The divisor.
        """
        self.results.append(a / b)
        return self.results[-1]

    def get_reward(self) -> float:
        return float(bool(self.results))


class AsyncLookup:
    """Asynchronous tool and reward."""

    def reset(self, key: str = "k", **kwargs):
        self.found = None
        self.table = {key: "value"}

    async def look_up(self, key: str) -> str:
        """
        Look a key up.

        Args:
            key: The key.
        """
        await asyncio.sleep(0)
        self.found = self.table[key]
        return self.found

    async def get_reward(self) -> float:
        return float(self.found is not None)


class Planner:
    """Lists and dictionaries as arguments."""

    def reset(self, **kwargs):
        self.plan: Any = None

    def plan_day(self, steps: list[str], hours: dict[str, float]) -> str:
        """
        Make a plan.

        Args:
            steps: What to do.
            hours: How long each step takes.
        """
        self.plan = (steps, hours)
        return f"{len(steps)} steps, {sum(hours.values()):g} hours"


class Catalogue:
    """An optional argument and a default."""

    def reset(self, **kwargs):
        self.calls: list[tuple] = []

    def find(self, name: str, limit: int | None = None, exact: bool = False) -> str:
        """
        Find entries.

        Args:
            name: What to find.
            limit: At most so many, or all.
            exact: Whether the whole name must match.
        """
        self.calls.append((name, limit, exact))
        return f"{name} limit={limit} exact={exact}"


class Quiet:
    """A base class with a tool, a property that must not be evaluated, and a private helper."""

    @property
    def status(self) -> str:
        raise RuntimeError("evaluated")

    def reset(self, **kwargs):
        self.log = []

    def wait(self) -> str:
        """Wait a moment."""
        return self._log("waited")

    def _log(self, text: str) -> str:
        self.log.append(text)
        return text


class Talkative(Quiet):
    """Inherits a tool and adds one."""

    def speak(self, text: str) -> str:
        """
        Say something.

        Args:
            text: What to say.
        """
        return self._log(f"said {text}")


class Messages:
    """Reads the task from the prompt, which is chat messages, as it stands in the dataset."""

    def reset(self, prompt: list[dict], **kwargs) -> str:
        self.task = prompt[-1]["content"]
        return f" (task of {len(self.task)} characters)"

    def repeat(self) -> str:
        """Repeat the task."""
        return self.task


PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Do it."}]

CASES: dict[str, tuple[Any, dict[str, Any], list[tuple[str, dict[str, Any], str]], Any]] = {
    # environment, row, calls with what each is answered (the last may end the episode), and the state afterwards
    "echo": (Echo, {}, [("echo", {"message": "Hello World!"}, "Hello World!")], {"reward": 1.2}),
    "word_game": (
        WordGame,
        {"word": "crane"},
        [
            ("guess", {"guess": "toolong"}, "Error: ValueError: five letters, please"),
            ("guess", {"guess": "crate"}, "G G G X G"),
            ("guess", {"guess": "crane"}, "G G G G G"),
        ],
        {"reward": 1.0, "done": True},
    ),
    "two_games": (
        TwoGames,
        {"env": "catch"},
        [
            ("move", {"direction": "right"}, "paddle at 3"),
            ("move", {"direction": "up"}, "'up' is not one of 'left', 'right'."),
            ("stay", {}, "paddle at 3"),
        ],
        {"place": 3},
    ),
    "counter": (Counter, {}, [("increment", {}, "1"), ("increment", {"step": 4}, "5")], {"count": 5}),
    "calculator": (
        Calculator,
        {},
        [
            ("divide", {"a": 1, "b": 4.0}, "0.25"),
            ("divide", {"a": "3", "b": "2"}, "1.5"),
            ("divide", {"a": 1, "b": 0}, "Error: ZeroDivisionError"),
            ("divide", {"a": 1}, "Error: The argument 'b' is missing."),
        ],
        {"results": [0.25, 1.5]},
    ),
    "async": (
        AsyncLookup,
        {"key": "k"},
        [("look_up", {"key": "nothing"}, "Error: KeyError"), ("look_up", {"key": "k"}, "value")],
        {"found": "value"},
    ),
    "planner": (
        Planner,
        {},
        [("plan_day", {"steps": ["wake", "code"], "hours": {"wake": 0.5, "code": 8}}, "2 steps, 8.5 hours")],
        {"plan": (["wake", "code"], {"wake": 0.5, "code": 8})},
    ),
    "catalogue": (
        Catalogue,
        {},
        [
            ("find", {"name": "tea"}, "tea limit=None exact=False"),
            ("find", {"name": "tea", "limit": 2, "exact": "true"}, "tea limit=2 exact=True"),
            ("find", {"name": "tea", "limit": None}, "tea limit=None exact=False"),
            ("find", {"limit": 2}, "Error: The argument 'name' is missing."),
        ],
        {"calls": [("tea", None, False), ("tea", 2, True), ("tea", None, False)]},
    ),
    "inherits": (
        Talkative,
        {},
        [("wait", {}, "waited"), ("speak", {"text": "hi there"}, "said hi there")],
        {"log": ["waited", "said hi there"]},
    ),
    "messages": (Messages, {}, [("repeat", {}, "Do it.")], {"task": "Do it."}),
}
