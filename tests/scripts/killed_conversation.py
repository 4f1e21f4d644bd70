"""
Talk to an agent, and die by SIGKILL after a turn.

`killed_conversation.py MODEL FILE TURNS` goes on with the episode in FILE, or begins one, and saves it after each turn. It dies when the
episode has TURNS turns; with TURNS 0 it plays to the end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.trainer_helpers import SHORT, LookupEnvironment, chat_tokenizer
from transformers import AutoModelForCausalLM

from mem1_trl import Mem1Agent

MESSAGES = ("0", "and 1?", "2")


def main(model: str, file: str, turns: int) -> None:
    settings = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 4}
    agent = Mem1Agent(AutoModelForCausalLM.from_pretrained(model).eval(), chat_tokenizer(), SHORT, **settings)
    if Path(file).exists():
        episode = agent.load(file, LookupEnvironment())
    else:
        episode = agent.start("abq3?", LookupEnvironment(), secret="2")
    while True:
        for _ in episode.stream():
            episode.save(file)
            if len(episode.trajectory.turns) == turns:
                os.kill(os.getpid(), signal.SIGKILL)
        sent = sum(turn.action == "answer" for turn in episode.trajectory.turns) - 1
        if sent == len(MESSAGES):
            return
        episode.add_message(MESSAGES[sent])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
