"""What an environment, a program or a reward changes inside its row does not reach the next episode of that row."""

from __future__ import annotations

import json
import threading
import urllib.request

import numpy as np
import pytest
from support.helpers import tiny_model
from support.scripted_agent import scripted
from support.trainer_helpers import chat_tokenizer

from mem1_trl import Mem1Agent
from mem1_trl.demonstrations import collect_trajectories
from mem1_trl.environment_runtime.rows import own_copy
from mem1_trl.evaluation import evaluate_agent
from mem1_trl.gateway import GatewayEnvironment


class Shop:
    """A list of things to take, which it empties itself."""

    def reset(self, prompt, todo, **row):
        self.todo = todo

    def take(self, what: str) -> str:
        """
        Take a thing.

        Args:
            what: Its name.
        """
        if what in self.todo:
            self.todo.remove(what)
        return "ok"

    def get_reward(self):
        return float(not self.todo)


@pytest.fixture
def agent_that():
    tokenizer, model = chat_tokenizer(), tiny_model()

    def writes(*texts):
        return scripted(Mem1Agent(model, tokenizer, max_turns=4, max_completion_length=60), tokenizer, list(texts))

    return writes


def rows():
    return [{"prompt": "q", "todo": ["a"]}]


TAKES, DOES_NOTHING = ("<take>a</take>", "<answer>x</answer>"), ("<answer>x</answer>",)


def test_the_second_evaluation_of_a_list_of_rows_plays_the_same_tasks(agent_that):
    given = rows()
    rewards = [
        evaluate_agent(agent_that(*texts), given, Shop).trajectories[0].reward for texts in (TAKES, DOES_NOTHING)
    ]
    assert rewards == [1.0, 0.0] and given == rows()


def test_samples_of_a_row_begin_alike_and_their_file_can_be_continued(agent_that, tmp_path):
    seen, path = [], tmp_path / "episodes.jsonl"

    class Watched(Shop):
        def reset(self, prompt, todo, **row):
            seen.append(list(todo))
            super().reset(prompt, todo, **row)

    def reward(trajectory, row):
        row["todo"].append("b")
        return 1.0

    given = rows()
    for samples in (2, 3):
        collect_trajectories(
            agent_that(*TAKES * samples),
            given,
            Watched,
            path,
            samples=samples,
            batch_size=1,
            reward=reward,
            disable_tqdm=True,
        )
    assert seen == [["a"]] * 3 and given == rows()


def test_an_episode_is_saved_with_the_row_that_it_was_given(agent_that, tmp_path):
    (row,) = rows()
    agent = agent_that(*TAKES)
    episode = agent.start(row["prompt"], Shop(), todo=row["todo"])
    episode.run()
    episode.save(tmp_path / "episode.json")
    assert episode.row["todo"] == ["a"] == row["todo"]
    again = agent.load(tmp_path / "episode.json", Shop())
    assert again.answer == "x"


def test_a_program_and_its_reward_have_a_row_each(agent_that):
    def program(row, base_url):
        row["todo"].clear()
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": row["prompt"]}]}).encode()
        request = urllib.request.Request(f"{base_url}/chat/completions", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=100).close()
        return 0.0

    def reward(result, row):
        return float(len(row["todo"]))

    given = rows()
    environments = [GatewayEnvironment(program, reward=reward)]
    (played,) = agent_that("x").run_batch(given, environments)
    assert played.reward == 1.0 and given == rows()


def test_what_is_no_container_stays_the_same_object():
    lock, array = threading.Lock(), np.zeros(2)
    row = {"a": [{"b": (1, [2])}], "lock": lock, "inside": [lock], "array": array, "set": {1}, "text": "t"}
    copied = own_copy(row)
    assert copied["a"] == row["a"] and copied["a"][0]["b"][1] is not row["a"][0]["b"][1]
    assert copied["lock"] is lock and copied["inside"][0] is lock and copied["inside"] is not row["inside"]
    assert copied["array"] is not array and copied["set"] is not row["set"]
