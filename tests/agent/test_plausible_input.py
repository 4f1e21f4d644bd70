"""What callers plausibly pass, and environments plausibly do, at the ends of an episode: nothing is lost, and nothing is silent."""

from __future__ import annotations

import asyncio
import functools
import re

import numpy as np
import pytest
from datasets import Dataset
from support.scripted_agent import scripted

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason
from mem1_trl.curriculum import compose_curriculum
from mem1_trl.environment_runtime.actions import ActionSet
from mem1_trl.environment_runtime.tools import environment_of
from mem1_trl.evaluation import evaluate_agent
from mem1_trl.tasks import sample_objectives

SEARCH, ANSWER = "<think>s</think><search>tea</search>", "<think>s</think><answer>Paris</answer>"
SCHEMA = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}


def search(query: str) -> str:
    """Search."""
    return f"found {query}"


class Library:
    """Knows its row."""

    def reset(self, prompt=None, **row):
        self.row = row

    def search(self, query: str) -> str:
        """Search."""
        return "found"


def agent_that_says(actor, tokenizer, *texts, **settings):
    given = {"max_completion_length": 60, "max_observation_length": 200, "max_turns": 3, **settings}
    return scripted(Mem1Agent(actor, tokenizer, Mem1Protocol(), **given), tokenizer, texts)


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("batch_size", 2.5), ("batch_size", "8"), ("max_retries", -1)]
)
def test_numbers_of_an_agent_are_checked_when_it_is_made(actor, tokenizer, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least [01], got {value!r}"):
        Mem1Agent(actor, tokenizer, Mem1Protocol(), **{name: value})


@pytest.mark.parametrize("seed", [-1, 1.5, True, 2**63, "1", None])
def test_a_seed_is_a_whole_number(actor, tokenizer, seed):
    agent, rows = agent_that_says(actor, tokenizer, ANSWER, temperature=1.0), [{"prompt": "q"}]
    words = f"must be a whole number from 0 to {2**63 - 1}, got {seed!r}."
    with pytest.raises(ValueError, match=re.escape(f"A seed of `seeds` {words}")):
        agent.run_batch(rows, [Library()], seeds=[seed])
    with pytest.raises(ValueError, match=re.escape(f"seed {words}")):
        evaluate_agent(agent, [{"prompt": "q", "answers": [["a"]]}], Library, seed=seed)
    questions = Dataset.from_list([{"question": "q?", "answer": "a"}])
    with pytest.raises(ValueError, match=re.escape(f"seed {words}")):
        sample_objectives(questions, 1, 1, seed=seed)
    with pytest.raises(ValueError, match=re.escape(f"seed {words}")):
        compose_curriculum(questions, [(1, {1: 1.0})], seed=seed)


def test_seeds_may_be_those_of_numpy_and_of_an_iterator(actor, tokenizer):
    agent = Mem1Agent(actor, tokenizer, Mem1Protocol(), temperature=1.0, max_turns=2, max_completion_length=20)
    rows = [{"prompt": "q"}] * 2
    played = [
        agent.run_batch(rows, [Library(), Library()], seeds=seeds)
        for seeds in ([3, 4], np.array([3, 4]), iter((3, 4)))
    ]
    texts = [[turn.text for one in trajectories for turn in one.turns] for trajectories in played]
    assert texts[0] == texts[1] == texts[2] and texts[0][0]


def test_a_setting_that_is_unknown_is_named(actor, tokenizer):
    with pytest.raises(TypeError, match="An agent has no setting 'max_turn': did you mean 'max_turns'"):
        Mem1Agent(actor, tokenizer, max_turn=3)
    agent = agent_that_says(actor, tokenizer, ANSWER)
    with pytest.raises(TypeError, match="An agent has no setting 'temperatures': did you mean 'temperature'"):
        agent.start("q", Library(), options={"temperatures": 1.0})
    with pytest.raises(TypeError, match="An agent has no setting 'colour'; it has max_turns, max_completion_length, "):
        agent.start("q", Library(), options={"colour": 1.0})


def test_messages_and_results_are_what_they_are_called(actor, tokenizer):
    episode = agent_that_says(actor, tokenizer, ANSWER).start("q")
    with pytest.raises(TypeError, match="A message must be a text, got a NoneType"):
        episode.send(None)
    episode = agent_that_says(actor, tokenizer, SEARCH).start("q", schemas=[SCHEMA])
    episode.step()
    for results, kind in (("4", "str"), ({"a": 1}, "dict"), (4, "int")):  # a text of one letter for one call was taken
        with pytest.raises(TypeError, match=f"Results are a list, one for each call, got a {kind}"):
            episode.give(results)
    episode.give(["found"])
    assert "found" in episode.trajectory.turns[0].observation


def test_a_share_of_no_tokens_is_refused(actor, tokenizer):
    with pytest.raises(ValueError, match="top_p must be above 0, since no token would be left"):
        Mem1Agent(actor, tokenizer, Mem1Protocol(), temperature=1.0, top_p=0.0)


@pytest.mark.parametrize(("environments", "given"), [(Library, "the class"), (Library(), "an instance of")])
def test_environments_of_a_batch_are_a_list(actor, tokenizer, environments, given):
    agent = agent_that_says(actor, tokenizer, ANSWER)
    with pytest.raises(TypeError, match=rf"got {given} Library: pass \[Library\(\) for _ in rows\]"):
        agent.run_batch([{"prompt": "q"}], environments)


def test_a_state_that_could_not_be_set_again_is_refused_before_it_is_saved(actor, tokenizer, tmp_path):
    class Shop(Library):
        mem1_state = property(lambda self: {"cart": []})

    agent = agent_that_says(actor, tokenizer, SEARCH, ANSWER)
    episode = agent.start("q", Shop())
    episode.step()
    with pytest.raises(TypeError, match="mem1_state of Shop must have a setter"):
        episode.save(tmp_path / "episode.json")


@pytest.mark.parametrize("row", [{"options": ["A", "B"]}, {"options": {"temperature": 0.5}}, {"schemas": ["CREATE"]}])
def test_columns_of_a_row_may_have_any_names(actor, tokenizer, row):
    for play in ("run", "stream", "run_batch"):
        library, agent = Library(), agent_that_says(actor, tokenizer, ANSWER)
        if play == "run_batch":
            agent.run_batch([{"prompt": "q", **row}], [library])
        elif play == "stream":
            list(agent.stream("q", library, **row))
        else:
            assert agent.run("q", library, **row).answer == "Paris"
        assert library.row == row


@pytest.mark.parametrize(
    ("error", "reason", "reward"),
    [
        (RuntimeError("db is down"), StopReason.ERROR, None),
        (ConnectionError("no answer"), StopReason.ERROR, None),
        (
            ValueError("two answers, please"),
            StopReason.ANSWER,
            0.0,
        ),  # what the agent wrote is refused, and it has ended
    ],
)
def test_an_answer_that_the_environment_fails_to_take_is_no_wrong_answer(actor, tokenizer, error, reason, reward):
    class Broken(Library):
        def answer(self, text: str) -> str:
            """Answer."""
            raise error

        def get_reward(self):
            return 0.0

    agent = agent_that_says(actor, tokenizer, ANSWER, environment_retries=0)
    (played,) = agent.run_batch([{"prompt": "q"}], [Broken()], keep_failures=True)
    assert (played.stop_reason, played.reward) == (reason, reward)
    assert (played.error is None) == (reason is StopReason.ANSWER)
    assert played.error is None or str(error) in played.error


def plainly(function):
    """A decorator that knows nothing of coroutines."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapped


class Slow:
    async def search(self, query: str) -> str:
        """Search."""
        await asyncio.sleep(30)


class Decorated(Library):
    search = plainly(Slow.search)


@pytest.mark.parametrize("kind", ["bound", "decorated"])
def test_an_asynchronous_action_in_disguise_is_cancelled_and_the_episode_goes_on(actor, tokenizer, kind):
    agent = agent_that_says(actor, tokenizer, SEARCH, ANSWER, environment_timeout=0.5)
    if kind == "bound":
        played = agent.run("q", tools=[Slow().search])
    else:
        (played,) = agent.run_batch([{"prompt": "q"}], [Decorated()])
    assert played.answer == "Paris"
    assert "TimeoutError: no answer within 0.5 seconds" in played.turns[0].observation


@pytest.mark.parametrize("tools", [None, "others"])
def test_an_episode_goes_on_with_the_tools_that_it_had(actor, tokenizer, tmp_path, tools):
    def lookup(query: str) -> str:
        """Look up."""
        return "x"

    episode = agent_that_says(actor, tokenizer, SEARCH, ANSWER).start("q", tools=[search])
    episode.step()
    episode.save(tmp_path / "episode.json")
    agent = agent_that_says(actor, tokenizer, ANSWER)
    with pytest.raises(ValueError, match=r"must have the actions that it had, which were \['<search>query"):
        agent.load(tmp_path / "episode.json", tools=[lookup] if tools else None)
    assert agent.load(tmp_path / "episode.json", tools=[search]).run().answer == "Paris"


@pytest.mark.parametrize(
    ("result", "text"), [({"a": 1}, "{'a': 1}"), (42, "42"), (None, ""), (["a", "b"], "['a', 'b']")]
)
def test_results_that_are_given_are_shown_as_those_of_an_environment(actor, tokenizer, result, text):
    episode = agent_that_says(actor, tokenizer, SEARCH, ANSWER).start("q", schemas=[SCHEMA])
    episode.run()
    with pytest.raises(TypeError):
        episode.give([iter(())])
    assert len(episode.calls) == 1, "nothing has been changed"
    episode.give([result])
    assert text in episode.trajectory.turns[0].observation
    assert episode.run().answer == "Paris"


@pytest.mark.parametrize("schema", [SCHEMA["function"], {"function": {"description": "Search."}}, "search"])
def test_a_schema_of_another_form_is_one_sentence(actor, tokenizer, schema):
    with pytest.raises(ValueError, match=r"Each of `schemas` must be as OpenAI's API describes a tool"):
        agent_that_says(actor, tokenizer).start("q", schemas=[schema])


def test_a_tuple_that_lacks_its_comma_is_refused():
    with pytest.raises(ValueError, match=r"scratch_tags must be a tuple of names, got 'plan': write \('plan',\)"):
        Mem1Protocol(scratch_tags="plan")


def test_a_partial_is_offered_as_what_it_is_one_of():
    actions = ActionSet(environment_of([functools.partial(search)]), Mem1Protocol(), needs_reset=False)
    assert actions.describe() == ["<search>query</search>: Search."]
