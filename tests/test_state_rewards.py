"""Rewards for states: their numbers, and how each can be had without a memory that helps."""

from __future__ import annotations

import pytest
from support.helpers import tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, ScriptedGenerator

from mem1_trl.environment_runtime.actions import ActionSet
from mem1_trl.rewards import exact_match, retained_reward, state_budget_penalty
from mem1_trl.rollout.episode import Episode
from mem1_trl.rollout.settings import AgentSettings
from mem1_trl.rollout.turn_loop import Rollout

TOKENIZER = tiny_tokenizer()
ANSWERS = [["42", "forty-two"], ["Rome"]]


class Facts(LookupEnvironment):
    def search(self, query: str) -> str:
        """Look it up."""
        return {"a": "it is 42", "b": "Rome or Paris"}.get(query, "nothing")


def play(*texts: str, context: str = "mem1"):
    environment = Facts()
    environment.reset()
    settings = AgentSettings(max_turns=6, max_observation_length=80, context=context)
    rollout = Rollout(TOKENIZER, SHORT, settings, ScriptedGenerator(TOKENIZER, [[t] for t in texts]))
    actions = rollout.contexts.actions(ActionSet(environment, SHORT))
    return rollout.run([Episode(TOKENIZER("q?")["input_ids"], environment, actions)])


def turn(state: str, query: str = "a", action: str = "search") -> str:
    return f"<think>{state}</think><{action}>{query}</{action}>"


def test_what_was_found_is_retained():
    trajectories = play(turn("42 Rome"), turn("it is 42", "b"), turn("forty-two", "c"), turn("Rome. 42.", "d"), turn("Rome", "42; Rome", "answer"))  # fmt: skip
    # Nothing was found before turn 1; then 42; then both
    assert retained_reward([""], trajectories, [ANSWERS]) == [[None, 1.0, 0.5, 1.0, 0.5]]
    with pytest.raises(ValueError, match="no column 'answers'"):
        retained_reward([""], trajectories)


@pytest.mark.parametrize("answers", ["26", [26], []])
def test_answers_of_another_form_are_refused(answers):
    """A text was read letter by letter, each as an objective."""
    trajectories = play(turn("42 Rome"), turn("Rome", "42; Rome", "answer"))
    with pytest.raises(ValueError, match="`answers`"):
        retained_reward([""], trajectories, [answers])
    assert retained_reward([""], trajectories, [None]) == [[None, None]]


def test_what_rewrite_says_in_place_of_the_past_is_retained():
    texts = (
        turn("k"),
        turn("it is 42", "b"),
        turn("k", "42, Rome", "rewrite"),
        turn("Rome"),
        turn("k", "42; Rome", "answer"),
    )
    (trajectory,) = play(*texts, context="on_demand")
    assert trajectory.turns[2].acts_as_state and trajectory.turns[2].kept_text == "k\n42, Rome"
    assert retained_reward([""], [trajectory], [ANSWERS]) == [[None, 1.0, 1.0, 0.5, 0.0]]


def test_length_within_a_budget():
    trajectories = play(turn("abc"), turn("abcdef", "b"), turn("", "x", "answer"))
    assert [t.state_tokens for t in trajectories[0].turns] == [5, 8, 2]  # the tags are a token each
    assert state_budget_penalty(6, 0.25)([""], trajectories) == [[0.0, -0.5, 0.0]]
    for arguments, words in (
        ((-1,), "max_tokens must be at least 0, got -1"),
        ((5, 0.0), "per_token must be a finite"),
    ):
        with pytest.raises(ValueError, match=words):
            state_budget_penalty(*arguments)


def test_copying_everything_has_the_full_reward_for_retention():
    """Gamed: a state that copies whole observations holds every answer and chose nothing; the episode's answer is wrong."""
    hoarder = play(
        turn("", "a"), turn("it is 42", "b"), turn("it is 42 Rome or Paris", "it is 42; Rome or Paris", "answer")
    )
    reader = play(turn("", "a"), turn("42", "b"), turn("42 Rome", "42; Rome", "answer"))
    assert retained_reward([""], hoarder, [ANSWERS]) == retained_reward([""], reader, [ANSWERS]) == [[None, 1.0, 1.0]]
    assert exact_match(hoarder[0].answer, ANSWERS) == 0.0 and exact_match(reader[0].answer, ANSWERS) == 2.0


def test_never_looking_is_never_forgetting():
    """Gamed: an episode that finds nothing loses nothing, and is not below one that found both and kept one."""
    idle = play(turn("", "nowhere"), turn("", "42; Rome", "answer"))
    busy = play(turn("", "a"), turn("42", "b"), turn("42", "42; Rome", "answer"))
    assert retained_reward([""], idle, [ANSWERS]) == [[None, None]]
    assert retained_reward([""], busy, [ANSWERS]) == [[None, 1.0, 0.5]]


def test_an_empty_state_is_within_every_budget():
    """Gamed: nothing is remembered, or it is written outside of the state, where the next context holds it all the same."""
    budget = state_budget_penalty(4)
    empty = play(turn("", "a"), turn("", "x", "answer"))
    outside = play("<think></think>it is 42 and Rome<search>a</search>", turn("", "42; Rome", "answer"))
    assert budget([""], empty) == budget([""], outside) == [[0.0, 0.0]]
    assert "it is 42 and Rome" in TOKENIZER.decode(outside[0].turns[1].prompt_ids)
