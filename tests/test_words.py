"""The words that BM25 compares: in scripts without spaces, and across Unicode's forms."""

from __future__ import annotations

import pickle
import unicodedata

import pytest

from mem1_trl.retrieval import Bm25Index, bm25, bm25_files
from mem1_trl.rollout.external_memory import ExternalMemory, Note
from mem1_trl.web import LocalWeb
from mem1_trl.words import words_of_passage, words_of_query


@pytest.mark.parametrize(
    ("text", "passage", "query"),
    [
        ("Iron has the symbol Fe.", "iron has the symbol fe", None),
        ("C, 7; snake_case don't", "c 7 snake_case don t", None),
        ("元素記号", "元素 素記 記号 元 素 記 号", "元素 素記 記号"),
        ("鉄", "鉄", "鉄"),
        ("鉄の記号はFeです。", "鉄の の記 記号 号は 鉄 記 号 fe です", "鉄の の記 記号 号は fe です"),
        ("東京tokyo 2020年", "東京 東 京 tokyo 2020 年", "東京 tokyo 2020 年"),
        ("ธาตุเหล็ก", "ธา าตุ ตุเ เห หล็ ล็ก", "ธา าตุ ตุเ เห หล็ ล็ก"),
        ("서울은 수도다", "서울 울은 수도 도다", None),
        ("हिन्दी भाषा", "हिन्दी भाषा", None),
        ("naïve Straße İ", "naïve strasse i̇", None),
        ("Ｆｅ ﬁre ｱｲｱﾝ", "fe fire アイ イア アン", None),
        ("ΟΔΟΣ οδος", "οδοσ οδοσ", None),
        ("", "", None),
    ],
)
def test_words(text, passage, query):
    assert words_of_passage(text) == passage.split()
    assert words_of_query(text) == (passage if query is None else query).split()


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_every_form_of_a_text_has_the_same_words(form):
    for text in ("Côte d’Ivoire, Åland", "가나다 서울", "हिन्दी क़", "Việt ngữ", "ガギグゲゴ", "ά ῒ"):
        assert words_of_passage(unicodedata.normalize(form, text)) == words_of_passage(text)


WORLD = [
    ("鉄", "鉄は原子番号26の元素である。元素記号はFe。"),
    ("金", "金は原子番号79の元素である。元素記号はAu。"),
    ("北京", "北京是中华人民共和国的首都。"),
    ("กรุงเทพมหานคร", "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย"),
    ("เชียงใหม่", "เชียงใหม่เป็นเมืองทางภาคเหนือ"),
    ("서울", "서울은 대한민국의 수도이다."),
    ("Côte d'Ivoire", "Yamoussoukro is the capital of Côte d'Ivoire."),
    ("Curaçao", "Willemstad is the capital."),
]
FOUND = {
    "鉄の元素記号は何ですか": "鉄",
    "鉄": "鉄",
    "金": "金",
    "中华人民共和国首都": "北京",
    "เมืองหลวงของประเทศไทย": "กรุงเทพมหานคร",
    "เชียงใหม่": "เชียงใหม่",
    "대한민국 수도": "서울",
    unicodedata.normalize("NFD", "Côte"): "Côte d'Ivoire",
    "ＣＵＲＡÇＡＯ": "Curaçao",
}


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_passages_are_found_in_every_script_and_form(tmp_path, stored):
    corpus = [tuple(unicodedata.normalize(stored, part) for part in passage) for passage in WORLD]
    memory = Bm25Index(corpus)
    disk = Bm25Index.build(corpus, tmp_path / "index", show_progress=False)
    for query, title in FOUND.items():
        [[best]] = memory.search([query], 1)
        assert unicodedata.normalize("NFC", best.title) == title, query
        assert best.title == unicodedata.normalize(stored, title), "a passage is given as it was written"
    assert disk.search(list(FOUND), 5) == memory.search(list(FOUND), 5)
    assert pickle.loads(pickle.dumps(memory)).search(list(FOUND)) == memory.search(list(FOUND))
    assert memory.search(["量子"]) == [[]]


def test_stopwords_are_folded_as_words_are():
    index = Bm25Index([("a", "Straße の 鉄"), ("b", "の 鉄")], stopwords=["STRASSE", "の"])
    assert index.search(["strasse", "の", "鉄"])[0:2] == [[], []] and len(index.search(["鉄"])[0]) == 2


def test_an_index_of_the_first_version_finds_what_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr(bm25, "words_of_passage", bm25._words_of_version_1)
    monkeypatch.setattr(bm25_files, "VERSION", 1)
    old = Bm25Index.build([*WORLD, ("Straße", "x")], tmp_path / "index", show_progress=False)
    monkeypatch.undo()
    loaded = Bm25Index.load(tmp_path / "index")
    for query, title in (("Côte", "Côte d'Ivoire"), ("straße", "Straße"), ("北京", "北京")):
        assert [passage.title for passage in loaded.search([query], 1)[0]] == [title]
    assert loaded.search(["首都"]) == old.search(["首都"]) == [[]]
    assert pickle.loads(pickle.dumps(loaded)).search(["straße"]) == loaded.search(["straße"])


def test_a_local_web_shows_the_sentence_that_fits():
    web = LocalWeb([{"url": "https://a.example", "title": "鉄", "text": "鉄は金属である。元素記号はFeである。重い。"}])
    assert web.search("元素記号")[0].snippet == "元素記号はFeである。"


def test_a_memory_holds_notes_in_every_script():
    memory = ExternalMemory()
    memory.add(Note("首都", "北京是中国的首都。", (1,)))
    memory.add(Note("?", "... !", (2,)))
    assert [note.ids for note in memory.recall("首都是哪里", 3)] == [(1,)] and len(memory.notes) == 1
