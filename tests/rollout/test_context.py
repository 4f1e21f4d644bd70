"""Which past is in the next context. The task prompt is always in it, whole (a pitfall of the reference: it truncates it)."""

import random

import pytest
from support.contexts import CONTEXT_RULES, next_context

PROMPT = [1, 2, 3]
HISTORY = [[10, 11], [20, 21, 22], [30]]


def test_mem1_keeps_the_last_turn_only():
    assert next_context("mem1", PROMPT, HISTORY) == [1, 2, 3, 30]
    assert next_context("mem1", PROMPT, HISTORY[:2]) == [1, 2, 3, 20, 21, 22]


def test_full_keeps_everything_in_order():
    assert next_context("full", PROMPT, HISTORY) == [1, 2, 3, 10, 11, 20, 21, 22, 30]


@pytest.mark.parametrize(
    ("most", "kept"),
    [
        (6, [10, 11, 20, 21, 22, 30]),
        (5, [20, 21, 22, 30]),
        (4, [20, 21, 22, 30]),
        (3, [30]),
        (1, [30]),
        (0, [30]),  # the last turn stays, or the agent would not see the answer to its own action
    ],
)
def test_truncate_drops_whole_turns_oldest_first(most, kept):
    assert next_context("truncate", PROMPT, HISTORY, most) == [1, 2, 3, *kept]


def test_truncate_does_not_skip_a_turn_that_is_too_long():
    # The oldest turn would fit, but a history with a hole is not a suffix of what happened
    assert next_context("truncate", PROMPT, [[10], [20] * 9, [30]], 5) == [1, 2, 3, 30]


@pytest.mark.parametrize("rule", CONTEXT_RULES)
def test_the_first_context_is_the_prompt(rule):
    assert next_context(rule, PROMPT, [], 4) == PROMPT


@pytest.mark.parametrize("rule", CONTEXT_RULES)
def test_the_prompt_is_never_truncated(rule):
    generator = random.Random(0)
    prompt = [generator.randrange(1000) for _ in range(500)]
    for most in (0, 1, 10, 100, 10_000):
        history: list[list[int]] = []
        for turn in range(12):
            context = next_context(rule, prompt, history, most)
            assert context[: len(prompt)] == prompt
            # What follows is an end of what happened
            everything = [token for tokens in history for token in tokens]
            tail = context[len(prompt) :]
            assert tail == everything[len(everything) - len(tail) :]
            assert rule != "truncate" or len(tail) <= max(most, len(history[-1]) if history else 0)
            history.append([generator.randrange(1000) for _ in range(turn * 7 % 40)])


def test_an_empty_turn_leaves_nothing_behind():
    assert next_context("mem1", PROMPT, [[10], []]) == PROMPT
    assert next_context("truncate", PROMPT, [[10], []], 1) == [1, 2, 3, 10]


def test_the_inputs_are_not_changed():
    prompt, history = list(PROMPT), [list(tokens) for tokens in HISTORY]
    for rule in CONTEXT_RULES:
        next_context(rule, prompt, history, 4).append(99)
    assert (prompt, history) == (PROMPT, HISTORY)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="set `max_context_length`"):
        next_context("truncate", PROMPT, HISTORY)
    with pytest.raises(ValueError, match="context must be one of 'mem1', 'full', 'truncate'"):
        next_context("window", PROMPT, HISTORY)
