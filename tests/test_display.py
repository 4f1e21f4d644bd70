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


def test_codes_of_emojis_and_markup_stay_text():
    words = "blood group :a: or :o:, ratio 3:x:1 [red]"
    turn = Turn(PROMPT, (1,), text=f"write {words}", observation=f"see {words}")
    console = Console(record=True, width=120, force_terminal=True, color_system="truecolor")
    print_trajectory(Trajectory([turn], reward=0.5, answer=words), console=console, prompt=f"ask {words}")
    text = console.export_text(clear=False)
    for shown in (f"write {words}", f"see {words}", f"ask {words}", f"answer: {words} · ended by", "· reward 0.5"):
        assert shown in text
    assert f"\x1b[1manswer: {words}" in console.export_text(styles=True)
