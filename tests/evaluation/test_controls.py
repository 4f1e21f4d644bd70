"""The search for the best constant on a logit, and for the best temperature."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent
from mem1_trl.evaluation import ScalarControl, evaluate_agent, search_scalar_control
from mem1_trl.evaluation.controls import _check_spelling, _ids
from mem1_trl.trajectory import StopReason, Trajectory, Turn


@pytest.fixture
def agent(actor, tokenizer):
    settings = {"max_turns": 3, "max_completion_length": 40, "max_observation_length": 40, "conversational": False}
    return Mem1Agent(actor, tokenizer, SHORT, **settings)


def rows(count):
    return [{"prompt": f"q{i}?", "secret": "1"} for i in range(count)]


def test_a_constant_moves_the_choice_between_two_tokens(agent, tokenizer, actor):
    """The most likely token loses to the second once the constant exceeds the gap between their logits, and not before."""
    ids = tokenizer("q0?")["input_ids"]
    with torch.no_grad():
        logits = actor(torch.tensor([ids])).logits[0, -1]
    (top, second), (first, other) = (part.tolist() for part in logits.topk(2))
    gap = top - second

    def first_token(constant):
        agent.settings = dataclasses.replace(
            agent.settings, generation_kwargs={"sequence_bias": [[[first], -constant]]}, max_turns=1
        )
        (played,) = agent.run_batch([{"prompt": "q0?", "secret": "1"}], [LookupEnvironment()])
        assert list(played.turns[0].prompt_ids) == ids
        return played.turns[0].completion_ids[0]

    assert first_token(gap - 0.01) == first
    assert first_token(gap + 0.01) == other


def test_what_raises_the_score_is_found_and_nothing_else(agent, tokenizer):
    """The score counts a letter, so the letter's constant is what the search has to find."""
    letter = tokenizer.convert_tokens_to_ids("k")

    def letters(evaluation):
        return float(sum(turn.completion_ids.count(letter) for t in evaluation.trajectories for turn in t.turns))

    before = agent.settings
    told = []
    found = search_scalar_control(
        agent, rows(2), LookupEnvironment, ["z", "k"], values=(-30.0, 30.0), temperatures=(0.0,), most=1,
        score=letters, on_setting=told.append,
    )  # fmt: skip
    assert agent.settings is before
    assert found.constants == {"k": 30.0} and found.temperature == 0.0
    assert found.settings.generation_kwargs == {"sequence_bias": [[[letter], 30.0]]}
    assert told == found.tried and len(found.tried) == 1 + 2 * 2
    assert found.score == max(one["score"] for one in found.tried) > found.tried[0]["score"]
    # The settings give the score again
    agent.settings = found.settings
    assert letters(evaluate_agent(agent, rows(2), LookupEnvironment)) == found.score


def test_without_a_rise_nothing_is_changed(agent):
    found = search_scalar_control(
        agent, rows(2), LookupEnvironment, [5], values=(1.0,), temperatures=(0.0, 1.0), score=lambda evaluation: 0.5
    )
    assert (found.constants, found.temperature, found.score) == ({}, 0.0, 0.5)
    assert found.settings == agent.settings
    assert [one["temperature"] for one in found.tried] == [0.0, 1.0, 0.0, 1.0]


def test_a_text_that_the_model_writes_in_other_tokens_is_refused(agent, tokenizer):
    """A constant on it moved nothing, and the search said that no constant helps."""
    merged = tokenizer.convert_tokens_to_ids("k")
    tokenizer.add_tokens(["></"])
    closing = tokenizer.convert_tokens_to_ids("></")

    def written(ids):
        turn = Turn(prompt_ids=(5,), completion_ids=tuple(ids), logprobs=None, text="")
        return [Trajectory([turn], stop_reason=StopReason.ANSWER)]

    wanted = {"</k": _ids(agent, "</k")}
    plain = _ids(agent, "</k")
    _check_spelling(agent, wanted, written([7, *plain]))
    _check_spelling(agent, wanted, written([7, 8]))  # which is not written at all
    message = re.escape(
        "A constant on '</k' would move nothing: it is encoded to '<' '/' 'k', but the model writes it in '></' 'k'. Pass '></k'."
    )
    with pytest.raises(ValueError, match=message):
        _check_spelling(agent, wanted, written([7, closing, merged]))


def test_a_constant_is_tried_at_each_temperature(agent):
    """Alone the higher temperature is better, and with the constant the lower: a search of the temperature first would not find it."""

    def score(evaluation):
        moved = "sequence_bias" in agent.settings.generation_kwargs
        return {(0.0, False): 0.0, (1.0, False): 0.5, (0.0, True): 1.0, (1.0, True): 0.9}[
            agent.settings.temperature, moved
        ]

    found = search_scalar_control(
        agent, rows(1), LookupEnvironment, ["k"], values=(1.0,), temperatures=(0.0, 1.0), score=score
    )
    assert (found.temperature, found.constants, found.score) == (0.0, {"k": 1.0}, 1.0)
    assert found.settings.temperature == 0.0


def test_constants_are_found_one_after_the_other(agent):
    """A score that wants two of three tokens up: it is known what a setting is worth from the constants alone."""
    wanted = {"a": 2.0, "b": 2.0}

    def score(evaluation):
        names = {"a": 1.0, "b": 0.5, "c": 0.0}
        bias = agent.settings.generation_kwargs.get("sequence_bias", [])
        held = {agent.tokenizer.convert_ids_to_tokens(ids[0]): value for ids, value in bias}
        return sum(names[name] for name, value in held.items() if wanted.get(name) == value)

    found = search_scalar_control(
        agent,
        rows(1),
        LookupEnvironment,
        ["a", "b", "c"],
        values=(-2.0, 2.0),
        temperatures=(0.0,),
        most=3,
        score=score,
    )
    assert found.constants == wanted and found.score == 1.5


def test_an_interrupted_search_goes_on(agent):
    """Killed after each setting in turn, it tries none of them again and finds the same."""
    letter = agent.tokenizer.convert_tokens_to_ids("k")
    played = []

    def letters(evaluation):
        played.append(agent.settings)
        return float(sum(turn.completion_ids.count(letter) for t in evaluation.trajectories for turn in t.turns))

    def search(**more):
        return search_scalar_control(
            agent, rows(2), LookupEnvironment, ["z", "k"], values=(-30.0, 30.0), temperatures=(0.0, 1.0), most=1,
            score=letters, **more,
        )  # fmt: skip

    whole = search()
    assert len(played) == len(whole.tried) == 2 + 2 * 2 * 2
    played.clear()
    kept: list[dict] = []

    def one_more(tried):
        kept.append(json.loads(json.dumps(tried)))
        raise KeyboardInterrupt

    for number in range(len(whole.tried)):
        with pytest.raises(KeyboardInterrupt):
            search(on_setting=one_more, tried=kept)
        assert len(played) == len(kept) == number + 1
    assert search(tried=kept) == whole and len(played) == len(kept)


def test_what_cannot_be_searched_is_refused(agent):
    with pytest.raises(ValueError, match="temperatures must hold at least one"):
        search_scalar_control(agent, rows(1), LookupEnvironment, [], temperatures=())
    with pytest.raises(ValueError, match="'' is none"):
        search_scalar_control(agent, rows(1), LookupEnvironment, [""])


def test_a_control_is_kept_in_a_file_and_applied_to_other_settings(agent, tmp_path):
    found = search_scalar_control(
        agent, rows(2), LookupEnvironment, ["k"], values=(30.0,), temperatures=(0.5,), most=1,
        score=lambda evaluation: float(agent.settings.generation_kwargs != {}),
    )  # fmt: skip
    found.save(tmp_path / "new" / "control.json")
    again = ScalarControl.load(tmp_path / "new" / "control.json")
    assert again == found
    longer = dataclasses.replace(agent.settings, max_turns=9, temperature=1.0)
    changed = again.apply(longer)
    assert (changed.max_turns, changed.temperature) == (9, 0.5)
    assert changed.generation_kwargs == found.settings.generation_kwargs and changed.generation_kwargs
    ((token, _),) = changed.generation_kwargs["sequence_bias"]
    own = {"no_repeat_ngram_size": 3, "sequence_bias": [[[5], 2.0], [token, 1.0]]}
    merged = again.apply(dataclasses.replace(longer, generation_kwargs=own)).generation_kwargs
    assert merged == {"no_repeat_ngram_size": 3, "sequence_bias": [[[5], 2.0], [token, 30.0]]}
    nothing = dataclasses.replace(again, settings=dataclasses.replace(again.settings, generation_kwargs={}))
    assert nothing.apply(dataclasses.replace(longer, generation_kwargs=own)).generation_kwargs == own
    (tmp_path / "other.json").write_text('{"temperature": 1.0, "colour": 2}')
    with pytest.raises(ValueError, match="colour"):
        ScalarControl.load(tmp_path / "other.json")


def test_a_constant_is_added_to_those_that_the_agent_has(agent, tokenizer):
    """As of an earlier search."""
    letter, other = tokenizer.convert_tokens_to_ids(["k", "z"])
    agent.settings = dataclasses.replace(
        agent.settings, generation_kwargs={"sequence_bias": [[[letter], 10.0], [[other], -3.0]]}
    )

    def letters(evaluation):
        return float(sum(turn.completion_ids.count(letter) for t in evaluation.trajectories for turn in t.turns))

    found = search_scalar_control(
        agent, rows(2), LookupEnvironment, ["k"], values=(-40.0, 20.0), temperatures=(0.0,), most=1, score=letters
    )
    assert found.constants == {"k": 20.0}
    assert found.settings.generation_kwargs == {"sequence_bias": [[[letter], 30.0], [[other], -3.0]]}
    tried = search_scalar_control(
        agent, rows(1), LookupEnvironment, ["k"], values=(20.0,), temperatures=(0.0,), most=1,
        score=lambda evaluation: float(agent.settings.generation_kwargs["sequence_bias"] == [[[letter], 30.0], [[other], -3.0]]),
    )  # fmt: skip
    assert tried.constants == {"k": 20.0}
