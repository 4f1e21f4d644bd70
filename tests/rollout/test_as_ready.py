"""Episodes that go on as soon as their own actions have returned: nobody waits, and what is sampled is what lockstep samples."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch
from support.trainer_helpers import SHORT, LookupEnvironment, ScriptedGenerator

from mem1_trl import Mem1Agent, StopReason
from mem1_trl.environment_runtime.actions import ActionSet
from mem1_trl.environment_runtime.calls import EnvironmentCaller
from mem1_trl.environment_runtime.faults import FaultSettings
from mem1_trl.rollout.episode import Episode
from mem1_trl.rollout.open_requests import OpenRequests
from mem1_trl.rollout.server_calls import ServerCalls
from mem1_trl.rollout.server_errors import ServerError
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.turn_loop import Rollout

SETTINGS = {"max_turns": 4, "max_observation_length": 40, "max_completion_length": 24, "conversational": False}
SEARCH = "<think>s</think><search>{name}</search>"


class Asked:
    """Answers a search by what the test says."""

    def __init__(self, answer):
        self.answer = answer

    def reset(self, **row): ...

    def search(self, query: str) -> str:
        """Search."""
        return self.answer(query)


def searches(call, index, prompt):
    return SEARCH.format(name=prompt[0])


def started(tokenizer, answers, prompts="abcdefgh"):
    environments = [Asked(answer) for answer in answers]
    return [
        Episode(tokenizer(f"{name}?")["input_ids"], one, ActionSet(one, SHORT))
        for name, one in zip(prompts, environments)
    ]


def rollout_of(tokenizer, generate, **kwargs):
    settings = AgentSettings(max_turns=3, max_observation_length=60)
    return Rollout(tokenizer, SHORT, settings, generate, **{"mode": "async", "batch_wait": 0.0, **kwargs})


def test_an_episode_does_not_wait_for_another(tokenizer):
    """The first action of one returns only after the other has played all its turns, which in lockstep would never happen."""
    all_turns, count = threading.Event(), 0

    def quick(query):
        nonlocal count
        count += 1
        if count == 3:
            all_turns.set()
        return "e"

    def slow(query):
        assert all_turns.wait(30)
        return "e"

    generator = ScriptedGenerator(tokenizer, searches)
    episodes = started(tokenizer, [slow, quick])
    trajectories = rollout_of(tokenizer, generator).run(episodes)
    assert [trajectory.stop_reason for trajectory in trajectories] == [StopReason.MAX_TURNS] * 2
    assert [len(trajectory.turns) for trajectory in trajectories] == [3, 3]
    assert [trajectory.turns[0].action_input for trajectory in trajectories] == ["a", "b"]


def test_those_that_are_about_to_be_ready_are_generated_together(tokenizer):
    together = threading.Barrier(3, timeout=30)

    def answer(query):
        together.wait()
        return "e"

    generator = ScriptedGenerator(tokenizer, searches)
    rollout_of(tokenizer, generator, batch_wait=30.0).run(started(tokenizer, [answer] * 3))
    assert [len(prompts) for prompts in generator.prompts] == [3, 3, 3]


def test_no_more_episodes_are_played_than_may_be(tokenizer):
    generator = ScriptedGenerator(tokenizer, searches)
    episodes = started(tokenizer, [lambda query: "e"] * 5)
    running = []
    rollout = rollout_of(tokenizer, generator, at_once=2, on_turn=lambda turn, left: running.append(len(left)))
    trajectories = rollout.run(episodes)
    assert [len(trajectory.turns) for trajectory in trajectories] == [3] * 5
    assert max(map(len, generator.prompts)) <= 2 and max(running) == 2


def test_time_limits_are_kept_while_the_model_generates(tokenizer):
    """The hanging action is given up during a generation that would wait for it forever."""
    given_up = threading.Event()
    caller = EnvironmentCaller(FaultSettings(timeout=0.2, retries=0))
    hangs = threading.Event()
    scripted = ScriptedGenerator(tokenizer, searches)
    episodes = started(tokenizer, [lambda query: hangs.wait(60), lambda query: "e"])

    def generate(prompts, stops):
        if len(scripted.prompts) == 1:  # the second call, of the quick episode alone
            for _ in range(6000):  # until the other action is given up, but not forever
                if caller.counts.timeouts or given_up.wait(0.01):
                    break
        return scripted(prompts, stops)

    slow, quick = rollout_of(tokenizer, generate, caller=caller).run(episodes)
    hangs.set()
    assert caller.counts.timeouts == 1 and caller.counts.errors == caller.counts.action_errors == 1
    assert slow.stop_reason is StopReason.ERROR and "no answer within 0.2 seconds" in slow.error
    assert len(slow.turns) == 1 and len(quick.turns) == 3


@pytest.mark.parametrize("where", ["environment", "model"])
def test_an_interrupt_ends_the_rollout_and_waits_for_nothing(tokenizer, where):
    hangs = threading.Event()

    def interrupt(query):
        if where == "environment":
            raise KeyboardInterrupt
        return "e"

    scripted = ScriptedGenerator(tokenizer, searches)

    def generate(prompts, stops):
        if where == "model" and scripted.prompts:
            raise KeyboardInterrupt
        return scripted(prompts, stops)

    caller = EnvironmentCaller()
    episodes = started(tokenizer, [lambda query: hangs.wait(300), interrupt])
    with pytest.raises(KeyboardInterrupt):
        rollout_of(tokenizer, generate, caller=caller).run(episodes)
    assert not hangs.is_set()
    assert caller.thread_of(episodes[0].environment).dead, "its action still runs"
    hangs.set()


def test_an_error_of_the_model_is_raised(tokenizer):
    def generate(prompts, stops):
        raise MemoryError("too much")

    with pytest.raises(MemoryError, match="too much"):
        rollout_of(tokenizer, generate).run(started(tokenizer, [lambda query: "e"]))


# What is sampled


class Dawdling(LookupEnvironment):
    """Answers after a moment that a seed decides."""

    seed = 0

    def search(self, query: str) -> str:
        """Look the secret up."""
        time.sleep(random.Random(f"{self.seed} {query} {len(self.queries)} {id(self)}").random() * 0.02)
        return super().search(query)


def played(actor, tokenizer, **kwargs):
    agent = Mem1Agent(actor, tokenizer, SHORT, **SETTINGS, **kwargs)
    rows = [{"prompt": f"{'ab' * (i % 3)}q{i % 8}?", "secret": str(i % 3)} for i in range(12)]
    torch.manual_seed(5)
    return agent.run_batch(rows, [Dawdling() for _ in rows])


def tokens(trajectories):
    return [[(turn.prompt_ids, turn.completion_ids) for turn in one.turns] for one in trajectories]


def assert_same(found, expected):
    assert tokens(found) == tokens(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.stop_reason, one.answer, one.reward) == (other.stop_reason, other.answer, other.reward)
        for turn, same in zip(one.turns, other.turns, strict=True):
            torch.testing.assert_close(torch.tensor(turn.logprobs), torch.tensor(same.logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_size", [32, 5])
def test_greedy_episodes_are_those_of_lockstep(actor, tokenizer, batch_size):
    expected = played(actor, tokenizer, rollout_mode="lockstep", batch_size=batch_size)
    assert all(len(trajectory.turns) > 1 for trajectory in expected)
    for wait in (0.0, 0.01):
        found = played(actor, tokenizer, rollout_batch_wait=wait, batch_size=batch_size)
        assert_same(found, expected)


@pytest.mark.parametrize("options", [{}, {"top_k": 3, "min_p": 0.05}, {"top_p": 0.9, "repetition_penalty": 1.1}])
def test_what_is_sampled_does_not_depend_on_who_is_ready_first(actor, tokenizer, options):
    one, other = (
        played(actor, tokenizer, temperature=1.3, rollout_batch_wait=wait, batch_size=size, **options)
        for wait, size in ((0.0, 32), (0.05, 5))
    )
    assert_same(one, other)
    assert len({turn.completion_ids for trajectory in one for turn in trajectory.turns}) > 12, "it samples"


def test_episodes_that_share_a_context_sample_different_tokens(actor, tokenizer):
    agent = Mem1Agent(actor, tokenizer, SHORT, **SETTINGS, temperature=1.5)
    torch.manual_seed(1)
    trajectories = agent.run_batch([{"prompt": "q0?"}] * 8, [LookupEnvironment() for _ in range(8)])
    assert len({trajectory.turns[0].completion_ids for trajectory in trajectories}) > 1


# Requests to a server


def in_order(answers, calls=None):
    """The answers and errors that requests get which are sent one after the other, each when the last was answered."""
    calls = calls or ServerCalls(4, 0)
    told, arrived = [], threading.Semaphore(0)

    def note(*what):
        told.append(what)
        arrived.release()

    requests = OpenRequests(calls, note, note)

    for key, answer in enumerate(answers):

        def send(answer=answer):
            if isinstance(answer, Exception):
                raise answer
            return answer

        requests.send(key, send)
        assert arrived.acquire(timeout=30)
    requests.close()
    return told


def test_a_server_that_has_not_answered_once_is_given_up():
    told = in_order([ServerError("too long", 400)])
    assert isinstance(told[0][0], RuntimeError) and "too long" in str(told[0][0])


def test_contexts_that_fail_in_a_row_cost_their_episodes_until_three_rounds_brought_nothing():
    """Asked one at a time each request is a round; the third that fails in a row ends the run, as in lockstep."""
    failure = ServerError("too long", 400)
    told = in_order(["yes", failure, failure, "yes", failure, failure, failure])
    assert [what[0] for what in told[:6]] == [0, 1, 2, 3, 4, 5] and told[3] == (3, "yes")
    assert all("refused this context" in told[index][1] for index in (1, 2, 4, 5))
    assert isinstance(told[6][0], RuntimeError)


def test_one_failure_among_requests_on_their_way_is_no_silent_server():
    """The first to be answered fails, while another is still on its way: that is judged when both are answered."""
    calls, told, go = ServerCalls(4, 0), [], threading.Event()
    arrived = threading.Semaphore(0)

    def note(*what):
        told.append(what)
        arrived.release()

    def fail():
        raise ServerError("too long", 400)

    requests = OpenRequests(calls, note, note)
    requests.send("slow", lambda: go.wait(30) and "yes")
    requests.send("bad", fail)
    assert arrived.acquire(timeout=30)
    go.set()
    assert arrived.acquire(timeout=30)
    requests.close()
    assert [key for key, _ in told] == ["bad", "slow"]
