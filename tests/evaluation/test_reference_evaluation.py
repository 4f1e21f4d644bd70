"""The reference script's numbers on files of its schema, worked out by hand, beside the corrected ones."""

from __future__ import annotations

import json

import pytest

from mem1_trl.evaluation.reference import reference_metrics


def count(text: str) -> int:
    """One token for each word."""
    return len(text.split())


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Words: t0 = 3, r0 = 5, i0 = 4; t1 = 4, r1 = 7 (the state, and an answer of three words)
TWO_TURNS = {
    "q": "two questions here ",
    "t0": "<think> k </think> ",
    "r0": "<think> k </think> <search>x </search> ",
    "i0": "<information> the Paris </information> ",
    "t1": "<think> k l </think> ",
    "r1": "<think> k l </think> <answer>The Paris; 25</answer> ",
    "Golden_answer": [["Paris"], ["26", "25"]],
    "Exact_match": 1,
    "Model_estimated_match": 1,
    "index": 0,
    "hash": "a",
}
# The answer is wrong and loosely so: Exact_match 0
WRONG = {
    "q": "one question ",
    "t0": "<think> m </think> ",
    "r0": "<think> m </think> <answer>big dog</answer> ",
    "Golden_answer": ["the dog", "hound"],
    "Exact_match": False,
    "Model_estimated_match": 1,
}


def test_references_are_read_alike_in_both_modes_or_refused(tmp_path):
    right = {**WRONG, "r0": "<think> m </think> <answer>paris</answer> ", "Golden_answer": "Paris"}
    path = write(tmp_path / "text.jsonl", right)
    assert reference_metrics(path, count_tokens=count)["em"] == 1.0
    assert reference_metrics(path, mode="corrected", count_tokens=count)["exact_match"] == 1.0
    for golden in ([], 42, [[]], None):
        path = write(tmp_path / "bad.jsonl", TWO_TURNS, {**right, "Golden_answer": golden})
        for mode in ("reference", "corrected"):
            with pytest.raises(ValueError, match=r"Line 2 of .*bad\.jsonl has Golden_answer=.*: it must be an answer"):
                reference_metrics(path, mode=mode, count_tokens=count)
    unmatched = {key: value for key, value in TWO_TURNS.items() if key != "Model_estimated_match"}
    path = write(tmp_path / "unmatched.jsonl", unmatched)
    with pytest.raises(ValueError, match=r"Line 1 of .* has no 'Model_estimated_match', .* use mode='corrected'"):
        reference_metrics(path, count_tokens=count)
    assert reference_metrics(path, mode="corrected", count_tokens=count)["count"] == 1.0


def test_what_the_script_prints(tmp_path):
    path = write(tmp_path / "a.jsonl", TWO_TURNS, WRONG)
    metrics = reference_metrics(path, count_tokens=count)
    assert count(TWO_TURNS["r0"]) == 5 and count(TWO_TURNS["r1"]) == 7 and count(WRONG["r0"]) == 5
    # Articles are not dropped: "the paris" is not "paris", but "25" is right. F1 of "the paris": 2 / 3; of "big dog"
    # against "the dog" 1 / 2.
    assert metrics["em"] == (1 + 0) / 2
    assert metrics["f1"] == pytest.approx((1 + 2 / 3 + 0.5) / 2)
    assert metrics["mbe"] == 1.0
    # Turn 0: t + r = 8 words. Turn 1: those 8 again, 4 observed, t1 4, r1 7: 23. Only the first row is partly right.
    assert metrics["peak_token_compression"] == 23.0
    assert metrics["peak_token_non_compression"] == 23.0
    # Row 1: (0 + 1) * 3 + (3 + 2) * 5 + (12 + 2) * 4 + (16 + 3) * 7 = 217; row 2: (0 + 1) * 3 + (3 + 2) * 5 = 28
    assert metrics["dependency_compression"] == (217 + 28) / 2
    assert metrics["dependency_non_compression"] == (217 + 28) / 2
    assert metrics["compression_ratio"] == (23 / 23 + 8 / 8) / 2


def test_what_it_should_have_been(tmp_path):
    path = write(tmp_path / "a.jsonl", {**TWO_TURNS, "time_taken": 3.0}, WRONG)
    metrics = reference_metrics(path, mode="corrected", count_tokens=count)
    assert metrics["exact_match"] == (2 + 0) / 2  # "The Paris" is "Paris"
    assert metrics["f1"] == pytest.approx((2 + 2 / 3) / 2)  # {big, dog} against {dog}
    assert metrics["exact_match_per_objective"] == 0.5 and metrics["success"] == 0.5
    assert metrics["f1_per_objective"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["turns"] == 1.5 and metrics["generated_tokens"] == (12 + 5) / 2
    # Row 1: 5 + 4 read and 7 written in turn 1, behind 3 words of prompt; row 2: 5 behind 2
    assert metrics["peak_tokens_without_prompt"] == (16 + 5) / 2
    assert metrics["peak_tokens"] == (19 + 7) / 2
    # (3 + 2.5) * 5 + (3 + 9 + 3.5) * 7, and (2 + 2.5) * 5
    assert metrics["dependency_length"] == (27.5 + 108.5 + 22.5) / 2
    assert metrics["seconds"] == 3.0 and metrics["errors"] == 0.0 and metrics["count"] == 2.0


def many_turns(number: int) -> dict:
    row = {**WRONG, "Exact_match": 1}
    for turn in range(number):
        row |= {f"t{turn}": "s ", f"r{turn}": "s a ", f"i{turn}": "o "}
    return row | {f"r{number - 1}": "s <answer>dog</answer> "}


def test_contexts_that_grow_and_contexts_that_do_not(tmp_path):
    path = write(tmp_path / "a.jsonl", many_turns(4))
    reference = reference_metrics(path, count_tokens=count)
    # Each turn 3 words with its state twice, 1 observed: compressed 3 + 1 + 3, else 4 * 4
    assert reference["peak_token_compression"] == 7.0 and reference["peak_token_non_compression"] == 16.0
    # Blocks of 1 and 2 words: C * 1 + (C + 1 + 1) * 2, with C = 0, 4, 4, 4, or 0, 4, 8, 12
    assert reference["dependency_compression"] == 4 + 3 * (4 + 12)
    assert reference["dependency_non_compression"] == 4 + (4 + 12) + (8 + 20) + (12 + 28)
    assert reference["compression_ratio"] == 7 / 16
    assert reference_metrics(path, "corrected", count_tokens=count)["peak_tokens_without_prompt"] == 5.0
    full = reference_metrics(path, "corrected", context="full", count_tokens=count)
    assert full["peak_tokens_without_prompt"] == 3 * 3 + 2
    assert full["dependency_length"] == sum((2 + context + 1) * 2 for context in (0, 3, 6, 9))


def test_an_observation_at_the_end_counts_for_the_peak_of_the_script_only(tmp_path):
    last = {**TWO_TURNS, "i1": "too late , " * 10}
    path = write(tmp_path / "a.jsonl", last)
    # Behind turn 1: its t1 4 and r1 7, and 30 words observed
    assert reference_metrics(path, count_tokens=count)["peak_token_compression"] == 4 + 7 + 30
    assert reference_metrics(path, "corrected", count_tokens=count)["peak_tokens_without_prompt"] == 16.0


def test_only_ten_turns_are_read(tmp_path):
    path = write(tmp_path / "a.jsonl", many_turns(12))
    reference = reference_metrics(path, count_tokens=count)
    assert reference["em"] == 0.0 and reference["peak_token_non_compression"] == 10 * 4
    corrected = reference_metrics(path, "corrected", count_tokens=count)
    assert corrected["exact_match"] == 1.0 and corrected["turns"] == 12.0


def test_an_answer_inside_a_passage_fools_the_script_only(tmp_path):
    row = {**WRONG, "r0": "<search>x</search>", "i0": "<information><answer>hound</answer></information>"}
    path = write(tmp_path / "a.jsonl", row)
    assert reference_metrics(path, count_tokens=count)["em"] == 1.0
    assert reference_metrics(path, "corrected", count_tokens=count)["exact_match"] == 0.0
    unbalanced = write(tmp_path / "b.jsonl", {**WRONG, "r0": "<answer>x<answer>hound</answer>"})
    assert reference_metrics(unbalanced, count_tokens=count)["em"] == 0.0
    assert reference_metrics(unbalanced, "corrected", count_tokens=count)["exact_match"] == 1.0


def test_external_memories_count(tmp_path):
    row = {**TWO_TURNS, "memories": ["one", "one two"]}
    path = write(tmp_path / "a.jsonl", row)
    assert reference_metrics(path, count_tokens=count)["peak_token_compression"] == 23 + 2
    corrected = reference_metrics(path, "corrected", count_tokens=count)
    assert corrected["peak_tokens_without_prompt"] == 16 + 2
    assert corrected["dependency_length"] == (3 + 1 + 2.5) * 5 + (3 + 2 + 9 + 3.5) * 7


def test_rows_that_raised(tmp_path):
    failed = {"index": 3, "hash": "b", "error": "boom", "Golden_answer": "Unknown", "Exact_match": False}
    path = write(tmp_path / "a.jsonl", TWO_TURNS, failed)
    with pytest.raises(ValueError, match=r"Row 2 .* raised"):
        reference_metrics(path, count_tokens=count)
    corrected = reference_metrics(path, "corrected", count_tokens=count)
    assert corrected["exact_match"] == 1.0 and corrected["success"] == 0.5
    assert corrected["errors"] == 0.5 and corrected["count"] == 2.0 and corrected["turns"] == 2.0


def test_no_row_is_partly_right(tmp_path):
    metrics = reference_metrics(write(tmp_path / "a.jsonl", WRONG), count_tokens=count)
    assert metrics["peak_token_compression"] is None and metrics["dependency_compression"] == 28.0


def test_bad_input(tmp_path):
    path = write(tmp_path / "a.jsonl", WRONG)
    with pytest.raises(ValueError, match="mode='paper'"):
        reference_metrics(path, "paper", count_tokens=count)
    with pytest.raises(ValueError, match="context='truncate'"):
        reference_metrics(path, context="truncate", count_tokens=count)
    with pytest.raises(ValueError, match=r"Line 1 .* no 'q'"):
        reference_metrics(write(tmp_path / "b.jsonl", {"index": 0}), count_tokens=count)
    (tmp_path / "c.jsonl").write_text("{}\n{")
    with pytest.raises(ValueError, match=r"Line 1"):
        reference_metrics(tmp_path / "c.jsonl", count_tokens=count)
    (tmp_path / "d.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        reference_metrics(tmp_path / "d.jsonl", count_tokens=count)
