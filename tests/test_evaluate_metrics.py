"""EM and F1 as metrics of the `evaluate` library."""

from __future__ import annotations

import evaluate
import pytest

from mem1_trl.evaluate_metrics import EXACT_MATCH_PATH, F1, F1_PATH, ExactMatch

PREDICTIONS = ["Paris; 25", "x", "The Hague; b", "one answer"]
REFERENCES = [[["Paris"], ["26", "25"]], [["y", "X."]], [["Hague"], ["b c"]], [["one answer"], ["another"]]]
EXPECTED = {
    "exact_match": (2 + 1 + 1 + 0) / 4,
    "exact_match_per_objective": (1 + 1 + 0.5 + 0) / 4,
    "f1": (2 + 1 + 1 + 2 / 3) / 4,
    "f1_per_objective": (1 + 1 + (1 + 2 / 3) / 2) / 4,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise OSError("a metric must not need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_they_combine():
    scores = evaluate.combine([ExactMatch(), F1()]).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert scores == {
        **EXPECTED,
        "exact_match": 1.0,
        "f1": pytest.approx((2 + 1 + 1 + 2 / 3) / 4),
        "f1_per_objective": pytest.approx(EXPECTED["f1_per_objective"]),
    }


@pytest.mark.parametrize(
    ("path", "metric"), [(EXACT_MATCH_PATH, ExactMatch), (F1_PATH, F1)], ids=["exact_match", "f1"]
)
def test_they_load_from_their_path(path, metric):
    loaded = evaluate.load(path)
    assert loaded.compute(predictions=PREDICTIONS, references=REFERENCES) == metric().compute(
        predictions=PREDICTIONS, references=REFERENCES
    )
    for prediction, reference in zip(PREDICTIONS, REFERENCES):
        loaded.add(prediction=prediction, reference=reference)
    name = "exact_match" if metric is ExactMatch else "f1"
    assert loaded.compute()[name] == pytest.approx(EXPECTED[name])


def test_one_accepted_answer_for_each_objective():
    assert ExactMatch().compute(predictions=["a1; b"], references=[["A1", "c"]]) == {
        "exact_match": 1.0,
        "exact_match_per_objective": 0.5,
    }


@pytest.mark.parametrize("metric", [ExactMatch, F1])
def test_one_objective_may_have_one_answer_and_another_a_list(metric):
    """In one task, and from task to task."""
    name = "exact_match" if metric is ExactMatch else "f1"
    given = {
        "predictions": ["Paris; 26", "Rome; x", "Oslo"],
        "references": [["Paris", ["27", "26"]], [["Rome", "Roma"], "y"], ["Oslo"]],
    }
    expected = {name: (2 + 1 + 1) / 3, f"{name}_per_objective": (1 + 0.5 + 1) / 3}
    assert metric().compute(**given) == pytest.approx(expected)
    one_by_one = metric()
    for prediction, reference in zip(given["predictions"], given["references"]):
        one_by_one.add(prediction=prediction, reference=reference)
    assert one_by_one.compute() == pytest.approx(expected)


def test_a_text_in_place_of_the_answers_of_a_task_is_refused():
    with pytest.raises(ValueError, match="expected a list instead"):
        ExactMatch().compute(predictions=["Paris"], references=["Paris"])


@pytest.mark.parametrize("metric", [ExactMatch, F1])
def test_no_predictions_are_refused(metric):
    with pytest.raises(ValueError, match="needs at least one prediction, got none"):
        metric()._compute([], [])
