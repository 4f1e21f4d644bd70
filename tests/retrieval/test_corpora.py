"""Corpora in the shapes that people have: other keys besides, titles that are missing, files of every kind, a folder of texts."""

from __future__ import annotations

import json
import re

import pytest
from datasets import Dataset

from mem1_trl.cli import main
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.local_rows import LONGEST_PART, read_texts
from mem1_trl.retrieval import Bm25Index, open_retriever
from mem1_trl.retrieval.passages import read_corpus
from mem1_trl.text_parts import split_text


@pytest.mark.parametrize(
    ("passage", "expected"),
    [
        ({"title": "Iron", "text": "Fe"}, ("Iron", "Fe")),
        ({"text": "Fe"}, ("", "Fe")),
        ({"title": None, "text": "Fe", "id": 3}, ("", "Fe")),
        ({"title": float("nan"), "text": "Fe"}, ("", "Fe")),
        ((None, "Fe"), ("", "Fe")),
        ({"title": 26, "text": 55.8}, ("26", "55.8")),
        ({"contents": '"Iron"\nFe\nmetal'}, ('"Iron"', "Fe\nmetal")),
        ({"id": "0", "contents": '"Iron"\nFe', "score": 1.0}, ('"Iron"', "Fe")),
        ({"title": None, "contents": "Iron\nFe"}, ("Iron", "Fe")),
        ({"title": "Iron", "contents": '"Iron"\nFe'}, ("Iron", "Fe")),
        ({"title": "Iron", "contents": "Fe is its symbol.\nIt rusts."}, ("Iron", "Fe is its symbol.\nIt rusts.")),
        ({"title": "Iron", "text": "Fe", "contents": "Iron\nFe"}, ("Iron", "Fe")),
    ],
)
def test_shapes_of_a_passage(passage, expected):
    assert list(read_corpus([passage])) == [expected]
    assert Bm25Index([passage]).search(["fe iron 26 55"])[0][0].title == expected[0]


@pytest.mark.parametrize(
    ("passage", "columns", "message"),
    [
        (
            {"title": "Iron"},
            {},
            "Passage 0 has no 'text' .it has 'title'.: name its columns with `title=` and `text=`",
        ),
        ({"title": "Iron", "text": None}, {}, "has text=None, which must be a text"),
        ({"name": "Iron", "text": "Fe"}, {"title": "nme"}, "has no 'nme' .it has 'name', 'text'."),
        ({"title": "Iron", "text": ["Fe", "metal"]}, {}, r"has text=\['Fe', 'metal'\], which must be a text"),
        ({"contents": 3}, {}, "has no 'text'"),
        ("Iron", {}, "neither a mapping nor a pair"),
    ],
)
def test_what_is_not_a_passage_is_said(passage, columns, message):
    with pytest.raises(ValueError, match=message):
        list(read_corpus([passage], **columns))


ROWS = [{"name": "Iron", "body": "Iron has the symbol Fe."}, {"name": "NA", "body": "None is null."}]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    (tmp_path / "c.csv").write_text("name,body\nIron,Iron has the symbol Fe.\nNA,None is null.\n")
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "d.parquet"))
    return [tmp_path / name for name in ("a.jsonl", "b.json", "c.csv", "d.parquet")]


def test_every_kind_of_file_is_a_corpus(files, tmp_path):
    for number, path in enumerate(files):
        memory = open_retriever(path, title="name", text="body")
        disk = Bm25Index.build(path, tmp_path / f"i{number}", title="name", text="body", show_progress=False)
        for index in (memory, disk):
            assert [[(p.title, p.text) for p in found] for found in index.search(["symbol", "null"])] == [
                [("Iron", "Iron has the symbol Fe.")],
                [("NA", "None is null.")],
            ], path
        environment = RetrievalQAEnvironment.factory(path, top_k=1, title="name", text="body")()
        assert environment.search("symbol") == "Doc 1(Title: Iron) Iron has the symbol Fe.\n"


def test_the_remedy_that_is_named_exists_where_it_is_named(files, tmp_path, capsys):
    with pytest.raises(ValueError, match="name its columns with `title=` and `text=`"):
        RetrievalQAEnvironment.factory(files[0])
    assert main(["index", str(files[0]), str(tmp_path / "i")]) == 2
    assert "name its columns with --title and --text" in capsys.readouterr().err
    assert main(["index", str(files[0]), str(tmp_path / "i"), "--title", "name", "--text", "body"]) == 0
    assert main(["retriever", "--corpus", str(files[0])]) == 2
    assert "name its columns with --title and --text" in capsys.readouterr().err


def test_a_model_card_names_the_columns(files):
    environment = RetrievalQAEnvironment.factory(str(files[0]), title="name", text="body")()
    assert environment._recipe is not None and "'name'" in str(environment._recipe)


class Found:
    def search(self, queries, top_k=3):
        return [[] for _ in queries]


def test_columns_are_refused_where_nothing_reads_them(files, tmp_path, capsys):
    index, texts = tmp_path / "index", tmp_path / "texts"
    Bm25Index.build(files[0], index, title="name", text="body", show_progress=False)
    texts.mkdir()
    (texts / "a.txt").write_text("Iron has the symbol Fe.")
    for corpus, what in (
        (index, "an index, which holds its passages"),
        (texts, "a folder of texts"),
        ("http://127.0.0.1:1", "the address of a retriever"),
        (Found(), "a retriever"),
    ):
        words = f"`text='body'` is about passages that are mappings or rows of a file, and the corpus is {what}: leave it out."
        with pytest.raises(ValueError, match=re.escape(words)):
            RetrievalQAEnvironment.factory(corpus, text="body")
    assert main(["index", str(texts), str(tmp_path / "new"), "--title", "name"]) == 2
    assert not (tmp_path / "new").exists()
    assert main(["retriever", "--corpus", str(index), "--text", "body"]) == 2
    of_index, of_retriever = capsys.readouterr().err.splitlines()
    assert of_index == (
        "mem1 index: `--title 'name'` is about passages that are mappings or rows of a file, and the corpus is a folder of texts: leave it out."
    )
    assert of_retriever.startswith("mem1 retriever: `--text 'body'` is about passages")


# A folder of texts


def test_a_folder_of_texts_is_a_corpus(tmp_path, capsys):
    folder = tmp_path / "notes"
    (folder / "metals").mkdir(parents=True)
    (folder / "metals" / "iron.txt").write_bytes("\ufeffIron has the symbol Fe.\r\n\r\nIt rusts.\r\n".encode())
    (folder / "käse.md").write_bytes("# Käse\n\nGouda ü".encode())
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "empty.txt").write_text(" \n")
    assert list(read_texts(folder)) == [
        {"title": "käse", "text": "# Käse\n\nGouda ü"},
        {"title": "metals/iron", "text": "Iron has the symbol Fe.\n\nIt rusts."},
    ]
    for index in (
        open_retriever(folder),
        open_retriever(str(folder)),
        Bm25Index.build(folder, tmp_path / "index", show_progress=False),
    ):
        assert index.search(["symbol"])[0][0].title == "metals/iron"
    assert main(["index", str(folder), str(tmp_path / "cli")]) == 0
    assert ": 2 passages, " in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"none' holds no text files \(\.txt, \.md\)\. A directory that `mem1 index`"
    ):
        open_retriever(tmp_path / "none")


def test_a_long_text_becomes_passages_that_hold_all_of_it(tmp_path):
    paragraphs = [f"Paragraph {n}. " + "word " * (n * 7 % 90) for n in range(60)] + ["x" * 2500, "long " * 900]
    (tmp_path / "long.txt").write_text("\n\n".join(paragraphs))
    parts = [passage["text"] for passage in read_texts(tmp_path)]
    assert max(map(len, parts)) <= LONGEST_PART and min(map(len, parts)) > 0
    assert "".join("".join(parts).split()) == "".join("".join(paragraphs).split())
    assert len(parts) < len(paragraphs) / 2, "short paragraphs stand together"
    assert all(part.split()[-1] == "long" for part in parts[-3:]), "words are not cut"


def test_parts_of_a_text():
    assert split_text("", 5) == split_text(" " * 12, 5) == []
    assert split_text(" " * 12 + "abc", 5) == ["abc"]
    assert split_text("abc", 5) == ["abc"]
    assert split_text("aaaaaaaaa bbbb", 10) == ["aaaaaaaaa", "bbbb"]
    assert split_text("abcdefgh", 3) == ["abc", "def", "gh"]
    assert split_text("abcdef", 4, reach=lambda head: min(2, len(head))) == ["ab", "cd", "ef"]


# What is not what it should be


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_csv_file_in_another_encoding_is_refused_and_not_read_with_marks(tmp_path, encoding):
    """An answer in which a mark stands for each accent is one that nobody can give."""
    path = tmp_path / "x.csv"
    path.write_bytes("title,text\nBogotá,Gold lies in Bogotá.\n".encode(encoding))
    with pytest.raises(ValueError, match=r"x\.csv is not text in UTF-8: save it in that encoding\."):
        open_retriever(path)


def test_a_text_in_another_encoding_is_refused_and_not_read_with_marks(tmp_path):
    (tmp_path / "a.txt").write_bytes("Brasília, nicht São Paulo".encode("cp1252"))
    with pytest.raises(ValueError, match=r"a\.txt is not text in UTF-8: save it in that encoding\."):
        open_retriever(tmp_path)


def test_a_text_in_utf_16_is_read_by_its_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes("Bogotá hat Gold.".encode("utf-16"))
    assert list(read_texts(tmp_path)) == [{"title": "a", "text": "Bogotá hat Gold."}]


@pytest.mark.parametrize("passage", [("Iron", None), {"title": "Iron", "text": None}, ("Iron", float("nan"))])
def test_a_passage_whose_text_is_missing_is_refused_in_every_form(passage):
    with pytest.raises(ValueError, match="Passage 1 has text=None, which must be a text"):
        Bm25Index([("Gold", "Au"), passage])


def test_the_end_of_a_line_is_no_part_of_the_title():
    index = Bm25Index([{"contents": "Iron\r\nHas the symbol Fe.\r\nIt rusts."}])
    (passage,) = index.search(["symbol"])[0]
    assert (passage.title, passage.text) == ("Iron", "Has the symbol Fe.\r\nIt rusts.")


@pytest.mark.parametrize(
    "search",
    [
        lambda queries, top_k=3: [],
        lambda queries, top_k=3: [{"title": "a", "text": "b"}],
        lambda queries, top_k=3: [[{"title": "a", "text": "b"}]],
        lambda queries, top_k=3: None,
    ],
)
def test_a_retriever_of_ones_own_is_told_what_it_must_return(search):
    class Mine:
        def search(self, queries, top_k=3):
            return search(queries, top_k)

    environment = RetrievalQAEnvironment.factory(Mine())()
    environment.reset(prompt="x")
    with pytest.raises(
        TypeError, match="`search` of Mine must return one list of `Passage` for each of its 1 queries, got"
    ):
        environment.search("gold")
