"""`mem1 serve` in a thread, and a client of it that is OpenAI's own."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from support.trainer_helpers import SHORT

from mem1_trl.serve import serve_agent

PLAIN = dataclasses.replace(SHORT, hint_template="", last_hint_template="")
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
SETTINGS = {"max_observation_length": 200, "conversational": False, "max_completion_length": 300, "max_turns": 3}


@contextlib.contextmanager
def served(agent: Any, limits: Any = None, key: str = "none", **backend: Any):
    """A client of a server of an agent."""
    import openai

    with (
        serve_agent(agent, limits=limits, **backend) as url,
        openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client,
    ):
        yield client


class Talk:
    """A client that sends its whole chat each time."""

    def __init__(self, client, **options):
        self.client, self.options, self.messages = client, options, []

    def say(self, text):
        self.messages.append({"role": "user", "content": text})
        return self.ask()

    def ask(self):
        answer = self.client.chat.completions.create(model="mem1", messages=self.messages, **self.options)
        self.messages.append(answer.choices[0].message.model_dump(exclude_none=True))
        return answer
