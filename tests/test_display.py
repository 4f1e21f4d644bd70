"""What is printed of an episode: where the tokens of each context came from."""

from __future__ import annotations

from rich.console import Console

from mem1_trl import Trajectory, Turn
from mem1_trl.display import print_trajectory

PROMPT = tuple(range(10))


def read(context: tuple[int, ...], number: int) -> Turn:
    """Turn `number` writes 4 tokens and observes 6, which occur nowhere else."""
    written, seen = turn_ids(number)
    return Turn(PROMPT + context, written, text=f"turn {number}", observation="seen", observation_tokens=len(seen))


def turn_ids(number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    first = 100 * number
    return tuple(range(first, first + 4)), tuple(range(first + 10, first + 16))


def test_what_an_external_memory_puts_back_is_not_kept_and_nothing_is_forgotten_twice():
    notes = tuple(range(900, 930))  # longer than all that was dropped
    one, two = (sum(turn_ids(number), ()) for number in (1, 2))
    turns = [read((), 1), read(one, 2), read(notes + two, 3)]
    console = Console(record=True, width=120, force_terminal=False)
    print_trajectory(Trajectory(turns), console=console, prompt="task")
    text = console.export_text()
    assert "turn 2 · reads 20 tokens: prompt 10 + kept 10, forgotten 0" in text
    assert "turn 3 · reads 50 tokens: prompt 10 + kept 10 + 30 from elsewhere, forgotten 10" in text
