"""Tests of the one reader of JSON lines."""

from __future__ import annotations

import gzip
import json

import pytest

from mem1_trl.evaluation import Evaluation
from mem1_trl.json_lines import drop_unfinished_line, read_json_lines


def write(path, text: str):
    path.write_bytes(text.encode())
    return path


def test_values_come_with_the_numbers_of_their_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n\n[2]\n"é"')
    assert list(read_json_lines(path)) == [(1, {"a": 1}), (3, [2]), (4, "é")]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_json_lines(packed)) == [(1, {"a": 1}), (3, [2]), (4, "é")]


def test_an_error_names_file_line_and_advice(tmp_path):
    path = write(tmp_path / "a.jsonl", "1\n\n{\n")
    lines = read_json_lines(path, "write it again.")
    assert next(lines) == (1, 1)
    with pytest.raises(ValueError, match=r"^Line 3 of .*a\.jsonl is not JSON \(.*\): write it again\.$"):
        next(lines)


def test_a_line_that_was_being_written_is_skipped_or_cut_off(tmp_path):
    path = write(tmp_path / "a.jsonl", '1\n2\n{"half')
    skipped: list[int] = []
    assert list(read_json_lines(path, skip_unfinished=True, skipped=skipped.append)) == [(1, 1), (2, 2)]
    assert skipped == [3]
    with pytest.raises(ValueError, match="Line 3"):
        list(read_json_lines(path))
    drop_unfinished_line(path)
    assert path.read_bytes() == b"1\n2\n"
    drop_unfinished_line(path)
    assert path.read_bytes() == b"1\n2\n"


def test_a_last_line_that_is_whole_needs_no_end(tmp_path):
    path = write(tmp_path / "a.jsonl", '1\n{"whole": 2}')
    skipped: list[int] = []
    assert list(read_json_lines(path, skip_unfinished=True, skipped=skipped.append)) == [(1, 1), (2, {"whole": 2})]
    assert skipped == []
    with pytest.raises(ValueError, match=r"Line 1 of .* is not JSON"):
        list(read_json_lines(write(path, '{"half\n2'), skip_unfinished=True))


def test_all_bytes_are_reported_as_progress(tmp_path):
    path = write(tmp_path / "a.jsonl", "1\n" * 2500)
    read: list[int] = []
    assert sum(1 for _ in read_json_lines(path, advance=read.append)) == 2500
    assert sum(read) == 5000 and len(read) == 3


def test_an_evaluation_names_the_line_that_is_broken(tmp_path):
    """The one reader that named none."""
    (tmp_path / "x-1.json").write_text(json.dumps({"format": 1, "count": 1}))
    write(tmp_path / "x-1.jsonl", "{\n")
    with pytest.raises(ValueError, match=r"Line 1 of .*x-1\.jsonl is not JSON .*Evaluate again"):
        Evaluation.load(tmp_path, "x-1")
