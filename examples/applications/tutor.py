"""
A tutor: finds out what a pupil does wrong in arithmetic, explains it until it is right, and reports the explanation that worked.

    python examples/applications/tutor.py                                   # a script plays, seconds
    python examples/applications/tutor.py --model Qwen/Qwen2.5-7B-Instruct  # a model plays

The pupil is simulated. Of each kind of exercise he may have a wrong idea, which goes away when it has been explained to him often
enough, and he never says so. The reward is the share of the kinds that he can do in the end and that are reported right.
"""

import random
import re

from application import run


def digits(a, b):
    """The digits of two numbers, place by place, the lowest first."""
    width = max(len(str(a)), len(str(b)))
    return list(zip(*(map(int, reversed(str(n).zfill(width))) for n in (a, b))))


WRONG_IDEAS = {  # what a pupil who has got it wrong does, and the exercises that show it
    "addition": ("+", lambda a, b: int("".join(str((x + y) % 10) for x, y in reversed(digits(a, b)))), "47 + 38"),
    "subtraction": ("-", lambda a, b: int("".join(str(abs(x - y)) for x, y in reversed(digits(a, b)))), "62 - 27"),
    "multiplication": ("*", lambda a, b: (a // 10) * b * 10 + (a % 10), "23 * 4"),
    "division": ("/", lambda a, b: int(str(a)[0]) // b * 10 ** (len(str(a)) - 1) + 1, "84 / 6"),
    "percentages": ("% of", lambda a, b: b - a, "20 % of 60"),
    "powers": ("^", lambda a, b: a * b, "3 ^ 4"),
}
RIGHT = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
    "% of": lambda a, b: a * b // 100,
    "^": lambda a, b: a**b,
}
EXERCISE = re.compile(r"\s*(\d{1,6})\s*(\+|-|\*|/|\^|% of)\s*(\d{1,6})\s*")


class Pupil:
    """A pupil who answers exercises and listens."""

    def reset(self, prompt, patience, **row):
        """`patience`: for each kind of exercise, how many explanations the pupil needs; 0 if he can do it."""
        self.needs, self.heard = patience, dict.fromkeys(patience, 0)
        self.report, self.done = "", False

    def ask(self, exercise: str) -> str:
        """Set an exercise such as `47 + 38`, `84 / 6`, `20 % of 60` or `3 ^ 4`."""
        read = EXERCISE.fullmatch(exercise)
        if not read:
            return "Pupil: I cannot read that."
        a, sign, b = int(read[1]), read[2], int(read[3])
        if (sign == "^" and b > 9) or (sign == "/" and b == 0):
            return "Pupil: That is too hard for me."
        kind = next(kind for kind, (its_sign, *_) in WRONG_IDEAS.items() if its_sign == sign)
        wrong = self.heard[kind] < self.needs[kind]
        return f"Pupil: {exercise.strip()} is {WRONG_IDEAS[kind][1](a, b) if wrong else RIGHT[sign](a, b)}."

    def explain(self, kind: str) -> str:
        """Explain a kind of exercise: addition, subtraction, multiplication, division, percentages or powers."""
        if kind not in self.heard:
            return f"Pupil: What is {kind}?"
        self.heard[kind] += 1
        return "Pupil: Aha."

    def answer(self, report: str) -> str:
        """End the lesson with a report, `kind: number of explanations it took; ...`."""
        self.report, self.done = report, True
        return "Thank you."

    def get_reward(self) -> float:
        """Share of the kinds of exercises that the pupil can do now and whose line in the report is right."""
        said = dict(part.strip().split(": ", 1) for part in self.report.split(";") if ": " in part)
        return sum(
            self.heard[kind] >= needed and said.get(kind) == str(self.heard[kind])
            for kind, needed in self.needs.items()
        ) / len(self.needs)


def pupils(count, seed=0):
    """Pupils with some wrong ideas, more or less stubborn."""
    rng = random.Random(seed)
    for _ in range(count):
        patience = {kind: rng.choice([0, 2, 4, 6]) for kind in WRONG_IDEAS}
        kinds = ", ".join(WRONG_IDEAS)
        yield {
            "prompt": f"Teach a pupil {kinds}. Ask until he is right, explaining as often as he needs; then report.\n",
            "patience": patience,
        }


def script(task, memory, action, observation):
    """One kind after the other: ask, explain if the answer is wrong, and count the explanations."""
    took = memory.get("explanations", {})
    todo = [kind for kind in WRONG_IDEAS if kind not in took or kind == memory.get("teaching")]
    if action and action[0] == "ask":
        a, sign, b = EXERCISE.fullmatch(action[1]).groups()
        if f"is {RIGHT[sign](int(a), int(b))}." in observation:
            took = {**took, todo[0]: took.get(todo[0], 0)}
            todo = todo[1:]
        else:
            took = {**took, todo[0]: took.get(todo[0], 0) + 1}
            return {"explanations": took, "teaching": todo[0]}, "explain", todo[0]
    if not todo:
        return {"explanations": took}, "answer", "; ".join(f"{kind}: {count}" for kind, count in took.items())
    return {"explanations": took, "teaching": todo[0]}, "ask", WRONG_IDEAS[todo[0]][2]


if __name__ == "__main__":
    run(__doc__, "tutor", list(pupils(4)), Pupil, script, max_turns=90)
