"""Threads that share an agent, and runs of thousands of episodes."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.trainer_helpers import SHORT, LookupEnvironment, ScriptedGenerator, chat_tokenizer, trained_model

from mem1_trl import Mem1Agent

from .outcome import Outcome, equal, holds

SETTINGS: dict[str, Any] = {
    "max_observation_length": 60,
    "conversational": False,
    "max_completion_length": 40,
    "max_turns": 4,
}
THREADS = 8
LEAST_GROWTH = 100_000
"""Bytes of a whole run below which memory does not count as growing."""


class Told(ScriptedGenerator):
    """A backend of an agent that says what it is told."""

    batch_size = 1

    def release(self) -> None: ...


def play(agent: Mem1Agent, number: int) -> Any:
    """One episode: token ids of its turns, and its answer."""
    trajectory = agent.run(f"{'ab' * (number % 3)}q{number % 8}?", LookupEnvironment(), secret=str(number % 3))
    return [(turn.prompt_ids, turn.completion_ids) for turn in trajectory.turns], trajectory.answer


def measure_threads(calls: int) -> Outcome:
    """Calls from eight threads at once; each holds if it plays what it plays alone."""
    tokenizer = chat_tokenizer()
    agent = Mem1Agent(trained_model(tokenizer), tokenizer, SHORT, **SETTINGS)
    alone = [play(agent, number) for number in range(24)]  # then the tasks come again
    outcome = Outcome()
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(play, agent, number) for number in range(calls)]
    for number, future in enumerate(futures):
        with outcome.case(f"call {number}"):
            equal(future.result(), alone[number % 24], "the episode")
    return outcome


def _resources() -> tuple[int, int, int]:
    """Bytes that Python holds, threads, and open files."""
    gc.collect()
    files = Path("/proc/self/fd")
    return (
        tracemalloc.get_traced_memory()[0],
        threading.active_count(),
        len(os.listdir(files)) if files.is_dir() else 0,
    )


def measure_long_run(episodes: int) -> Outcome:
    """Episodes of one agent, one after the other; memory, threads and files after a quarter of them and at the end."""
    tokenizer = chat_tokenizer()
    script = "<think>a</think><search>x</search>", "<think>b</think><answer>7</answer>"
    agent = Mem1Agent(trained_model(tokenizer, steps=1), tokenizer, SHORT, **SETTINGS)
    outcome = Outcome()
    settled = (0, 0, 0)
    tracemalloc.start()
    try:
        for number in range(episodes):
            agent.generate = Told(tokenizer, [[text] for text in script])
            with outcome.case(f"episode {number}"):
                trajectory = agent.run("q?", LookupEnvironment(), secret=str(number % 10))
                equal((len(trajectory.turns), trajectory.answer), (2, "7"), "the episode")
            if number == episodes // 4:
                settled = _resources()
        end = _resources()
    finally:
        tracemalloc.stop()
    growth = (end[0] - settled[0]) / (episodes - episodes // 4)
    with outcome.case("what is left"):
        holds(end[0] - settled[0] < LEAST_GROWTH, f"memory grows by {growth:.0f} bytes with each episode")
        equal(end[1:], settled[1:], "the number of threads and of open files")
    outcome.note = (
        f"{growth:.0f} bytes for each episode, {end[1] - settled[1]} threads, {end[2] - settled[2]} open files"
    )
    return outcome
