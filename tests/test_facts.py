"""The bundled corpus: answers stand in their passages, can be found, and are what the script builds."""

import gzip
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from mem1_trl.facts import load_facts
from mem1_trl.retrieval import Bm25Index
from mem1_trl.rewards import exact_match, normalize_answer

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "src" / "mem1_trl" / "data"


def all_questions():
    facts = load_facts()
    return [*facts.questions("train"), *facts.questions("test")]


def test_known_facts():
    by_question = {row["question"]: row["answer"] for row in all_questions()}
    expected = {
        ("What is the capital of {}?", "Which city is the capital of {}?"): {"France": "Paris", "Japan": "Tokyo"},
        ("What is the chemical symbol of {}?", "Which chemical symbol stands for {}?"): {"iron": "Fe", "gold": "Au"},
        ("What is the atomic number of {}?", "Which atomic number does {} have?"): {"carbon": "6", "uranium": "92"},
    }
    for wordings, answers in expected.items():
        for entity, answer in answers.items():
            found = [by_question[w.format(entity)] for w in wordings if w.format(entity) in by_question]
            assert found == [answer], entity


def test_every_answer_stands_in_the_passage_of_its_entity():
    facts = load_facts()
    passages = {row["title"]: f" {normalize_answer(row['text'])} " for row in facts.corpus}
    assert len(passages) == len(facts.corpus), "titles must be unique"
    # Whole words: the answer "1" must not be found inside "1684".
    missing = [row for row in all_questions() if f" {normalize_answer(row['answer'])} " not in passages[row["entity"]]]
    assert missing == []


def test_answers_are_short_and_can_be_given():
    for row in all_questions():
        assert 1 <= len(row["answer"].split()) <= 5, row
        assert exact_match(row["answer"], [row["answer"]]) == 1.0, row
        assert normalize_answer(row["answer"]), row


def test_passages_are_short_plain_prose():
    for row in load_facts().corpus:
        assert row["text"].isascii() and row["title"].isascii()
        assert len(row["text"].split()) <= 65, row
        assert "None" not in row["text"] and "{" not in row["text"] and "  " not in row["text"], row
        assert row["text"][0].isupper() and row["text"].endswith("."), row


def test_questions_are_unique_and_unambiguous():
    counts = Counter(row["question"] for row in all_questions())
    assert [question for question, count in counts.items() if count > 1] == []


def test_split_is_by_entity():
    facts = load_facts()
    train, test = (set(facts.questions(split)["entity"]) for split in ("train", "test"))
    assert train.isdisjoint(test)
    assert train | test == set(facts.corpus["title"])
    assert 0.15 < len(test) / len(train | test) < 0.25
    assert set(facts.questions("test")["kind"]) == {"country", "element"}
    with pytest.raises(ValueError, match="'train' or 'test'"):
        facts.questions("validation")


@pytest.mark.parametrize("stopwords", [None, "en"])
def test_bm25_finds_the_passage(stopwords):
    facts = load_facts()
    index = Bm25Index(facts.corpus, stopwords=stopwords)
    rows = all_questions()
    results = index.search([row["question"] for row in rows], top_k=3)
    found = sum(row["entity"] in [p.title for p in passages] for row, passages in zip(rows, results)) / len(rows)
    print(f"recall@3 of {len(rows)} questions, stopwords={stopwords}: {found:.4f}")
    assert found >= 0.97


def test_file_is_what_the_script_builds():
    for package in ("countryinfo", "mendeleev"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, a development dependency")
    spec = importlib.util.spec_from_file_location("build_facts", ROOT / "scripts" / "build_facts.py")
    build_facts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_facts)
    committed = (DATA / "facts.jsonl.gz").read_bytes()
    assert gzip.decompress(committed) == build_facts.serialise(build_facts.build_records())
    assert committed[4:8] == bytes(4), "the gzip header must hold no date"
    assert len(committed) < 300_000


def test_notice_carries_both_licences():
    notice = (DATA / "NOTICE").read_text(encoding="utf-8")
    assert "Copyright (c) 2018 Porimol Chandro" in notice
    assert "Copyright (c) 2015 Lukasz Mentel" in notice
    assert notice.count("The above copyright notice and this permission notice shall be included in all") == 2
    assert notice.count("Permission is hereby granted, free of charge") == 2
