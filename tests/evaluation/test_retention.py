"""What an agent saw and forgot, on episodes written by hand."""

from __future__ import annotations

import pytest

from mem1_trl import Mem1Protocol, StopReason, Trajectory, Turn
from mem1_trl.evaluation.retention import (
    RetentionPoint,
    contains_answer,
    count_outcomes,
    retention_curve,
    trace_objectives,
    without_hint,
)


def episode(turns: list[tuple[str | None, str | None]], answer: str | None = None, **kwargs) -> Trajectory:
    """`turns` lists (state, observation)."""
    made = [Turn((1,), (2,), state=state, observation=observation) for state, observation in turns]
    return Trajectory(made, answer=answer, **kwargs)


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It has 13 moons.", "3", False),
        ("It has 3 moons.", "3", True),
        ("3.5 per cent", "3", False),
        ("3.5 per cent", "3.5", True),
        ("about 1,000 people", "1", False),
        ("about 1,000 people", "1000", True),
        ("answers: 3,4", "4", True),
        ("in 1984.", "1984", True),
        ("<think>capital=Paris;element=Fe</think>", "Paris", True),
        ("<information>Paris</information>", "paris", True),
        ("The capital is The Hague", "Hague", True),
        ("capital: the   Hague.", "The Hague", True),
        ("seat in the U.S.", "US", True),
        ("Jean-Luc Picard", "Jean-Luc Picard", True),
        ("Jean Luc Picard", "Jean-Luc Picard", True),
        ("Parisian", "Paris", False),
        ("Comparis", "paris", False),
        ("United Arab Emirates", "United Emirates", False),
        ("Isle of the Man", "isle of man", True),
        ("Cura\u00e7ao", "Curac\u0327ao", True),
        ("“São Tomé”", "São Tomé", True),
        ("blood group A", "A", True),
        ("a group of blood", "A", False),
        ("rated A+ by them", "A+", True),
        ("首都は東京です", "東京", True),
        ("", "Paris", False),
        (None, "Paris", False),
        ("anything", "", False),
        ("20°C", "°", False),
    ],
)
def test_a_text_holds_an_answer_as_whole_words(text, answer, found):
    assert contains_answer(text, [answer]) is found


def test_any_alias_will_do():
    assert contains_answer("born in NYC", ["New York", "NYC"])
    assert not contains_answer("born in Boston", ["New York", "NYC"])
    assert not contains_answer("born in Boston", [])


def test_each_outcome():
    turns = [
        ("nothing yet", "Rome lies in Italy."),
        ("Italy", "Fe is iron; Oslo is in Norway."),
        ("Italy, iron", None),
    ]
    answers = [["Italy"], ["Norway"], ["iron"], ["Peru"]]
    traces = trace_objectives(episode(turns, "Italy; Sweden; steel; Chile"), answers)
    assert [trace.outcome for trace in traces] == ["correct", "forgotten", "misreported", "never_found"]
    assert [trace.first_seen_turn for trace in traces] == [1, 2, 2, None]
    assert [trace.kept for trace in traces] == [(True, True), (False,), (True,), ()]
    assert [trace.given for trace in traces] == ["Italy", "Sweden", "steel", "Chile"]
    assert [trace.correct for trace in traces] == [True, False, False, False]
    assert traces[0].gold == ("Italy",)
    assert count_outcomes(traces) == {"never_found": 1, "forgotten": 1, "misreported": 1, "correct": 1}


def test_an_answer_of_the_wrong_length_gives_nothing():
    traces = trace_objectives(episode([("", "a is Rome"), ("Rome", None)], "Rome"), [["Rome"], ["Oslo"]])
    assert [(t.given, t.correct, t.outcome) for t in traces] == [
        (None, False, "misreported"),
        (None, False, "never_found"),
    ]


def test_a_right_answer_needs_no_observation():
    (trace,) = trace_objectives(episode([("Rome", None)], "Rome"), ["Rome"])
    assert (trace.outcome, trace.first_seen_turn, trace.kept) == ("correct", None, ())


def test_lost_and_kept_again_is_kept_at_the_end():
    turns = [("", "Rome"), ("", "x"), ("Rome", None)]
    (trace,) = trace_objectives(episode(turns, "Oslo"), ["Rome"])
    assert trace.kept == (False, True) and trace.outcome == "misreported"


def test_what_is_seen_last_of_all_had_no_turn_to_be_forgotten_in():
    trajectory = episode([("", "Rome")], None, stop_reason=StopReason.CONTEXT_OVERFLOW)
    (trace,) = trace_objectives(trajectory, ["Rome"])
    assert trace.kept == () and trace.outcome == "misreported"


def test_a_hint_about_turns_is_no_find():
    protocol = Mem1Protocol()
    observation = "\n\n<information>[HINT]You have 3 turns left.[/HINT]\n\nnothing</information>\n\n"
    last = (
        "<information>[HINT]You have 1 turn left. You must answer the question in the next turn.[/HINT]x</information>"
    )
    trajectory = episode([("", observation), ("", last), ("", None)])
    assert [t.first_seen_turn for t in trace_objectives(trajectory, ["3", "1", "left"], protocol)] == [None] * 3
    assert trace_objectives(trajectory, ["3"])[0].first_seen_turn == 1  # nobody said what a hint is
    note = "<information>[Only the first 1 of 3 calls were run.]\nnothing</information>"
    assert trace_objectives(episode([("", note), ("", None)]), ["3"], protocol)[0].outcome == "never_found"
    assert without_hint("[HINT]You have 12 turns left.[/HINT]It has 12 moons", protocol).strip() == "It has 12 moons"
    assert trace_objectives(episode([("", last.replace("x", "1 moon"))]), ["1"], protocol)[0].first_seen_turn == 1


def test_a_history_remembers_what_it_reads():
    turns = [("", "Rome"), ("", "x"), ("", None)]
    (by_state,) = trace_objectives(episode(turns, "Oslo"), ["Rome"])
    assert by_state.kept == (False, False) and by_state.outcome == "forgotten"
    contexts = ["", "<search>a</search><information>Rome</information>", "x"]
    (by_context,) = trace_objectives(episode(turns, "Oslo"), ["Rome"], contexts=contexts)
    assert by_context.kept == (True, False) and by_context.outcome == "forgotten"
    with pytest.raises(ValueError, match="3 turns and 1 contexts"):
        trace_objectives(episode(turns), ["Rome"], contexts=[""])


def test_retention_by_age():
    one = trace_objectives(episode([("", "Rome"), ("Rome", "Oslo"), ("Rome", None)]), ["Rome", "Oslo", "Peru"])
    two = trace_objectives(episode([("", "Rome"), ("Rome", ""), ("", ""), ("", None)]), ["Rome"])
    # age 1: Rome kept, Oslo not, Rome kept; age 2: Rome kept, Rome not; age 3: Rome not
    assert retention_curve([*one, *two]) == [
        RetentionPoint(1, pytest.approx(2 / 3), 3),
        RetentionPoint(2, 0.5, 2),
        RetentionPoint(3, 0.0, 1),
    ]
    assert retention_curve([]) == []
