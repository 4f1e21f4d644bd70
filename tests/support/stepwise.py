"""An environment that rewards its turns, in a module that a process of its own can import."""

from __future__ import annotations

from support.trainer_helpers import LookupEnvironment


class Stepwise(LookupEnvironment):
    """Rewards each turn: a quarter for the first search, an eighth for the second, ...; half for the answer."""

    def reset(self, prompt=None, secret="7", **row):
        self.asked = 0
        return super().reset(prompt, secret)

    def get_turn_reward(self) -> float:
        self.asked += 1
        return 0.5 if self.given is not None else 0.5 ** (1 + len(self.queries))
