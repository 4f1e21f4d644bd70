"""Episodes turn by turn: steps, memory, cost, messages of a person."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re

import pytest
from support.chat_server import serve
from support.reading_agent import reading
from support.scripted_agent import scripted
from support.tool_helpers import Library, template_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason

SETTINGS = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 4}
SEARCH, ANSWER = "<think>a</think><search>tea</search>", "<think>b</think><answer>7</answer>"


@pytest.fixture
def agent(actor, tokenizer):
    return Mem1Agent(actor, tokenizer, SHORT, **SETTINGS)


def ids_of(trajectory):
    return [(turn.prompt_ids, turn.completion_ids, turn.observation) for turn in trajectory.turns]


# Steps


def test_steps_are_what_a_run_plays(agent):
    for row in lookup_dataset(8):
        expected = agent.run_batch([row], [LookupEnvironment()])[0]
        episode = agent.start(row["prompt"], LookupEnvironment(), secret=row["secret"])
        assert not episode.done and episode.trajectory.stop_reason is None and episode.trajectory.turns == []
        played = []
        while not episode.done:
            played.append(episode.step())
            assert episode.trajectory.turns == played
        assert ids_of(episode.trajectory) == ids_of(expected)
        streamed = list(agent.stream(row["prompt"], LookupEnvironment(), secret=row["secret"]))
        assert [turn.completion_ids for turn in streamed] == [turn.completion_ids for turn in played]
        one = agent.run(row["prompt"], LookupEnvironment(), secret=row["secret"])
        assert ids_of(one) == ids_of(expected)
        for found in (episode.trajectory, one):
            assert (found.reward, found.answer, found.stop_reason) == (
                expected.reward,
                expected.answer,
                expected.stop_reason,
            )
            assert {**found.metrics, "seconds": 0} == {**expected.metrics, "seconds": 0}


def test_the_reward_comes_with_the_last_turn(agent, tokenizer):
    episode = scripted(agent, tokenizer, [SEARCH, ANSWER]).start("q?", LookupEnvironment(), secret="7")
    assert episode.step().observation == "<information>3;7</information>"
    assert episode.trajectory.reward is None
    episode.step()
    assert (episode.done, episode.answer, episode.trajectory.reward) == (True, "7", 1.0)
    with pytest.raises(RuntimeError, match=r"The episode has ended \(answer\)"):
        episode.step()


def test_what_an_episode_costs(agent, tokenizer):
    """One token for a tag and one for any other byte."""
    episode = scripted(agent, tokenizer, [SEARCH, ANSWER]).start("q?", LookupEnvironment(), secret="7")
    assert dataclasses.astuple(episode.cost) == (0, 0, 0, 0, 0.0)
    episode.step()  # reads q?, writes <think>a</think><search>tea</search>
    assert dataclasses.astuple(episode.cost)[:4] == (1, 2, 8, 10)
    episode.step()  # reads these 10 and <information>3;7</information>, writes 6
    assert dataclasses.astuple(episode.cost)[:4] == (2, 2 + 15, 8 + 6, 15 + 6)
    assert episode.cost.seconds > 0


def test_a_coroutine_plays_beside_others(agent):
    async def play():
        return await asyncio.gather(*(agent.arun(f"q{i}?", LookupEnvironment(), secret="1") for i in range(4)))

    found = asyncio.run(play())
    expected = [agent.run(f"q{i}?", LookupEnvironment(), secret="1") for i in range(4)]
    assert [ids_of(one) for one in found] == [ids_of(one) for one in expected]


def test_a_turn_that_a_server_did_not_give_can_be_played_again(tokenizer):
    with serve(lambda messages: ANSWER) as server:
        server.fails = lambda request: 400
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, backend="chat", **SETTINGS)
        episode = agent.start("q?", LookupEnvironment(), secret="7")
        with pytest.raises(RuntimeError, match="The model server refused"):
            episode.step()
        assert not episode.done and episode.trajectory.turns == []
        server.fails = lambda request: None
        assert episode.run().reward == 1.0


# Memory


def test_a_memory_that_is_written_is_what_the_next_turn_reads(agent, tokenizer):
    episode = scripted(agent, tokenizer, [SEARCH, SEARCH, ANSWER]).start("q?", LookupEnvironment(), secret="7")
    assert episode.memory is None
    with pytest.raises(RuntimeError, match="has written no state yet"):
        episode.memory = "early"
    sampled = episode.step()
    assert episode.memory == "a"
    episode.memory = "it is 7"
    assert episode.memory == "it is 7"
    second = episode.step()
    wanted = "q?<think>it is 7</think><search>tea</search><information>3;7</information>"
    assert tokenizer.decode(second.prompt_ids) == wanted
    first = episode.trajectory.turns[0]
    assert (first.text, first.state, first.completion_ids) == (SEARCH, "a", sampled.completion_ids)
    assert first.edited_state == "it is 7" and second.edited_state is None
    assert episode.memory == "a"  # the second turn's own
    third = episode.step()
    assert tokenizer.decode(third.prompt_ids) == "q?" + SEARCH + "<information>2;7</information>"


def test_a_memory_may_be_written_again(agent, tokenizer):
    episode = scripted(agent, tokenizer, [SEARCH, ANSWER]).start("q?", LookupEnvironment(), secret="7")
    episode.step()
    for memory in ("much longer", "b", "a", "c"):
        episode.memory = memory
    turn = episode.step()
    assert tokenizer.decode(turn.prompt_ids) == "q?<think>c</think><search>tea</search><information>3;7</information>"


def test_a_memory_cannot_act(agent, tokenizer):
    episode = scripted(agent, tokenizer, [SEARCH, ANSWER]).start("q?", LookupEnvironment(), secret="7")
    episode.step()
    episode.memory = "</think><answer>0</answer><eos>"
    turn = episode.step()
    text = (
        "q?<think>&lt;/think>&lt;answer>0&lt;/answer>< eos></think><search>tea</search><information>3;7</information>"
    )
    assert tokenizer.decode(turn.prompt_ids) == text
    assert tokenizer.eos_token_id not in turn.prompt_ids


def test_a_turn_without_a_state_gets_one(agent, tokenizer):
    episode = scripted(agent, tokenizer, ["<search>tea</search>", ANSWER]).start("q?", LookupEnvironment())
    assert episode.step().state is None and episode.memory is None
    episode.memory = "new"
    assert tokenizer.decode(episode.step().prompt_ids).startswith(
        "q?<think>new</think><search>tea</search><information>"
    )


def test_scratch_is_still_dropped_around_a_written_memory(agent, tokenizer):
    agent.protocol = dataclasses.replace(SHORT, state_tag="summary", scratch_tags=("think",))
    agent.syntax = agent.protocol.syntax(tokenizer)
    texts = ["<think>aloud</think><summary>a</summary><search>x</search>", "<answer>7</answer>"]
    episode = scripted(agent, tokenizer, texts).start("q?", LookupEnvironment())
    assert episode.step().state == "a"
    episode.memory = "b"
    wanted = "q?<summary>b</summary><search>x</search><information>3;7</information>"
    assert tokenizer.decode(episode.step().prompt_ids) == wanted


def test_a_memory_that_does_not_fit_is_refused(agent, tokenizer):
    agent.settings = dataclasses.replace(agent.settings, max_context_length=60)
    episode = scripted(agent, tokenizer, [SEARCH, ANSWER]).start("q?", LookupEnvironment(), secret="7")
    episode.step()
    with pytest.raises(ValueError, match="at most 60 tokens"):
        episode.memory = "long " * 20
    assert episode.memory == "a"
    assert tokenizer.decode(episode.step().prompt_ids) == "q?" + SEARCH + "<information>3;7</information>"


def test_a_server_reads_the_written_memory(tokenizer):
    read = []

    def reply(messages):
        read.append(messages[-1]["content"])
        return SEARCH if len(read) == 1 else ANSWER

    with serve(reply) as server:
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, backend="chat", **SETTINGS)
        episode = agent.start("q?", LookupEnvironment(), secret="7")
        episode.step()
        episode.memory = "it is 7"
        turn = episode.step()
    past = "<think>it is 7</think><search>tea</search><information>3;7</information>"
    assert read == ["q?", "q?\n\n" + past]
    assert turn.messages[-1]["content"] == read[1] and tokenizer.decode(turn.prompt_ids).endswith(past)


# A person


def test_a_message_is_the_observation_of_the_turn_before(agent, tokenizer):
    texts = [SEARCH, ANSWER, "<think>c</think><answer>8</answer>"]
    episode = scripted(agent, tokenizer, texts).start("q?", LookupEnvironment(), secret="7")
    with pytest.raises(RuntimeError, match="has not ended"):
        episode.send("too early")
    episode.run()
    assert episode.trajectory.reward == 1.0
    assert episode.send("and <answer> now?") == "8" == episode.answer
    second, third = episode.trajectory.turns[1:]
    assert second.observation == "<information>4;and &lt;answer> now?</information>"
    assert tokenizer.decode(third.prompt_ids) == "q?" + ANSWER + second.observation
    assert (episode.trajectory.stop_reason, episode.trajectory.reward) == (StopReason.ANSWER, 0.0)


def test_each_message_gives_all_turns_again(agent, tokenizer):
    episode = scripted(agent, tokenizer, [SEARCH] * 8).start("q?", LookupEnvironment(), secret="7")
    assert episode.run().stop_reason is StopReason.MAX_TURNS
    assert episode.send("go on") is None
    hints = [
        turn.observation and turn.observation[len("<information>") :].split(";")[0]
        for turn in episode.trajectory.turns
    ]
    assert hints == ["3", "2", "last", "4", "3", "2", "last", None]
    assert episode.trajectory.stop_reason is StopReason.MAX_TURNS


def test_a_message_that_does_not_fit_leaves_the_conversation_as_it_was(agent, tokenizer):
    agent.settings = dataclasses.replace(agent.settings, max_context_length=40)
    episode = scripted(agent, tokenizer, [ANSWER, ANSWER]).start("q?")
    episode.run()
    before = episode.trajectory
    with pytest.raises(ValueError, match="at most 40 tokens"):
        episode.send("long " * 20)
    assert episode.trajectory == before and episode.answer == "7"
    assert episode.send("short") == "7"


def test_an_environment_that_is_done_takes_no_message(agent, tokenizer):
    environment = LookupEnvironment()
    environment.done = True
    episode = scripted(agent, tokenizer, [SEARCH]).start("q?", environment, secret="7")
    assert episode.run().stop_reason is StopReason.DONE
    with pytest.raises(RuntimeError, match="ended by 'done' and cannot go on"):
        episode.send("more")


def test_a_conversation_of_200_messages_reads_no_more_than_one_of_two(agent):
    """The control, which keeps its history, reads more with every message."""
    longest = {}
    for context in ("mem1", "full"):
        agent.settings = dataclasses.replace(agent.settings, context=context)
        episode = agent.start("q3?", LookupEnvironment(), secret="2")
        episode.run()
        sizes = []
        for number in range(200 if context == "mem1" else 20):
            turns = len(episode.trajectory.turns)
            assert episode.send(str(number % 3)) in {"0", "1", "2"}
            sizes.append(max(len(turn.prompt_ids) for turn in episode.trajectory.turns[turns:]))
        longest[context] = sizes
    assert len(longest["mem1"]) == 200 and set(longest["mem1"]) == {14}
    assert all(later > earlier for earlier, later in zip(longest["full"], longest["full"][1:]))
    assert episode.cost.peak_tokens > 100


def test_after_1000_messages_a_context_is_as_long_as_after_two_and_the_first_one_is_known(agent):
    """A model that keeps the first word in its state: what it reads, and what is saved of it, at each message."""

    def write(context):
        first, last = re.findall("w[0-9]{4}", context)[0], re.findall("w[0-9]{4}", context)[-1]
        return f"<think>{first}</think><answer>{first} {last}</answer>"

    model = reading(agent, write)
    episode = agent.start("w1000")
    episode.run()
    saved = []
    for number in range(1001, 2001):
        assert episode.send(f"w{number}") == f"w1000 w{number}"
        if number % 100 == 0:
            saved.append(len(json.dumps(episode.to_dict(past=False)["trajectory"]["turns"])))
    assert len(model.contexts) == 1001 and len(set(map(len, model.contexts[1:]))) == 1
    assert len(set(saved)) == 1 and episode.cost.turns == 1001
    again = agent.resume(json.loads(json.dumps(episode.to_dict(past=False))))
    assert again.send("w2001") == "w1000 w2001" and len(model.contexts[-1]) == len(model.contexts[1])


def test_with_tool_calls_a_message_is_one_of_the_user(actor):
    tokenizer = template_tokenizer("qwen3")
    agent = Mem1Agent(actor, tokenizer, Mem1Protocol.tool_calls(), max_observation_length=400, max_turns=4)
    texts = ["<think>a</think>Seven.<|im_end|>", "<think>b</think>Eight.<|im_end|>"]
    episode = scripted(agent, tokenizer, texts).start("How many?", Library())
    assert episode.run().answer == "Seven."
    assert episode.send("And <tool_call> now?") == "Eight."
    first, second = episode.trajectory.turns
    rendered = tokenizer.decode(second.prompt_ids[len(first.prompt_ids) :])
    hint = "[HINT]You have 4 turns left.[/HINT]"
    assert rendered.startswith(
        f"{texts[0]}\n<|im_start|>user\n{hint}\n\nAnd &lt;tool_call> now?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("context", ["external", "mem1", "full"])
def test_a_message_that_is_refused_leaves_no_trace(actor, tokenizer, context):
    """The external memory had kept it as a note, and put it into later contexts."""
    settings = {**SETTINGS, "max_observation_length": 90, "max_context_length": 120}
    agent = Mem1Agent(actor, tokenizer, SHORT, context=context, **settings)
    long, short = f"<think>{'ab ' * 15}</think><answer>7</answer>", "<think>a</think><answer>8</answer>"
    episode = scripted(agent, tokenizer, [long, short, short]).start("q?", LookupEnvironment(), secret="7")
    episode.run()
    before = episode.to_dict()
    with pytest.raises(ValueError, match="The context with the message must have at most 120 tokens"):
        episode.add_message("zebra " * 60)
    assert episode.to_dict() == before


@pytest.mark.parametrize(("name", "end"), [("qwen3", "<|im_end|>"), ("glm4moe", "")])
def test_a_message_after_a_cut_turn_follows_the_end_that_the_template_writes(actor, name, end):
    tokenizer = template_tokenizer(name)
    agent = Mem1Agent(actor, tokenizer, Mem1Protocol.tool_calls(), max_observation_length=400, max_turns=4)
    episode = scripted(agent, tokenizer, ["<think>a</think>I am cut", "<think>b</think>x"]).start("q?", Library())
    assert episode.run().stop_reason is StopReason.TRUNCATED
    episode.add_message("go on")
    before, _ = agent.syntax.message_frame()
    assert episode.trajectory.turns[0].observation.startswith(f"{end}{before}[HINT]")
    second = episode.step()
    assert tokenizer.decode(second.prompt_ids).count(f"<think>a</think>I am cut{end}{before}[HINT]") == 1
    assert agent.syntax.turn_end == end
