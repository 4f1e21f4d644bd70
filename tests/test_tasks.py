"""Composed tasks and the loaders of question-answering files."""

import json
import logging

import pytest
from datasets import Dataset

from mem1_trl.facts import load_facts
from mem1_trl.tasks import compose_objectives, load_qa_dataset


def make_dataset(questions, answers=None):
    answers = answers or [f"a{i}" for i in range(len(questions))]
    return Dataset.from_dict({"question": questions, "answer": answers})


def test_consecutive_rows_make_a_task():
    tasks = compose_objectives(make_dataset(["q0", "q1", "q2", "q3", "q4"]), n=2)
    assert tasks.column_names == ["prompt", "questions", "answers", "num_objectives"]
    assert tasks[:] == {
        "prompt": ["q0; q1", "q2; q3"],  # q4 is the remainder
        "questions": [["q0", "q1"], ["q2", "q3"]],
        "answers": [[["a0"], ["a1"]], [["a2"], ["a3"]]],
        "num_objectives": [2, 2],
    }


def test_one_objective_keeps_every_row():
    assert compose_objectives(make_dataset(["q0", "q0"]), n=1)["prompt"] == ["q0", "q0"]


def test_list_answers_are_aliases_and_columns_can_be_named():
    dataset = Dataset.from_dict({"q": [" q0 ", "q1"], "golden": [["x", "y", "x"], ["z"]], "id": [1, 2]})
    tasks = compose_objectives(dataset, n=2, question="q", answer="golden")
    assert tasks[0] == {
        "prompt": "q0; q1",
        "questions": ["q0", "q1"],
        "answers": [["x", "y"], ["z"]],
        "num_objectives": 2,
    }


def test_seed_shuffles_reproducibly_and_keeps_answers_with_their_questions():
    dataset = make_dataset([f"q{i}" for i in range(40)])
    plain, first, again, other = (compose_objectives(dataset, n=4, seed=seed) for seed in (None, 0, 0, 1))
    assert first["prompt"] == again["prompt"]
    assert len({tuple(tasks["prompt"]) for tasks in (plain, first, other)}) == 3
    pairs = {(q, a[0]) for row in first for q, a in zip(row["questions"], row["answers"])}
    assert pairs == {(f"q{i}", f"a{i}") for i in range(40)}


def test_a_repeated_question_waits_for_another_task():
    tasks = compose_objectives(make_dataset(["q0", "q0", "q1", "q2"], ["a", "b", "c", "d"]), n=2)
    assert tasks["questions"] == [["q0", "q1"], ["q0", "q2"]]
    assert tasks["answers"] == [[["a"], ["c"]], [["b"], ["d"]]]
    # However the repeats lie, no task holds a question twice and no possible task is lost at the end.
    tasks = compose_objectives(make_dataset(["q0"] * 4 + ["q1"] * 4 + ["q2"] * 4), n=3)
    assert [sorted(questions) for questions in tasks["questions"]] == [["q0", "q1", "q2"]] * 4


def test_answers_that_hold_the_separator_cannot_be_asked_for(caplog):
    dataset = make_dataset(["q0", "q1", "q2"], [["x; y"], ["x; y", "xy"], ["z"]])
    with caplog.at_level(logging.WARNING):
        tasks = compose_objectives(dataset, n=2)
    assert tasks["answers"] == [[["xy"], ["z"]]]
    assert "Skipped 1 of 3 questions" in caplog.text


def test_composes_the_bundled_questions():
    questions = load_facts().questions("train")
    tasks = compose_objectives(questions, n=16, seed=0)
    assert len(tasks) == len(questions) // 16
    assert all(len(set(row["questions"])) == 16 == row["num_objectives"] for row in tasks)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be a whole number of at least 1, got 0"),
        ({"n": 2.0}, ValueError, r"n must be a whole number of at least 1, got 2\.0"),
        ({"n": "2"}, ValueError, "n must be a whole number of at least 1, got '2'"),
        ({"n": True}, ValueError, "n must be a whole number of at least 1, got True"),
        ({"n": 3}, ValueError, "2 usable rows do not make one task of 3"),
        ({"n": 2, "question": "query"}, ValueError, "no column 'query' .it has 'question', 'answer'."),
        ({"n": 2, "answer": "golden_answers"}, ValueError, "no column 'golden_answers'"),
    ],
)
def test_bad_arguments_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        compose_objectives(make_dataset(["q0", "q1"]), **kwargs)


def test_bad_data_is_refused():
    with pytest.raises(ValueError, match="do not make one task of 2 different questions"):
        compose_objectives(make_dataset(["q0", "q0"]), n=2)
    with pytest.raises(ValueError, match="Row 1 has the question"):
        compose_objectives(make_dataset(["q0", " "]), n=2)
    with pytest.raises(ValueError, match=r"Column 'answer' has \['a'\]: an answer must be a text, a number"):
        compose_objectives(make_dataset(["q0", "q1"], [[["a"]], [["b"]]]), n=2)
    with pytest.raises(TypeError, match="pass one split"):
        compose_objectives(make_dataset(["q0", "q1"]).to_iterable_dataset(), n=2)


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


FLASHRAG = [
    {"id": "test_0", "question": "who got the first nobel prize in physics", "golden_answers": ["Wilhelm Rontgen"]},
    {"id": "test_1", "question": "when is the next film out", "golden_answers": ["2018", "May 2018"], "metadata": {}},
]
HOTPOTQA = [
    {
        "_id": "5a8b57f25542995d1e6f1371",
        "question": "Were both directors of the same nationality?",
        "answer": "yes",
        "supporting_facts": [["First Director", 0], ["Second Director", 2]],
        "context": [["First Director", ["A sentence. ", "Another."]], ["Second Director", ["Third.", "4", "5"]]],
        "type": "comparison",
        "level": "hard",
    },
    {
        "_id": "5a8c7595554299585d9e36b6",
        "question": "What post did she hold?",
        "answer": "Chief of Protocol",
        "supporting_facts": [["Her", 1]],
        "context": [["Her", ["One.", "Two."]]],
        "type": "bridge",
        "level": "hard",
    },
]
NQ_OPEN = [
    {"question": "where did they film the island", "answer": ["Hawaii", "Oahu"]},
    {"question": "who plays the drums", "answer": ["Phil"]},
]
TRIVIAQA = [
    {"question": "Who wrote it?", "answer": {"value": "Twain", "aliases": ["Mark Twain", "Twain"], "type": "X"}},
    {"question": "Which city?", "answer": {"value": "Rome", "aliases": [], "type": "X"}},
]
SQUAD = [
    {"question": "Who?", "answers": {"text": ["Ann", "Ann"], "answer_start": [3, 3]}},
    {"question": "Where?", "answers": {"text": ["here"], "answer_start": [0]}},
]


@pytest.mark.parametrize(
    ("name", "rows", "answers"),
    [
        ("flashrag.jsonl", FLASHRAG, [["Wilhelm Rontgen"], ["2018", "May 2018"]]),
        ("hotpotqa.json", HOTPOTQA, [["yes"], ["Chief of Protocol"]]),
        ("nq_open.jsonl", NQ_OPEN, [["Hawaii", "Oahu"], ["Phil"]]),
        ("triviaqa.jsonl", TRIVIAQA, [["Twain", "Mark Twain"], ["Rome"]]),
        ("squad.json", SQUAD, [["Ann"], ["here"]]),
    ],
)
def test_known_schemas(tmp_path, name, rows, answers):
    dataset = load_qa_dataset(write(tmp_path / name, rows), cache_dir=str(tmp_path / "cache"))
    assert dataset.column_names == ["question", "answer"]
    assert dataset["question"] == [row["question"] for row in rows]
    assert dataset["answer"] == answers
    tasks = compose_objectives(dataset, n=2)
    assert tasks[0]["answers"] == answers


def test_rows_without_an_answer_are_left_out(tmp_path, caplog):
    path = write(tmp_path / "part.jsonl", [*NQ_OPEN, {"question": "unanswerable", "answer": []}])
    with caplog.at_level(logging.WARNING):
        dataset = load_qa_dataset(str(path), cache_dir=str(tmp_path / "cache"))
    assert dataset["answer"] == [["Hawaii", "Oahu"], ["Phil"]]
    assert "Left out 1 of 3 rows" in caplog.text


def test_a_blank_question_is_none_for_all_that_reads_them(tmp_path):
    path = write(tmp_path / "blank.jsonl", [{"question": " \t", "answer": "a"}, {"question": " who? ", "answer": "b"}])
    dataset = load_qa_dataset(str(path))
    assert dataset["question"] == ["who?"]
    assert compose_objectives(dataset, 1)["questions"] == [["who?"]]


MUSIQUE = [
    {"question": "Who?", "answer": "Ann", "answer_aliases": ["Anna", "Ann"]},
    {"question": "Where?", "answer": "here", "answer_aliases": []},
]
POPQA = [
    {"question": "Who?", "obj": "x", "possible_answers": '["Ann", "Anna \\"A\\""]'},
    {"question": "Where?", "obj": "x", "possible_answers": '["here"]'},
]


@pytest.mark.parametrize(
    ("rows", "answers"), [(MUSIQUE, [["Ann", "Anna"], ["here"]]), (POPQA, [["Ann", 'Anna "A"'], ["here"]])]
)
def test_aliases_in_columns_of_their_own(tmp_path, rows, answers):
    assert load_qa_dataset(write(tmp_path / "x.jsonl", rows))["answer"] == answers


ANSWERS = [
    ("NA", ["NA"]),
    ("None", ["None"]),
    ("null", ["null"]),
    ("nan", ["nan"]),
    (" 007 ", ["007"]),
    (26, ["26"]),
    (26.0, ["26"]),
    (3.5, ["3.5"]),
    (True, ["yes", "true"]),
    (False, ["no", "false"]),
    (["Paris", 26, None, True], ["Paris", "26", "yes", "true"]),
    ("[Fe]", ["[Fe]"]),  # a text in brackets is not a list
    ("[1, 2", ["[1, 2"]),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_every_answer_of_a_json_file_is_read_as_it_was_written(tmp_path, suffix):
    rows = [{"question": f"q{n}", "answer": answer} for n, (answer, _) in enumerate(ANSWERS)]
    dataset = load_qa_dataset(write(tmp_path / f"mixed{suffix}", rows))
    assert dataset["answer"] == [expected for _, expected in ANSWERS]


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("NA", ["NA"]),
        ("None", ["None"]),
        ("null", ["null"]),
        ("007", ["007"]),
        ("26.0", ["26.0"]),
        ("True", ["True"]),
        ("\"['Paris', 'Paris, France']\"", ["Paris", "Paris, France"]),  # as pandas writes a list
        ("\"['Paris' 'New York']\"", ["Paris", "New York"]),  # as pandas writes an array
        ('"[""Paris"", ""Lutetia""]"', ["Paris", "Lutetia"]),  # as JSON is written
        ('"[\'O\'\'Brien\', ""it\'s""]"', ["O", "Brien", "it's"]),
        ("[26]", ["26"]),
        ("\"['Paris', None]\"", ["Paris"]),
        ('"[""Paris"", null]"', ["Paris"]),
        ("\"[np.str_('Paris'), np.str_('Lutetia')]\"", ["Paris", "Lutetia"]),  # as NumPy 2 writes a list of its texts
        ("\"{'text': ['Paris', 'Lutetia'], 'answer_start': [1, 2]}\"", ["Paris", "Lutetia"]),
        ('"{""value"": ""Paris"", ""aliases"": [""Lutetia"", null]}"', ["Paris", "Lutetia"]),
        ("{x: 1}", ["{x: 1}"]),
        ("[26 None]", ["26"]),
        ("[-1 2]", ["-1", "2"]),
        ('"[True, nan]"', ["yes", "true"]),
        ("[007]", ["[007]"]),
        ("[-]", ["[-]"]),
        ("[see below]", ["[see below]"]),
        ("\"['a', f('b')]\"", ["['a', f('b')]"]),
        ("(" * 3000, ["(" * 3000]),
        ("[" * 3000 + "]" * 3000, ["[" * 3000 + "]" * 3000]),
    ],
)
def test_every_cell_of_a_csv_file_is_read_as_it_was_written(tmp_path, cell, answers):
    (tmp_path / "x.csv").write_text(f"\ufeffquestion,answer\nwho?,{cell}\n", encoding="utf-8")
    assert load_qa_dataset(tmp_path / "x.csv")[:] == {"question": ["who?"], "answer": [answers]}
    (tmp_path / "x.tsv").write_text(f"question\tanswer\nwho?\t{cell}\n", encoding="utf-8")
    assert load_qa_dataset(tmp_path / "x.tsv")[:] == {"question": ["who?"], "answer": [answers]}


def test_forms_of_json_and_csv(tmp_path, caplog):
    (tmp_path / "columns.json").write_text(json.dumps({"question": ["q"], "answer": ["a"]}))
    (tmp_path / "lines.json").write_text('{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b"}\n')
    (tmp_path / "semicolons.csv").write_text("question;answer\nq;a\nr;\n")
    assert load_qa_dataset(tmp_path / "columns.json")["answer"] == [["a"]]
    assert load_qa_dataset(tmp_path / "lines.json")["answer"] == [["a"], ["b"]]
    assert load_qa_dataset(tmp_path / "semicolons.csv", delimiter=";")["answer"] == [["a"]]
    assert "Left out 1 of 2 rows" in caplog.text  # an empty cell is not an answer
    Dataset.from_dict({"question": ["q"], "answer": [["NA", "b"]]}).to_parquet(str(tmp_path / "x.parquet"))
    assert load_qa_dataset(tmp_path / "x.parquet")["answer"] == [["NA", "b"]]


def test_the_remedy_that_is_named_exists(tmp_path):
    path = write(tmp_path / "other.jsonl", [{"query": "q", "label": 3}])
    with pytest.raises(ValueError, match="name its columns with `question=` and `answer=`"):
        load_qa_dataset(path)
    assert load_qa_dataset(path, question="query", answer="label")[:] == {"question": ["q"], "answer": [["3"]]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", "[1]\n", r"Row 1 of .*x\.jsonl is \[1\]: it must be an object"),
        ("x.json", '{"a": 1}', "must hold a list of rows, got an object: name the key of its rows with `field=`"),
        ("x.json", "3", "must hold a list of rows, got 3"),
        ("x.json", "[" * 3000, "is not JSON .it is nested more than 64 deep"),
        ("x.csv", "question,answer\na,b,c\n", "a row has more cells than the first line"),
        (
            "x.csv",  # as pandas writes a row of SQuAD
            "question,answer\nq,\"{'text': array(['Paris'], dtype=object)}\"\n",
            "Column 'answer' must have answers, got a mapping that was written as text, .*: keep the data set as JSON lines or Parquet",
        ),
        ("x.csv", "question,answer\nq,\"{'text': " + "[" * 3000, "got a mapping that was written as text"),
        (
            "x.jsonl",
            '{"question": "q", "answer": [{"a": 1}]}\n',
            "Column 'answer' has {'a': 1}: an answer must be a text",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_qa_dataset(tmp_path / name)


def test_arguments_reach_the_loader(tmp_path):
    path = tmp_path / "nested.json"
    path.write_text(json.dumps({"version": "1", "data": NQ_OPEN}), encoding="utf-8")
    dataset = load_qa_dataset(path, field="data", cache_dir=str(tmp_path / "cache"))
    assert dataset["answer"] == [["Hawaii", "Oahu"], ["Phil"]]


def test_unknown_schemas_and_files_are_refused(tmp_path):
    cache = {"cache_dir": str(tmp_path / "cache")}
    path = write(tmp_path / "other.jsonl", [{"query": "q", "label": "a"}])
    with pytest.raises(ValueError, match="has the columns 'query', 'label', but needs 'question'"):
        load_qa_dataset(path, **cache)
    path = write(tmp_path / "mapping.jsonl", [{"question": "q", "answer": {"span": "a"}}])
    with pytest.raises(ValueError, match="mappings with the keys 'span'"):
        load_qa_dataset(path, **cache)
    path = write(tmp_path / "hidden.jsonl", [{"question": "q", "answer": ""}])
    with pytest.raises(ValueError, match=r"No row of .*hidden\.jsonl has an answer"):
        load_qa_dataset(path, **cache)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_qa_dataset(tmp_path / "absent.jsonl")
    (tmp_path / "questions.txt").write_text("q")
    with pytest.raises(ValueError, match=r"not a \.jsonl, "):
        load_qa_dataset(tmp_path / "questions.txt")


def test_an_option_that_a_file_has_not_is_refused(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "a?", "answer": "b"}\n')
    (tmp_path / "q.csv").write_text("question;answer\na?;b\n")
    for file, options, words in (
        ("q.jsonl", {"field": "x"}, "'field' is no option for the file q.jsonl, which takes none"),
        ("q.jsonl", {"revision": "x"}, "'revision' is no option for the file q.jsonl"),
        ("q.csv", {"sep": ";"}, "'sep' is no option for the file q.csv, which takes delimiter"),
    ):
        with pytest.raises(ValueError, match=words):
            load_qa_dataset(str(tmp_path / file), **options)
    assert len(load_qa_dataset(str(tmp_path / "q.csv"), delimiter=";")) == 1
