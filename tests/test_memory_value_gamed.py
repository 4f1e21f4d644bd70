"""How the reward for what states are worth can be had without a memory that helps: two policies that learn to."""

from __future__ import annotations

import math

import torch
from support.helpers import tiny_model, tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, ScriptedGenerator

from mem1_trl import Trajectory
from mem1_trl.environment_runtime.actions import ActionSet
from mem1_trl.rollout.episode import Episode
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.turn_loop import Rollout
from mem1_trl.update.memory_value import memory_values

TOKENIZER = tiny_tokenizer()
SYNTAX = SHORT.syntax(TOKENIZER)


def play(*texts: str) -> Trajectory:
    environment = LookupEnvironment()
    environment.reset()
    episode = Episode(ids("q?"), environment, ActionSet(environment, SHORT))
    settings = AgentSettings(max_turns=6, max_observation_length=80)
    return Rollout(TOKENIZER, SHORT, settings, ScriptedGenerator(TOKENIZER, [[t] for t in texts])).run([episode])[0]


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def likelihood(model, context: list[int], completion: list[int]) -> torch.Tensor:
    """Log-prob of a completion by the plain model, with its gradient."""
    row = torch.tensor([[*context, *completion]])
    scores = torch.log_softmax(model(input_ids=row).logits[0, len(context) - 1 : -1], -1)
    return scores.gather(1, row[0, len(context) :, None]).sum()


def learn(model, loss, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def test_forgetting_without_the_state_looks_like_a_state_that_is_worth_more():
    """Gamed: the value is a difference. The policy unlearns the answer where the state is missing, and has no better one where it is not."""
    model = tiny_model("llama")
    trajectory = play("<think>42</think><search>a</search>", "<think>42</think><answer>42</answer>")
    read = trajectory.turns[1]
    with_state = [*read.prompt_ids, *ids("<answer>")]
    text = TOKENIZER.decode(read.prompt_ids)
    blank = ids(text.replace("<think>42</think>", "<think></think>", 1) + "<answer>")

    def value() -> float:
        return memory_values(model, [trajectory], SYNTAX, [["42"]])[0][0].answer

    before, honest = value(), float(likelihood(model, with_state, ids("42")).detach())
    assert abs(before - (honest - float(likelihood(model, blank, ids("42")).detach()))) < 1e-4

    def loss() -> torch.Tensor:
        missing = likelihood(model, blank, ids("42")) - (honest - before - 4.0)
        return missing**2 + (likelihood(model, with_state, ids("42")) - honest) ** 2

    learn(model, loss, 60)
    assert value() > before + 3.0
    assert float(likelihood(model, with_state, ids("42")).detach()) < honest + 0.5


def test_announcing_the_next_action_is_worth_as_much_as_a_memory():
    """Gamed, without answers: states name the search that comes next, whatever it is; none holds anything that was found."""
    model = tiny_model("llama")
    episodes = [
        play(f"<think>{one}</think><search>a</search>", f"<think></think><search>{one}</search>", "<answer>1</answer>")
        for one in "uvwx"
    ]
    before = [values[0].next_action for values in memory_values(model, episodes, SYNTAX)]

    def loss() -> torch.Tensor:
        found = [
            likelihood(model, list(one.turns[1].prompt_ids), list(one.turns[1].completion_ids)) for one in episodes
        ]
        return -torch.stack(found).sum()

    learn(model, loss, 120)
    after = [values[0].next_action for values in memory_values(model, episodes, SYNTAX)]
    # Which of four comes next is worth ln 4 nats on average to whoever cannot read it, if it knows the rest
    assert sum(after) / 4 > max(0.5 * math.log(4), sum(before) / 4 + 0.3)
    assert all("7" not in (turn.state or "") for one in episodes for turn in one.turns)  # what the searches found
