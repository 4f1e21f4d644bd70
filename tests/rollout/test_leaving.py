"""Calls of the model that are left when some turns have ended: the turns are those of whole calls, in fewer steps."""

from __future__ import annotations

import random
import threading

import pytest
import torch
from support.helpers import tiny_model, tiny_tokenizer

from mem1_trl.rollout.draws import uniform_draws
from mem1_trl.rollout.generation import TransformersGenerator
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.shared_generator import SharedGenerator
from mem1_trl.rollout.step_graphs import StepGraphs

EPISODES, TURNS, LONGEST = 12, 3, 40
STOPS = [*"aeiou"]


class Steps:
    """Counts forward passes."""

    def __init__(self, model):
        self.taken = 0
        model.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.taken += 1


def generator_of(model, **options):
    settings = AgentSettings(max_completion_length=LONGEST, temperature=options.pop("temperature", 1.0))
    return TransformersGenerator(model, tiny_tokenizer(), settings, parked=EPISODES, **options)


def play(generate, leave=None, stops=STOPS, sampled=True, to_the_budget=True):
    """All turns of some episodes that read their prompt, their last turn and an observation; by episode."""
    some = random.Random(0)
    prompts = [[some.randrange(2, 250) for _ in range(some.randint(1, 40))] for _ in range(EPISODES)]
    seen = [[[some.randrange(2, 250) for _ in range(10)] for _ in range(TURNS)] for _ in range(EPISODES)]
    contexts, begun, turns = dict(enumerate(prompts)), {}, {one: [] for one in range(EPISODES)}
    while contexts:
        now = list(contexts)
        draws = [uniform_draws(one, len(turns[one]), LONGEST) for one in now] if sampled else None
        early = {} if leave is None else {"begun": [begun.get(one) for one in now], "leave": leave}
        own = [[] if one % 3 == 0 and to_the_budget else stops for one in now]
        found = generate([contexts[one] for one in now], own, draws, **early)
        begun = {one: done for one, done in zip(now, found) if done.unfinished}
        for one, done in zip(now, found):
            if done.unfinished:
                assert not done.ended and 0 < len(done.ids) < LONGEST
                continue
            turns[one].append(done)
            contexts[one] = [*prompts[one], *done.ids, *seen[one][len(turns[one]) - 1]]
            if len(turns[one]) == TURNS:
                del contexts[one]
    return turns


def agree(found, expected):
    for one, other in zip(found.values(), expected.values(), strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert mine.ids == theirs.ids and mine.ended == theirs.ended
            torch.testing.assert_close(
                torch.tensor(mine.logprobs), torch.tensor(theirs.logprobs), atol=2e-5, rtol=1e-5
            )


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("leave", [1, 3, 30])
def test_turns_in_pieces_are_whole_turns(architecture, sampled, leave):
    model = tiny_model(architecture)
    temperature = 1.0 if sampled else 0.0
    expected = play(generator_of(model, temperature=temperature), sampled=sampled)
    lengths = {len(done.ids) for turns in expected.values() for done in turns}
    assert LONGEST in lengths and (not sampled or len(lengths) > 3)
    agree(play(generator_of(model, temperature=temperature), leave, sampled=sampled), expected)


def test_fewer_steps_are_taken():
    model = tiny_model("llama")
    steps = Steps(model)
    play(generator_of(model), to_the_budget=False)
    whole, steps.taken = steps.taken, 0
    play(generator_of(model), leave=3, to_the_budget=False)
    assert steps.taken < 0.8 * whole


def test_no_stop_strings_no_pieces():
    """Where nothing ends a turn but its budget, there is nothing to leave for."""
    model = tiny_model("llama")
    agree(play(generator_of(model), 3, stops=[]), play(generator_of(model), stops=[]))


def test_as_many_have_ended_as_were_asked_for():
    generate = generator_of(tiny_model("llama"))
    draws = [uniform_draws(one, 0, LONGEST) for one in range(EPISODES)]
    found = generate([[5 + one] for one in range(EPISODES)], [STOPS] * EPISODES, draws, leave=4)
    assert 0 < sum(done.unfinished for done in found) <= EPISODES - 4


def test_without_kept_keys_a_call_ends_its_turns():
    model = tiny_model("llama")
    whole = generator_of(model, prefix_cache=False)
    found = whole([[5, 6], [7, 8, 9]], [STOPS] * 2, [uniform_draws(one, 0, LONGEST) for one in range(2)], leave=1)
    assert not any(done.unfinished for done in found)


def test_steps_of_fixed_shape_go_on_with_turns_that_were_left():
    model = tiny_model("llama")
    generate = generator_of(model)

    def capture(function):
        result = function().clone()
        return lambda: result.copy_(function()), result

    generate._cache.graphs = StepGraphs(lambda: capture, "cpu")
    agree(play(generate, 3), play(generator_of(model)))
    assert generate._cache.graphs.replayed


def test_threads_that_share_a_model_leave_it_together():
    model = tiny_model("llama")
    expected = play(generator_of(model))
    inner = generator_of(model, batch_size=2 * EPISODES)
    shared, settings, found = SharedGenerator(lambda: inner), inner.settings, {}

    def of_thread(number):
        def generate(prompts, stops, draws, **early):
            return shared(prompts, stops, settings, draws, **early)

        with shared.playing():
            found[number] = play(generate, leave=2 + number)

    threads = [threading.Thread(target=of_thread, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found.values():
        agree(one, expected)
    assert len(found) == 2
