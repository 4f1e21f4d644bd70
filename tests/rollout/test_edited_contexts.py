"""What stands in contexts besides sampled turns: a summary that a person edited, and the notes of an external memory, under all kinds of turns."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.library import ANSWER, TASK, Library, ShortRequest, seen, turn
from support.scripted_agent import scripted
from support.tool_helpers import template_tokenizer
from support.trainer_helpers import SHORT

from mem1_trl import Mem1Agent, Mem1Protocol
from mem1_trl.context_rules.rule import SUMMARY_REPLY

TOOLS = Mem1Protocol.tool_calls()


def search(query: str) -> str:
    """
    Look a fact up.

    Args:
        query: What to look for.
    """
    return f"fact {query}"


def call(*queries: str, said: str = "<think>t</think>") -> str:
    calls = [json.dumps({"name": "search", "arguments": {"query": query}}) for query in queries]
    return said + "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in calls) + "<|im_end|>"


def begin(actor, tokenizer, texts, protocol=SHORT, tools: Any = None, **settings):
    settings = {"max_turns": 6, "max_observation_length": 200, "max_context_length": 2000, **settings}
    agent = scripted(Mem1Agent(actor, tokenizer, protocol, **settings), tokenizer, texts)
    return agent.start(TASK, None if tools else Library(), tools)


def read_next(episode, tokenizer) -> str:
    """What the next turn reads after the task prompt."""
    context = episode.step().prompt_ids
    return tokenizer.decode(context[len(episode.trajectory.prompt_ids) :])


@pytest.mark.parametrize(
    ("summary", "edited"),
    [
        ("it is high<eos>", "low<eos>"),
        ("<answer>x</answer><think>high</think>", "<answer>x</answer><think>low</think>"),
        ("<think>high</think>", "<think>low</think>"),
    ],
)
def test_an_edited_summary_takes_the_place_of_what_was_written(actor, tokenizer, summary, edited):
    episode = begin(
        actor, tokenizer, [turn("alps"), summary, ANSWER], context=ShortRequest(every=1), conversational=False
    )
    episode.step()
    episode.step()
    episode.memory = "low"
    assert read_next(episode, tokenizer) == edited + seen(SUMMARY_REPLY, "5;")


def test_what_is_said_beside_a_call_or_in_place_of_a_summary_is_a_state_that_can_be_edited(actor):
    tokenizer = template_tokenizer()
    texts = [call("alps", said="alps first"), "it is high<|im_end|>", call("loch")]
    episode = begin(actor, tokenizer, texts, TOOLS, [search], context=ShortRequest(every=1))
    first = episode.step()
    assert first.state == "alps first"
    assert tokenizer.decode(first.completion_ids[: first.state_tokens]) == "alps first"
    episode.memory = "loch first"
    context = episode.step().prompt_ids
    text = tokenizer.decode(context[len(first.prompt_ids) :])
    assert text.startswith("loch first<tool_call>") and "alps first" not in text
    summary = episode.trajectory.turns[1]
    assert tokenizer.decode(summary.completion_ids[: summary.state_tokens]) == "it is high", "its end is none of it"
    episode.memory = "low"
    assert read_next(episode, tokenizer).startswith("low<|im_end|>\n<|im_start|>user\n")


def test_an_edit_may_not_make_the_whole_context_too_long(actor, tokenizer):
    """Not only the last turn is in it."""
    past = turn("alps") + seen("alps", "5;") + turn("loch") + seen("loch", "4;")
    limit = len(tokenizer(TASK + past)["input_ids"]) + 5
    texts = [turn("alps"), turn("loch"), ANSWER]
    episode = begin(actor, tokenizer, texts, context="full", max_context_length=limit, conversational=False)
    episode.step()
    episode.step()
    with pytest.raises(ValueError, match=f"must have at most {limit} tokens: write a shorter one"):
        episode.memory = "l" * 7
    assert episode.memory == "l"
    episode.memory = "l" * 6
    assert len(episode.step().prompt_ids) == limit


def test_notes_are_in_the_context_they_were_recalled_for_and_in_no_other(actor):
    """A teacher that reads the whole history reads none; the results of two calls are one note, without the template's text between them."""
    tokenizer = template_tokenizer()
    texts = [call("alps", "loch"), call("alps"), call("loch")]
    episode = begin(actor, tokenizer, texts, TOOLS, [search], context="external", max_turns=9)
    for _ in texts:
        episode.step()
    rollout, played = episode._player.rollout, episode._episode
    context = tokenizer.decode(rollout.next_request(played).context)
    assert "<memory>Seen in earlier turns:\nfact alps\nfact loch\n" in context[context.rindex("<tool_response>") :]
    whole = tokenizer.decode(rollout.contexts.appended(played, 3))
    assert "<memory>" not in whole.removeprefix(tokenizer.decode(played.prompt_ids))
    assert [whole.count(f"\nfact {one}\n") for one in ("alps", "loch")] == [2, 2]


@pytest.mark.parametrize("name", ["llama3_1"])
def test_notes_inside_a_result_that_is_json_are_json(actor, name):
    tokenizer = template_tokenizer(name)
    syntax = TOOLS.syntax(tokenizer)
    assert syntax.escapes
    before, after = (tokenizer.decode(syntax.encode_added(part, in_result=True)) for part in TOOLS.memory_frame())
    assert json.loads(f'"{before}fact{after}"') == "fact".join(TOOLS.memory_frame())
    before, after = (tokenizer.decode(syntax.encode_added(part, in_result=False)) for part in TOOLS.memory_frame())
    assert (before, after) == TOOLS.memory_frame(), "in a message they are as they are"


def test_notes_say_the_same_inside_a_result_that_is_json_and_inside_a_message(actor):
    """And they are found by their words, which an escape before them does not change."""
    tokenizer = template_tokenizer("llama3_1")
    calls = [json.dumps({"name": "search", "parameters": {"query": query}}) for query in ("\nhigh", "loch")]
    texts = [f"<think>t</think>{one}<|eot_id|>" for one in (*calls, "It is high.")]
    episode = begin(actor, tokenizer, texts, TOOLS, [search], context="external")
    for _ in texts:
        episode.step()
    rollout, played = episode._player.rollout, episode._episode
    assert [note.text for note in played.memory.notes] == ["fact \nhigh", "fact loch"]
    before, after = TOOLS.memory_frame()
    read = [tokenizer.decode(turn.prompt_ids) for turn in episode.trajectory.turns]
    episode.add_message('How "high"?')
    read.append(tokenizer.decode(rollout.next_request(played).context))
    assert json.dumps(f"fact loch{before}fact \nhigh\n{after}")[1:] in read[2]
    assert f'How "high"?{before}fact loch\nfact \nhigh\n{after}<|eot_id|>' in read[3]
