"""A `Mem1Agent` whose model says what it is told."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from support.trainer_helpers import ScriptedGenerator

from mem1_trl import Mem1Agent


class _Scripted:
    """Stands in the place of the model that threads share."""

    def __init__(self, generator: ScriptedGenerator):
        self.generator = generator

    def __call__(self, prompts: list[list[int]], stops: list[list[str]], settings: Any, **more: Any) -> Any:
        return self.generator(prompts, stops)

    def playing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def scripted(agent: Mem1Agent, tokenizer: Any, texts: Sequence[str]) -> Mem1Agent:
    """The agent with a model that says `texts`, one for each turn."""
    agent._shared = _Scripted(ScriptedGenerator(tokenizer, [[text] for text in texts]))
    return agent
