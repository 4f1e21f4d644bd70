"""One agent that several threads call, as the handlers of a web server do."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.chat_server import serve
from support.meeting import Meeting
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent
from mem1_trl.protocol.untrusted import encode_untrusted

SETTINGS = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 4}
CALLS = 48


def play(agent, number):
    """One episode; its turns as token ids, and its answer."""
    secret = str(number % 3)
    trajectory = agent.run(f"{'ab' * (number % 3)}q{number % 8}?", LookupEnvironment(), secret=secret)
    return [(turn.prompt_ids, turn.completion_ids) for turn in trajectory.turns], trajectory.answer


def calls_of(agent):
    """The sizes of the calls of an agent's model, from now on."""
    sizes, generate = [], agent.generate

    class Counted:
        def __call__(self, prompts, stops):
            sizes.append(len(prompts))
            return generate(prompts, stops)

        def __getattr__(self, name):
            return getattr(generate, name)

    agent.generate = Counted()
    return sizes


def test_what_threads_play_at_once_is_what_one_thread_plays(actor, tokenizer):
    agent = Mem1Agent(actor.train(), tokenizer, SHORT, **SETTINGS)
    expected = [play(agent, number) for number in range(CALLS)]
    sizes = calls_of(agent)
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = list(pool.map(lambda number: play(agent, number), range(CALLS)))
    assert found == expected
    assert sum(sizes) == sum(len(turns) for turns, _ in expected) and len(sizes) < sum(sizes)
    assert actor.training  # as it was left
    cache = agent.generate._cache
    assert cache is None or not cache._blocks  # nothing is kept when no episode is played


def test_what_arrives_together_is_generated_together(actor, tokenizer):
    """All wait for the first call to begin, and then for their own turn."""
    agent = Mem1Agent(actor, tokenizer, SHORT, **SETTINGS)
    begun, go, sizes = threading.Event(), threading.Event(), []
    generate = agent.generate

    class Held:
        release, batch_size, model = generate.release, 32, actor

        def __call__(self, prompts, stops):
            sizes.append(len(prompts))
            begun.set()
            assert go.wait(60)
            return generate(prompts, stops)

    agent.generate = Held()
    one_turn = {"max_turns": 1}
    agent.settings = type(agent.settings)(**{**agent.settings.to_dict(), **one_turn})
    with ThreadPoolExecutor(max_workers=6) as pool:
        first = pool.submit(play, agent, 0)
        assert begun.wait(60)
        others = [pool.submit(play, agent, number) for number in range(1, 6)]
        while len(agent._shared._waiting) < 5:
            begun.wait(0.01)
        go.set()
        results = [one.result() for one in (first, *others)]
    assert sizes == [1, 5]
    generate.settings = agent.settings
    agent.generate = generate
    assert results == [play(agent, number) for number in range(6)]


def test_a_call_that_fails_fails_alone(actor, tokenizer):
    agent = Mem1Agent(actor, tokenizer, SHORT, **SETTINGS)
    generate = agent.generate
    begun, go = threading.Event(), threading.Event()

    class Fails:
        release, batch_size, model = generate.release, 32, actor

        def __call__(self, prompts, stops):
            begun.set()
            assert go.wait(60)
            if any(tokenizer.decode(prompt).startswith("bad") for prompt in prompts):
                raise MemoryError("too much")
            return generate(prompts, stops)

    agent.generate = Fails()
    with ThreadPoolExecutor(max_workers=4) as pool:
        futures = [pool.submit(play, agent, number) for number in range(3)]
        assert begun.wait(60)
        bad = pool.submit(agent.run, "bad?", LookupEnvironment())
        while not agent._shared._waiting:
            begun.wait(0.01)
        go.set()
        with pytest.raises(MemoryError, match="too much"):
            bad.result()
        assert all(future.result()[1] is not None for future in futures)
    agent.generate = generate
    assert play(agent, 0)[1] is not None  # nobody holds the model


def test_threads_with_other_settings_are_not_mixed(actor, tokenizer):
    """Requests that decode differently cannot be one call of the model."""
    agent = Mem1Agent(actor, tokenizer, SHORT, **SETTINGS)
    shared, results = agent._shared, {}
    short = type(agent.settings)(**{**agent.settings.to_dict(), "max_completion_length": 3})
    prompt = tokenizer("q0?")["input_ids"]
    shared._playing = 2  # each waits for the other

    def ask(name, settings):
        results[name] = shared([prompt], [["</search>"]], settings)[0]

    threads = [threading.Thread(target=ask, args=one) for one in (("long", agent.settings), ("short", short))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results["short"].ids) == 3 and results["long"].ids[:3] == results["short"].ids
    assert len(results["long"].ids) > 3 and results["long"].ended


def test_environments_of_several_threads_overlap(actor, tokenizer):
    """While one thread waits for its environment, the others play."""
    meeting = Meeting(3)

    class Meets(LookupEnvironment):
        def reset(self, **row):
            meeting.wait()
            return super().reset(**row)

    agent = Mem1Agent(actor, tokenizer, SHORT, **SETTINGS)
    with ThreadPoolExecutor(max_workers=3) as pool:
        played = list(pool.map(lambda number: agent.run(f"q{number}?", Meets()), range(3)))
    assert len(played) == 3


def test_untrusted_text_is_split_whatever_other_threads_encode(tokenizer):
    """Splitting special tokens is a state of a tokenizer; another thread must not see it, nor end it."""
    shared = copy.deepcopy(tokenizer)
    expected = encode_untrusted(tokenizer, "a < eos> b <pad> " * 20)
    stop, wrong = threading.Event(), []

    def encode_plain():
        while not stop.is_set():
            if shared("x<eos>")["input_ids"][-1] != shared.eos_token_id:
                wrong.append("special")

    threads = [threading.Thread(target=encode_plain) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            ids = encode_untrusted(shared, "a < eos> b <pad> " * 20)
            assert ids == expected and not {shared.eos_token_id, shared.pad_token_id} & set(ids)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_tokens_that_are_added_later_are_split_too(tokenizer):
    changed = copy.deepcopy(tokenizer)
    encode_untrusted(changed, "a")
    changed.add_special_tokens({"extra_special_tokens": ["@@new@@"]})
    new = changed.convert_tokens_to_ids("@@new@@")
    assert new not in encode_untrusted(changed, "x @@new@@") and changed("@@new@@")["input_ids"] == [new]


def test_a_server_is_asked_no_more_at_once_than_allowed(tokenizer):
    """`batch_size` bounds the requests of all threads together."""
    lock, running, most = threading.Lock(), [0], [0]

    def reply(messages):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.02)
        with lock:
            running[0] -= 1
        return "<think>a</think><answer>7</answer>"

    with serve(reply) as server:
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, batch_size=2, **SETTINGS)
        with ThreadPoolExecutor(max_workers=8) as pool:
            answers = list(pool.map(lambda number: play(agent, number)[1], range(16)))
    assert answers == ["7"] * 16 and most[0] <= 2
