"""Serves the corridor of the tests with OpenEnv's own server: `python openenv_corridor.py PORT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.corridor import Corridor


class Say(Action):
    word: str


class Seen(Observation):
    text: str


class CorridorServer(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.corridor = Corridor()
        self.corridor.begin(None)

    def reset(self, seed: int | None = None, episode_id: str | None = None, length: int = 60, **kwargs: Any) -> Seen:
        self.corridor = Corridor(length)
        return Seen(text=self.corridor.begin(seed))

    def step(self, action: Say, timeout_s: float | None = None, **kwargs: Any) -> Seen:
        text, reward = self.corridor.say(action.word)
        return Seen(text=text, reward=reward, done=self.corridor.done)

    @property
    def state(self) -> State:
        return State(step_count=self.corridor.passed)


if __name__ == "__main__":
    app = create_fastapi_app(CorridorServer, Say, Seen, max_concurrent_envs=3)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
