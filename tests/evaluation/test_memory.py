"""What states are worth in an evaluation: scores, by turn, by the age of what they hold, and in its files."""

from __future__ import annotations

from statistics import fmean

import pytest
from support.helpers import tiny_model, tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent, StopReason, Trajectory
from mem1_trl.evaluation import Evaluation, evaluate_agent, measure_memory
from mem1_trl.evaluation.memory import summarize_memory
from mem1_trl.evaluation.result import EvaluatedTask
from mem1_trl.evaluation.retention import ObjectiveTrace
from mem1_trl.update.memory_value import memory_values
from mem1_trl.update.state_value import StateValue


def make_agent(model, tokenizer):
    settings = {"max_turns": 4, "max_completion_length": 64, "max_observation_length": 40, "conversational": False}
    return Mem1Agent(model, tokenizer, SHORT, **settings)


def test_an_evaluation_measures_it_and_keeps_it(tmp_path, actor, tokenizer):
    agent = make_agent(actor, tokenizer)
    rows = [{"prompt": f"q{i}?", "secret": str(i % 3), "answers": [[str(i % 3)]]} for i in range(4)]
    plain = evaluate_agent(agent, rows, LookupEnvironment)
    found = measure_memory(agent, plain)
    expected = memory_values(actor, plain.trajectories, agent.syntax, [row["answers"] for row in rows])
    assert [list(task.memory_values) for task in found.tasks] == expected
    sound = [[value for value in row if value is not None] for row in expected]
    assert any(sound)
    for task, values in zip(found.tasks, sound, strict=True):
        for name in ("next_turn", "next_action", "answer"):
            mean = fmean(getattr(value, name) for value in values)
            assert task.scores[f"memory_value/{name}"] == pytest.approx(mean)
    assert found.metrics["memory_value/answer"] == pytest.approx(fmean(fmean(v.answer for v in r) for r in sound))
    assert found.metrics["exact_match"] == plain.metrics["exact_match"]
    assert found.settings["memory_value"] == "blank" and "memory_value/answer" not in plain.metrics
    few = evaluate_agent(agent, rows, LookupEnvironment, resamples=2)
    assert few.statistics["reward"] != plain.statistics["reward"]
    assert measure_memory(agent, few).statistics.items() >= few.statistics.items(), (
        "other intervals are what they were"
    )
    found.save(tmp_path, "one")
    again = Evaluation.load(tmp_path, "one")
    assert again.tasks[0].memory_values == found.tasks[0].memory_values
    assert again.memory_value == found.memory_value and len(again.memory_value["by_turn"]) >= 1
    # A file from before knows nothing of it
    plain.save(tmp_path, "two")
    assert Evaluation.load(tmp_path, "two").memory_value == {}


def test_by_turn_and_by_age():
    """An answer that turn 1 saw is in the states of turns 2 and 3 at the ages 1 and 2; one that was never seen has no age."""
    values = (
        StateValue(1, 1.0, 0.5, 2.0, (1.5, 0.5)),
        StateValue(2, 3.0, 1.0, 4.0, (3.0, 1.0)),
        StateValue(3, 5.0, 1.5, 8.0, (7.0, 1.0)),
    )
    traces = [ObjectiveTrace(("a",), None, False, seen, (), "never_found") for seen in (1, None)]
    trajectory = Trajectory([], stop_reason=StopReason.ERROR)
    one = EvaluatedTask(0, {}, "", trajectory, {}, tuple(traces), memory_values=(*values, None))
    other = EvaluatedTask(1, {}, "", trajectory, {}, memory_values=(StateValue(1, 3.0, None), None))
    found = summarize_memory([one, other])
    assert found["by_turn"] == [
        {"turn": 1, "next_turn": 2.0, "next_action": 0.5, "answer": 2.0, "count": 2},
        {"turn": 2, "next_turn": 3.0, "next_action": 1.0, "answer": 4.0, "count": 1},
        {"turn": 3, "next_turn": 5.0, "next_action": 1.5, "answer": 8.0, "count": 1},
    ]
    assert found["by_age"] == [{"age": 1, "answer": 3.0, "count": 1}, {"age": 2, "answer": 7.0, "count": 1}]
    assert summarize_memory([EvaluatedTask(0, {}, "", trajectory, {})]) == {}


def test_what_cannot_be_measured_is_said():
    agent = make_agent(tiny_model(), tiny_tokenizer())
    evaluation = Evaluation.from_tasks([EvaluatedTask(0, {}, "", Trajectory([], stop_reason=StopReason.ERROR), {})])
    with pytest.raises(ValueError, match=r"replace must be one of 'blank', 'swap', got 'drop'"):
        measure_memory(agent, evaluation, "drop")
    agent.model = None
    with pytest.raises(ValueError, match=r"needs a model that is loaded here"):
        measure_memory(agent, evaluation)


def test_what_was_measured_before_is_replaced(actor, tokenizer):
    """A single episode has no other whose state could be put there: nothing is left of the numbers of empty states."""
    agent = make_agent(actor, tokenizer)
    plain = evaluate_agent(agent, [{"prompt": "q0?", "secret": "0", "answers": [["0"]]}], LookupEnvironment)
    blank = measure_memory(agent, plain)
    swapped = measure_memory(agent, blank, "swap")
    assert "memory_value/next_turn" in blank.metrics and swapped.settings["memory_value"] == "swap"
    assert not [name for name in swapped.metrics if name.startswith("memory_value/")]
    assert swapped.metrics["exact_match"] == plain.metrics["exact_match"]
