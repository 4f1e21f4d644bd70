"""What an agent cannot be given is refused in one sentence, before anything is played."""

from __future__ import annotations

import pytest
from support.helpers import tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent


@pytest.fixture
def agent(actor):
    return Mem1Agent(actor, tiny_tokenizer(), SHORT, max_turns=2, max_completion_length=8)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"prompt": "Buy two."}, "A task must be a text or a list of messages, got a dict"),
        (7, "got a int: a message is"),
        (["Buy two."], "got a list"),
        ([], "got no message"),
        ([{"role": "user", "content": "Buy two."}], "need a chat template, and this tokenizer has none"),
    ],
)
def test_a_task_of_another_kind(agent, task, words):
    for play in (agent.run, agent.start):
        with pytest.raises(ValueError, match=words):
            play(task, LookupEnvironment())


def test_a_class_in_place_of_an_environment(agent):
    words = r"must be an instance, got the class LookupEnvironment: pass LookupEnvironment\(\)"
    for play in (agent.run, agent.start):
        with pytest.raises(TypeError, match=words):
            play("q0?", LookupEnvironment)
