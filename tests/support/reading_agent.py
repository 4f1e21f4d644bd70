"""A `Mem1Agent` whose model is a function of the text it reads, in many threads at once."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from typing import Any

from mem1_trl import Mem1Agent
from mem1_trl.rollout.stopping import Completion


class ReadingModel:
    """
    Stands in the place of the model that threads share.

    Args:
        write (callable): Text that goes on after a text.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], str]):
        self.tokenizer = tokenizer
        self.write = write
        self.contexts: list[str] = []
        self.settings: list[Any] = []
        self.gate = threading.Event()
        """Between the first and the second token of each turn it is waited for."""
        self.gate.set()
        self.told = 0
        """Tokens that somebody listened to."""

    def __call__(
        self, prompts: list[list[int]], stops: Any, settings: Any, draws: Any = None, listeners: Any = None
    ) -> list[Completion]:
        found = []
        for prompt, listener in zip(prompts, listeners or [None] * len(prompts)):
            context = self.tokenizer.decode(prompt)
            self.contexts.append(context)
            self.settings.append(settings)
            ids = self.tokenizer(self.write(context), add_special_tokens=False)["input_ids"]
            ended = len(ids) <= settings.max_completion_length
            ids = ids[: settings.max_completion_length]
            error = None
            for count in range(1, len(ids) + 1) if listener is not None else ():
                self.told += 1
                if not listener.read_ids(ids[:count]):
                    error = "stopped"
                    break
                if not self.gate.is_set():
                    self.gate.wait(0.02)
            found.append(Completion(() if error else tuple(ids), None, ended, error=error))
        return found

    def playing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def remember(context: str) -> str:
    """
    Keeps in its state all words that a person said, and answers with them; says `tool WORD` by a call of `search`, and adds what that
    returned.
    """
    state = re.findall(r"<think>(.*?)</think>", context)
    said = re.sub(r"</?\w+>", " ", context.rpartition("</answer>")[2].rpartition("</search>")[2] or context).split()
    known = " ".join([*([state[-1]] if state else []), *said])
    if said[:1] == ["tool"]:
        return f"<think>{known}</think><search>{said[1]}</search>"
    return f"<think>{known}</think><answer>{known}</answer>"


def reading(agent: Mem1Agent, write: Callable[[str], str] = remember) -> ReadingModel:
    """Let a function be the model of an agent."""
    model = ReadingModel(agent.tokenizer, write)
    agent._shared = model
    return model
