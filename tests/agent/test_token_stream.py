"""Tokens while they are generated: the same text as that of the turn, here and on servers, and an end when nobody wants more."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.chat_server import serve
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset

from mem1_trl import Mem1Agent
from mem1_trl.agent.answer_stream import AnswerStream
from mem1_trl.protocol.protocol import Mem1Protocol
from mem1_trl.rollout.turn_listener import TurnListener

SETTINGS = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 4}
SEARCH, ANSWER = "<think>a</think><search>tea</search>", "<think>b</think><answer>7</answer>"


@pytest.fixture
def agent(actor, tokenizer):
    return Mem1Agent(actor, tokenizer, SHORT, **SETTINGS)


def split(events):
    """Pieces of each turn, and the turns."""
    pieces, turns = [[]], []
    for event in events:
        if isinstance(event, str):
            pieces[-1].append(event)
        else:
            turns.append(event)
            pieces.append([])
    return pieces[:-1], turns


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_pieces_of_a_turn_are_its_tokens(agent, tokenizer, temperature):
    import torch

    agent.settings = dataclasses.replace(agent.settings, temperature=temperature)
    for row in lookup_dataset(4):
        torch.manual_seed(3)
        expected = agent.run(row["prompt"], LookupEnvironment(), secret=row["secret"])
        torch.manual_seed(3)
        pieces, turns = split(agent.stream(row["prompt"], LookupEnvironment(), tokens=True, secret=row["secret"]))
        assert [turn.completion_ids for turn in turns] == [turn.completion_ids for turn in expected.turns]
        assert ["".join(one) for one in pieces] == [turn.text for turn in turns]
        for one, turn in zip(pieces, turns):
            if turn.text.isascii():  # one token is one character or one tag here
                assert one == [tokenizer.decode([token]) for token in turn.completion_ids]


def test_characters_are_told_when_they_are_complete(tokenizer):
    text = "naïve 漢字 🙂 " * 20 + "<answer>é</answer>"  # several times as long as the part that is decoded again
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces: list[str] = []
    listener = TurnListener(tokenizer, pieces.append)
    assert all(listener.read_ids(ids[:count]) for count in range(1, len(ids) + 1))
    assert "".join(pieces) == text == listener.told
    assert not any("\ufffd" in piece for piece in pieces) and len(pieces) > 200


def test_other_tokens_than_those_that_were_told_end_the_turn(tokenizer):
    pieces: list[str] = []
    listener = TurnListener(tokenizer, pieces.append)
    assert listener.read_ids(tokenizer("ab")["input_ids"])
    assert listener.read_ids(tokenizer("a")["input_ids"])  # generated again
    assert not listener.read_ids(tokenizer("ac")["input_ids"])
    assert pieces == ["ab"] and "other tokens" in str(listener.error)


def test_who_stops_ends_the_turn_and_can_play_it_again(agent):
    row = lookup_dataset(1)[0]
    expected = agent.run(row["prompt"], LookupEnvironment(), secret=row["secret"])
    episode = agent.start(row["prompt"], LookupEnvironment(), secret=row["secret"])
    heard: list[str] = []

    def hear(piece):
        heard.append(piece)
        if len(heard) == 3:
            raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        episode.step(hear)
    assert len(heard) == 3 and episode.trajectory.turns == [] and not episode.done
    found = episode.run()
    assert [turn.completion_ids for turn in found.turns] == [turn.completion_ids for turn in expected.turns]


def test_a_reader_that_leaves_stops_the_generation(agent):
    agent.settings = dataclasses.replace(agent.settings, max_completion_length=4000, temperature=1.0)
    agent.protocol = dataclasses.replace(agent.protocol)
    episode = agent.start("q?", LookupEnvironment(), secret="1")
    events = episode.stream(tokens=True)
    before = set(threading.enumerate())  # tests of other files leave threads, too
    assert isinstance(next(events), str)
    writers = [thread for thread in set(threading.enumerate()) - before if thread.name == "mem1-turn"]
    events.close()
    assert len(writers) == 1 and not writers[0].is_alive() and episode.trajectory.turns == []


def test_one_that_stops_leaves_those_that_are_generated_with_it_as_they_are(agent):
    rows = list(lookup_dataset(6))
    alone = [agent.run(row["prompt"], LookupEnvironment(), secret=row["secret"]) for row in rows]

    def play(number):
        episode = agent.start(rows[number]["prompt"], LookupEnvironment(), secret=rows[number]["secret"])
        if number % 2:

            def stop(piece):
                raise KeyError(number)

            with pytest.raises(KeyError):
                episode.step(stop)
            return None
        return episode.run(lambda piece: None)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(play, range(6)))
    for number in (0, 2, 4):
        assert [t.completion_ids for t in found[number].turns] == [t.completion_ids for t in alone[number].turns]


# Servers


def client_of(server, kind):
    if kind == "address":
        return server.url
    return pytest.importorskip("openai").OpenAI(base_url=server.url, api_key="none", max_retries=0)


def written(prompt):
    return ANSWER if "information" in str(prompt) else SEARCH


@pytest.mark.parametrize("kind", ["address", "openai"])
@pytest.mark.parametrize("backend", ["completions", "chat"])
def test_a_server_tells_the_same_in_pieces(tokenizer, kind, backend):
    with serve(written, complete=written, tokenizer=tokenizer) as server:
        agent = Mem1Agent("m", tokenizer, SHORT, client=client_of(server, kind), backend=backend, **SETTINGS)
        expected = agent.run("q?", LookupEnvironment(), secret="7")
        pieces, turns = split(agent.stream("q?", LookupEnvironment(), tokens=True, secret="7"))
        assert turns == expected.turns and [turn.text for turn in turns] == [SEARCH, ANSWER]
        assert ["".join(one) for one in pieces] == [SEARCH, ANSWER]
        assert pieces[0][:3] == ["<th", "ink", ">a<"]
        assert server.requests[-1]["stream"] is True and "stream" not in server.requests[0]


def test_calls_that_come_in_pieces_are_put_together():
    from support.tool_helpers import Library, template_tokenizer

    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"query": "tea"}'}}

    def reply(messages):
        done = any(message["role"] == "tool" for message in messages)
        return (
            {"role": "assistant", "content": "7"}
            if done
            else {"role": "assistant", "content": "", "tool_calls": [call]}
        )

    with serve(reply) as server:
        agent = Mem1Agent(
            "m", template_tokenizer("qwen3"), "tool_calls", client=server.url, backend="chat", max_turns=3
        )
        expected = agent.run("q?", Library())
        _, turns = split(agent.stream("q?", Library(), tokens=True))
        assert [turn.action for turn in turns] == [turn.action for turn in expected.turns]
        assert turns == expected.turns


def test_an_answer_that_breaks_off_is_not_asked_for_twice(tokenizer):
    with serve(written, complete=written, tokenizer=tokenizer) as server:
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS)
        agent.run("q?", LookupEnvironment(), secret="7")
        server.requests.clear()
        server.breaks_after = 4
        episode = agent.start("q?", LookupEnvironment(), secret="7")
        heard: list[str] = []
        with pytest.raises(RuntimeError, match="broke off its answer after a part of it was told"):
            episode.step(heard.append)
        assert "".join(heard) == SEARCH[:12] and len(server.requests) == 1
        server.breaks_after = None
        assert episode.step().text == SEARCH


def test_who_stops_a_server_is_not_answered_further(tokenizer):
    with serve(written, complete=written, tokenizer=tokenizer) as server:
        agent = Mem1Agent("m", tokenizer, SHORT, client=server.url, **SETTINGS)
        episode = agent.start("q?", LookupEnvironment(), secret="7")

        def stop(piece):
            raise TimeoutError(piece)

        with pytest.raises(TimeoutError, match="<th"):
            episode.step(stop)
        assert len(server.requests) == 1 and episode.step().text == SEARCH


# The answer inside a turn


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>a</think><answer> Os lo </answer>", None, "Os lo"),
        ("<think><answer>no</answer></think><answer>yes</answer>", None, "yes"),
        ("no <answer>a</think><answer>3 < 4 </answer>", "think", "3 < 4"),
        ("<answer>a</answ b</answer>", None, "a</answ b"),
        ("<think>a</think><b>note</b><answer>yes</answer>", None, "yes"),
    ],
)
def test_the_answer_is_told_as_it_is_written(text, opened, expected):
    for size in (1, 2, 5):
        pieces: list[str] = []
        stream = AnswerStream(Mem1Protocol(), pieces.append, opened)
        for at in range(0, len(text), size):
            stream.add(text[at : at + size])
        assert "".join(pieces) == expected  # nothing is left for the end
        assert stream.finish(expected) == "".join(pieces) == expected


def test_an_answer_named_inside_an_action_is_none():
    pieces: list[str] = []
    stream = AnswerStream(Mem1Protocol(), pieces.append)
    stream.add("<think>s</think><search>what <answer> means</search>")
    assert not pieces and stream.told == ""


def test_an_answer_that_is_known_at_the_end_is_told_whole():
    pieces: list[str] = []
    stream = AnswerStream(Mem1Protocol.tool_calls(), pieces.append)
    stream.add("hidden thought")
    assert stream.finish("Oslo") == "Oslo" and pieces == ["Oslo"]
    other = AnswerStream(Mem1Protocol(), pieces.append)
    other.add("<answer>a")
    assert other.finish("b") == "a\nb"
