"""Indexes on disk, by vectors and behind HTTP: each finds what an index in memory finds, and says what is wrong."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from support.web_site import serve_site

from mem1_trl.cli import main
from mem1_trl.environments import RetrievalQAEnvironment
from mem1_trl.facts import load_facts
from mem1_trl.retrieval import (
    Bm25Index,
    DenseIndex,
    HttpRetriever,
    Passage,
    Retriever,
    TransformersEncoder,
    bm25_files,
    http,
    open_retriever,
)
from mem1_trl.retrieval.http import _Search
from mem1_trl.retrieval.postings import Postings
from mem1_trl.retrieval.server import RetrieverServer

CORPUS = [
    ("Iron", "Iron has the symbol Fe."),
    ("Gold", "Gold has the symbol Au."),
    ("Carbon", "Carbon has the symbol C."),
]


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def words_of(generator, count, most):
    """Texts whose words are as unevenly frequent as those of a language."""
    weights = [1 / (rank + 1) for rank in range(most)]
    return [
        " ".join(f"w{n}" for n in generator.choices(range(most), weights, k=generator.randint(1, 25)))
        for _ in range(count)
    ]


# --- BM25 without walking through everything ---------------------------------------------------------------------------


@pytest.mark.parametrize(("passages", "vocabulary"), [(1, 3), (40, 5), (1500, 60), (1500, 2000)])
def test_the_best_are_found_without_walking_through_all_lists(passages, vocabulary):
    generator = random.Random(passages + vocabulary)
    corpus = list(zip(words_of(generator, passages, vocabulary), words_of(generator, passages, vocabulary)))
    index = Bm25Index(corpus)
    postings = index._postings
    for _ in range(100):
        query = generator.choice(words_of(generator, 5, vocabulary)).split()[:8]
        sums = np.zeros(passages)
        for word in query:
            number = index._vocabulary.get(word)
            if number is not None:
                entries = slice(postings._starts[number], postings._starts[number + 1])
                np.add.at(sums, postings._passages[entries], postings._scores[entries])
        for top_k in (1, 3, passages + 1):
            [found] = index.search([" ".join(query)], top_k)
            expected = np.sort(sums[sums > 0])[::-1][:top_k]
            assert [passage.score for passage in found] == pytest.approx(expected, rel=1e-5)


def test_a_list_that_cannot_change_the_result_is_only_looked_up(monkeypatch):
    count = 10_000
    entries = np.concatenate([np.array([5, 77], dtype=np.int32), np.arange(count, dtype=np.int32)])
    scores = np.concatenate([np.array([4.0, 3.0], dtype=np.float32), np.full(count, 0.01, dtype=np.float32)])
    postings = Postings(scores, entries, np.array([0, 2, 2 + count]), np.array([4.0, 0.01]), count)
    searched, original = [], np.searchsorted
    monkeypatch.setattr(np, "searchsorted", lambda *args: (searched.append(len(args[1])), original(*args))[1])
    found, totals = postings.top([1, 0], 2)
    assert found.tolist() == [5, 77] and totals.tolist() == pytest.approx([4.01, 3.01])
    assert searched == [2]  # two passages were looked up in the list of ten thousand
    found, totals = postings.top([1, 0], 3)  # the third must come from the long list
    assert found.tolist() == [5, 77, 0] and totals[2] == pytest.approx(0.01)


# --- On disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 50_000])
@pytest.mark.parametrize("stopwords", [None, "en"])
def test_an_index_on_disk_finds_what_one_in_memory_finds(tmp_path, monkeypatch, block, stopwords):
    monkeypatch.setattr(bm25_files, "_BLOCK", block)
    facts = load_facts()
    corpus = facts.corpus.select(range(60))
    memory = Bm25Index(corpus, stopwords=stopwords, k1=0.9, b=0.4)
    disk = Bm25Index.build(corpus, tmp_path / "index", stopwords=stopwords, k1=0.9, b=0.4, show_progress=False)
    queries = [*facts.questions("train")["question"][:40], "", "the of", "C", "zebra", "iron iron gold"]
    expected = memory.search(queries, 5)
    assert sum(bool(found) for found in expected) > 30
    assert disk.search(queries, 5) == expected  # scores to the last bit
    assert Bm25Index.load(tmp_path / "index", mmap=False).search(queries, 5) == expected
    assert len(disk) == len(memory) == 60
    assert not list(tmp_path.glob(".*"))


def test_a_loaded_index_is_mapped_and_not_read(tmp_path):
    index = Bm25Index.build(CORPUS, tmp_path / "index", show_progress=False)
    for array in (index._postings._scores, index._postings._passages, index._postings._starts):
        assert isinstance(array.base, np.memmap)
    copy = pickle.loads(pickle.dumps(index))
    assert len(pickle.dumps(index)) < 500 and copy.search(["gold"]) == index.search(["gold"])


def test_threads_share_a_mapped_index(tmp_path):
    facts = load_facts()
    index = Bm25Index.build(facts.corpus, tmp_path / "index", show_progress=False)
    queries = list(facts.questions("test")["question"])[:200]
    expected = index.search(queries)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: index.search([query])[0], queries)) == expected


def test_every_form_of_corpus_on_disk(tmp_path):
    contents = [{"id": str(n), "contents": f'"{title}"\n{text}'} for n, (title, text) in enumerate(CORPUS)]
    plain = lines(tmp_path / "plain.jsonl", [{"title": title, "text": text} for title, text in CORPUS])
    named = lines(tmp_path / "named.jsonl", [{"name": title, "body": text} for title, text in CORPUS])
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    expected = Bm25Index(CORPUS).search(["symbol of gold"])
    for number, (corpus, columns) in enumerate(
        [
            (plain, {}),
            (str(packed), {}),
            (named, {"title": "name", "text": "body"}),
            (Dataset.from_json(str(plain)), {}),
        ]
    ):
        index = Bm25Index.build(corpus, tmp_path / f"index{number}", show_progress=False, **columns)
        assert index.search(["symbol of gold"]) == expected
    quoted = Bm25Index.build(lines(tmp_path / "c.jsonl", contents), tmp_path / "c", show_progress=False)
    [[passage]] = quoted.search(["gold"], 1)
    assert (passage.title, passage.text) == ('"Gold"', "Gold has the symbol Au.")


def test_passages_of_any_characters_survive(tmp_path):
    corpus = [('Käse\n"x"', "Zeile eins\nZeile zwei \u2028 😀 \x00"), ("half an emoji", "\ud83d word")]
    index = Bm25Index.build(corpus, tmp_path / "index", show_progress=False)
    [[first]] = index.search(["käse"], 1)
    assert (first.title, first.text) == corpus[0]
    assert index.search(["emoji"])[0][0].text == "? word"


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def corpus():
        yield from CORPUS
        raise RuntimeError("the disk of the corpus is gone")

    with pytest.raises(RuntimeError, match="is gone"):
        Bm25Index.build(corpus(), tmp_path / "index", show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_is_killed_is_never_loaded(tmp_path):
    code = (
        "import os, sys\nfrom mem1_trl.retrieval import Bm25Index\n"
        "def corpus():\n    yield 'a', 'b'\n    print('reading', flush=True)\n    sys.stdin.read()\n"
        "Bm25Index.build(corpus(), sys.argv[1], show_progress=False)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "reading\n"
        process.kill()
    with pytest.raises(FileNotFoundError, match="holds no index"):
        Bm25Index.load(tmp_path / "index")
    assert len(Bm25Index.build(CORPUS, tmp_path / "index", show_progress=False)) == 3


def test_an_index_is_replaced_only_if_asked(tmp_path):
    old = Bm25Index.build(CORPUS, tmp_path / "index", show_progress=False)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        Bm25Index.build(CORPUS[:1], tmp_path / "index")
    new = Bm25Index.build(CORPUS[:1], tmp_path / "index", overwrite=True, show_progress=False)
    assert len(new) == 1 and new.search(["gold"]) == [[]]
    assert old.search(["gold"])[0][0].title == "Gold"  # who has it open keeps it
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is no index and is not replaced"):
        Bm25Index.build(CORPUS, tmp_path / "home", overwrite=True, show_progress=False)


@pytest.mark.parametrize(("step", "left"), [("first", 3), ("second", 3), ("last", 1)])
def test_a_replacement_that_is_interrupted_leaves_the_old_index_or_the_new(tmp_path, monkeypatch, step, left):
    """Ctrl-C after the old index was moved away left neither."""
    Bm25Index.build(CORPUS, tmp_path / "index", show_progress=False)
    rename, rmtree, steps = Path.rename, bm25_files.shutil.rmtree, ["first", "second", "last"]

    def interrupted_before(function):
        def call(*args, **kwargs):
            if steps and steps.pop(0) == step:
                steps.clear()
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted_before(rename))
        patched.setattr(bm25_files.shutil, "rmtree", interrupted_before(rmtree))
        with pytest.raises(KeyboardInterrupt):
            Bm25Index.build(CORPUS[:1], tmp_path / "index", overwrite=True, show_progress=False)
    assert len(Bm25Index.load(tmp_path / "index")) == left
    hidden = [path for path in tmp_path.iterdir() if path.name != "index"]
    assert hidden == [] or step == "last"  # the old index is still to be deleted then


@pytest.mark.parametrize("name", ["scores", "entries", "starts", "best", "words", "passages"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"text"], ids=["empty", "cut", "zip", "text"])
def test_an_array_that_cannot_be_read_is_named(tmp_path, name, content):
    Bm25Index.build(CORPUS, tmp_path / "index", show_progress=False)
    (tmp_path / "index" / f"{name}.npy").write_bytes(content)
    for mmap in (True, False):
        with pytest.raises(ValueError, match=rf"is damaged \({name}\.npy.*: rebuild it with `mem1 index`"):
            Bm25Index.load(tmp_path / "index", mmap=mmap)


@pytest.mark.parametrize("name", ["words.bin", "passages.jsonl"])
def test_an_index_that_was_cut_off_is_refused(tmp_path, name):
    """Its words were not found, and nothing said why."""
    Bm25Index.build([(f"T{n}", f"word{n} iron") for n in range(50)], tmp_path / "index", show_progress=False)
    path = tmp_path / "index" / name
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(ValueError, match=rf"is damaged \({name} has {size // 2:,} bytes and must have {size:,}\)"):
        Bm25Index.load(tmp_path / "index")


@pytest.mark.parametrize("key", ["passages", "entries", "stopwords"])
def test_an_index_without_a_part_of_its_description_is_refused(tmp_path, key):
    Bm25Index.build(CORPUS, tmp_path / "index", show_progress=False)
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))
    with pytest.raises(ValueError, match=f"is damaged .*{key}"):
        Bm25Index.load(tmp_path / "index")


@pytest.mark.parametrize(
    ("k1", "b"), [(1.5, 5.0), (1.5, -3.0), (-1.0, 0.75), (float("nan"), 0.75), (1.5, float("nan"))]
)
def test_weights_with_which_the_best_passages_are_not_found_are_refused(tmp_path, k1, b):
    with pytest.raises(ValueError, match="k1 must be a number of 0 or more and b from 0 to 1, got k1="):
        Bm25Index(CORPUS, k1=k1, b=b)
    with pytest.raises(ValueError, match="k1 must be a number of 0 or more and b from 0 to 1, got k1="):
        Bm25Index.build(CORPUS, tmp_path / "index", k1=k1, b=b)
    assert not (tmp_path / "index").exists()


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no corpus"):
        Bm25Index.build(tmp_path / "none.jsonl", tmp_path / "index")
    (tmp_path / "bad.jsonl").write_text('{"title": "a", "text": "b"}\n\n{"title": "c"\n')
    with pytest.raises(ValueError, match=r"Line 3 of .*bad\.jsonl is not JSON"):
        Bm25Index.build(tmp_path / "bad.jsonl", tmp_path / "index", show_progress=False)
    with pytest.raises(ValueError, match="corpus is empty"):
        Bm25Index.build([], tmp_path / "index", show_progress=False)
    Bm25Index.build(CORPUS, tmp_path / "index", show_progress=False)
    manifest = json.loads((tmp_path / "index" / "index.json").read_text())
    (tmp_path / "index" / "index.json").write_text(json.dumps({**manifest, "entries": 7}))
    with pytest.raises(ValueError, match="do not belong together"):
        Bm25Index.load(tmp_path / "index")
    (tmp_path / "index" / "index.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ValueError, match="is not an index that this version"):
        Bm25Index.load(tmp_path / "index")
    (tmp_path / "index" / "index.json").write_text(json.dumps(manifest))
    (tmp_path / "index" / "scores.npy").unlink()
    with pytest.raises(ValueError, match="is damaged"):
        Bm25Index.load(tmp_path / "index")


# --- Dense -----------------------------------------------------------------------------------------------------------


def letters(texts):
    """An encoder: how often each letter stands in a text."""
    return np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], dtype=np.float32)


def test_dense_scores_are_cosines(tmp_path):
    pytest.importorskip("faiss")
    index = DenseIndex(CORPUS, letters)
    vectors = letters([f"{title}\n{text}" for title, text in CORPUS])
    query = letters(["gold"])[0]
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    [found] = index.search(["gold"], top_k=5)
    order = np.argsort(-cosines)
    assert [passage.title for passage in found] == [CORPUS[n][0] for n in order] and found[0].title == "Gold"
    assert [passage.score for passage in found] == pytest.approx(cosines[order], rel=1e-5)
    assert index.search([" ", "gold"], 1) == [[], found[:1]]
    products = DenseIndex(CORPUS, letters, normalize=False).search(["gold"])[0]
    assert {p.title: p.score for p in products} == pytest.approx(
        {title: float(vector @ query) for (title, _), vector in zip(CORPUS, vectors)}
    )


def test_a_dense_index_is_saved_with_its_passages(tmp_path):
    pytest.importorskip("faiss")
    index = DenseIndex(CORPUS, letters, query_prefix="query: ", passage_prefix="passage: ")
    index.save(tmp_path / "dense")
    loaded = DenseIndex.load(tmp_path / "dense", encoder=letters)
    assert loaded.search(["gold", "iron"]) == index.search(["gold", "iron"]) and len(loaded) == 3
    with pytest.raises(ValueError, match="with a function as encoder"):
        open_retriever(tmp_path / "dense")
    with pytest.raises(FileExistsError):
        index.save(tmp_path / "dense")
    with pytest.raises(ValueError, match="vectors of 2 numbers"):
        DenseIndex.load(tmp_path / "dense", encoder=lambda texts: np.ones((len(texts), 2))).search(["x"])
    with pytest.raises(ValueError, match="is not an index that this version"):
        Bm25Index.load(tmp_path / "dense")
    with pytest.raises(ValueError, match="2 passages but 3 vectors"):
        DenseIndex.from_faiss(tmp_path / "dense" / "vectors.faiss", CORPUS[:2], letters)
    rows = Dataset.from_list([{"title": title, "text": text} for title, text in CORPUS])
    own = DenseIndex.from_faiss(tmp_path / "dense" / "vectors.faiss", rows, letters, query_prefix="query: ")
    assert own.search(["gold"]) == index.search(["gold"])


@pytest.mark.parametrize("name", ["passages.jsonl", "vectors.faiss", "passages.npy"])
def test_a_dense_index_that_was_cut_off_is_refused(tmp_path, name):
    pytest.importorskip("faiss")
    DenseIndex(CORPUS, letters).save(tmp_path / "dense")
    path = tmp_path / "dense" / name
    for size in (path.stat().st_size // 2, 0):
        os.truncate(path, size)
        with pytest.raises(ValueError, match="is damaged"):
            DenseIndex.load(tmp_path / "dense", encoder=letters)
    path.unlink()
    with pytest.raises(ValueError, match="is damaged"):
        DenseIndex.load(tmp_path / "dense", encoder=letters)


def test_what_a_dense_index_cannot_do(monkeypatch):
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="corpus is empty"):
        DenseIndex([], letters)
    with pytest.raises(ValueError, match="one vector each"):
        DenseIndex(CORPUS, lambda texts: np.ones(4))
    with pytest.raises(ValueError, match="numbers that are not finite"):
        DenseIndex(CORPUS, lambda texts: np.full((len(texts), 2), np.nan))
    with pytest.raises(ValueError, match="'Flat', which always works"):
        DenseIndex(CORPUS, letters, index="IVF100,Flat")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"mem1-trl\[dense\]"):
        DenseIndex(CORPUS, letters)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random sentence encoder, saved."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("bert")
    vocabulary = {
        word: n for n, word in enumerate(["[PAD]", "[UNK]", "iron", "gold", "carbon", "symbol", "has", "the"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_ignores_padding(bert, pooling):
    import torch
    from transformers import AutoModel

    encoder = TransformersEncoder(bert, pooling=pooling, batch_size=2, device="cpu")
    texts = ["gold", "iron has the symbol", "carbon has", "the"]
    together = encoder(texts)
    hidden = AutoModel.from_pretrained(bert).eval()(torch.tensor([[2, 6, 7, 5]])).last_hidden_state[0]
    expected = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
    assert together[1] == pytest.approx(expected.detach().numpy(), abs=1e-5)
    for text, vector in zip(texts, together):
        assert encoder([text])[0] == pytest.approx(vector, abs=1e-5)
    with pytest.raises(ValueError, match="'mean', 'cls' or 'last'"):
        TransformersEncoder(bert, pooling="max")


def test_an_index_remembers_the_id_of_its_encoder(bert, tmp_path):
    pytest.importorskip("faiss")
    index = DenseIndex(CORPUS, bert)
    index.save(tmp_path / "dense")
    loaded = open_retriever(tmp_path / "dense")
    assert isinstance(loaded, DenseIndex) and loaded.search(["gold"], 1) == index.search(["gold"], 1)


# --- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    with serve_site(RetrieverServer(Bm25Index(CORPUS), port=0)) as running:
        yield running


def ask(server, method, path, body=None, headers=None):
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    found = json.loads(response.read())
    connection.close()
    return response.status, found


def test_the_reference_client_reads_the_answer(server):
    """What MEM1's and Search-R1's rollouts send, and how they take the answer apart."""
    payload = {"queries": ["symbol of gold", "iron"], "topk": 2, "return_scores": True}
    status, answer = ask(server, "POST", "/retrieve", json.dumps(payload), {"Content-Type": "application/json"})
    assert status == 200
    shown = []
    for passages in answer["result"]:
        parts = [entry["document"]["contents"].split("\n") for entry in passages]
        shown.append([(part[0], "\n".join(part[1:])) for part in parts])
    assert shown == [[CORPUS[1], CORPUS[0]], [CORPUS[0]]]
    assert answer["result"][0][0]["score"] > answer["result"][0][1]["score"] > 0
    status, answer = ask(server, "POST", "/retrieve", json.dumps({"queries": ["symbol"]}))
    assert status == 200 and answer == {"result": [[{"contents": f"{a}\n{b}"} for a, b in CORPUS]]}
    assert ask(server, "GET", "/health") == (200, {"status": "ok", "passages": 3})


def test_a_client_that_waits_to_be_told_sends_its_body(server):
    body = b'{"queries": ["iron"]}'
    head = f"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as client:
        client.sendall(head.encode())
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_length_that_is_no_number_is_refused(server):
    """`²` is a digit to Python, and no number."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as client:
        client.sendall("POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: ²\r\n\r\n".encode("latin-1"))
        assert client.recv(1000).startswith(b"HTTP/1.1 411")


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_it_listens_on_an_address_of_ipv6():
    try:
        socket.socket(socket.AF_INET6).bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 address")
    with serve_site(RetrieverServer(Bm25Index(CORPUS), host="::1", port=0)) as server:
        assert server.url == f"http://[::1]:{server.server_port}"
        [[found]] = HttpRetriever(server.url).search(["iron"], 1)
        assert (found.title, found.text) == CORPUS[0]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, "not JSON"),
        ("[]", 400, "Send a JSON object"),
        ("{}", 400, '"queries" must be a list of strings'),
        ('{"queries": "iron"}', 400, '"queries" must be a list of strings'),
        ('{"queries": ["iron", 1]}', 400, '"queries" must be a list of strings'),
        ('{"queries": ["iron"], "topk": 0}', 400, "from 1 to 100"),
        ('{"queries": ["iron"], "topk": "3"}', 400, "from 1 to 100"),
        ('{"queries": ["iron"], "topk": true}', 400, "from 1 to 100"),
        ('{"queries": ["iron"], "topk": 101}', 400, "from 1 to 100"),
        ('{"queries": ["iron"], "return_scores": 1}', 400, "true or false"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        ("[" * 100_000, 400, "not JSON (it is nested more than 64 deep)"),
    ],
)
def test_bad_requests_are_answered_by_a_sentence(server, body, status, message):
    found, answer = ask(server, "POST", "/retrieve", body)
    assert found == status and message in answer["error"]
    assert ask(server, "GET", "/health")[0] == 200  # and the server lives


def test_other_routes_and_lengths(server):
    assert ask(server, "GET", "/retrieve")[0] == ask(server, "POST", "/search", "{}")[0] == 404
    assert ask(server, "POST", "/retrieve", None, {"Content-Length": str(2**30)})[0] == 413
    assert ask(server, "POST", "/retrieve", None, {"Transfer-Encoding": "chunked"})[0] == 411
    assert ask(server, "POST", "/retrieve", '{"queries": []}') == (200, {"result": []})


def test_a_search_that_fails_is_a_500_and_not_the_end(caplog):
    class Broken:
        def search(self, queries, top_k=3):
            raise RuntimeError("the disk is gone")

    with serve_site(RetrieverServer(Broken(), port=0)) as server:
        for _ in range(2):
            status, answer = ask(server, "POST", "/retrieve", '{"queries": ["iron"]}')
            assert status == 500 and "RuntimeError: the disk is gone" in answer["error"]


@pytest.mark.parametrize("path", ["", "/", "/retrieve"])
def test_the_client_finds_what_the_index_finds(server, path):
    index = Bm25Index(CORPUS)
    client = HttpRetriever(server.url + path)
    queries = ["symbol of gold", "", "käse 😀", "iron"]
    assert client.search(queries, 2) == index.search(queries, 2)
    assert isinstance(client, Retriever) and isinstance(index, Retriever)
    assert client.search([]) == []
    assert pickle.loads(pickle.dumps(client)).search(["iron"], 1) == index.search(["iron"], 1)
    with pytest.raises(TypeError, match="list of strings"):
        client.search("iron")


def test_passages_cross_the_wire_unchanged():
    corpus = [('"Quoted"', "one\n\ntwo  \u2028 three\n"), ("", "no title"), ("no text", "")]
    with serve_site(RetrieverServer(Bm25Index(corpus), port=0)) as server:
        found = HttpRetriever(server.url).search(["two quoted", "no"], 3)
    assert [(p.title, p.text) for passages in found for p in passages] == corpus


class Slow:
    """A retriever that takes a while, fails for one query, and notes what comes together."""

    def __init__(self, seconds=0.05):
        self.seconds = seconds
        self.batches = []

    def search(self, queries, top_k=3):
        self.batches.append(len(queries))
        time.sleep(self.seconds)
        if "bad" in queries:
            raise ValueError("this query is not liked")
        return [[Passage(query, str(top_k), 1.0)] for query in queries]


def test_searches_that_come_at_once_share_requests():
    slow = Slow(0.2)
    with serve_site(RetrieverServer(slow, port=0)) as server:
        client = HttpRetriever(server.url, max_connections=2, max_retries=0)
        with ThreadPoolExecutor(40) as pool:
            calls = [pool.submit(client.search, [f"q{n}", f"r{n}"], 1 + n % 2) for n in range(40)]
            for n, call in enumerate(calls):
                assert [[(p.title, p.text) for p in found] for found in call.result()] == [
                    [(f"q{n}", str(1 + n % 2))],
                    [(f"r{n}", str(1 + n % 2))],
                ]
    assert sum(slow.batches) == 80 and len(slow.batches) <= 12


class Held:
    """A retriever that answers each request when it is told to; `batches` are the requests so far."""

    def __init__(self):
        self.batches = []
        self.asked = threading.Semaphore(0)
        self.answers = {}
        self.over = False

    def search(self, queries, top_k=3):
        go = self.answers[queries[0]] = threading.Event()
        self.batches.append(queries)
        self.asked.release()
        assert self.over or go.wait(120)
        return [[Passage(query, str(top_k), 1.0)] for query in queries]


@pytest.fixture
def one_connection():
    """A retriever that answers when it is told to, and `start`, which lets a search come after those before it."""
    held = Held()
    with serve_site(RetrieverServer(held, port=0)) as server, ThreadPoolExecutor(8) as pool:
        client = HttpRetriever(server.url, max_connections=1, max_retries=0)

        def start(query, top_k=3):
            before = len(client._waiting)
            call = pool.submit(client.search, [query], top_k)
            while len(client._waiting) == before and query not in held.answers:
                time.sleep(0.01)
            return call

        yield held, start
        held.over = True
        for go in list(held.answers.values()):
            go.set()


def test_a_search_that_is_answered_does_not_wait_for_a_connection(one_connection):
    """It waited for a connection although it was answered, while later searches used them."""
    held, start = one_connection
    a, b, other, c = start("a"), start("b"), start("other", 5), start("c")
    held.answers["a"].set()
    assert a.result(60) == [[Passage("a", "3", 1.0)]]
    for _ in range(2):
        assert held.asked.acquire(timeout=60)
    held.answers["b"].set()
    assert held.asked.acquire(timeout=60)  # `other` has the only connection now
    assert [call.result(60)[0][0].title for call in (b, c)] == ["b", "c"] and not other.done()
    held.answers["other"].set()
    assert other.result(60) == [[Passage("other", "5", 1.0)]]
    assert held.batches == [["a"], ["b", "c"], ["other"]]


def test_searches_go_in_the_order_in_which_they_came(one_connection):
    held, start = one_connection
    calls = [start(query, top_k) for query, top_k in (("a", 3), ("b", 5), ("c", 3), ("d", 5), ("e", 1))]
    for _ in range(4):
        assert held.asked.acquire(timeout=60)
        held.answers[held.batches[-1][0]].set()
    assert [call.result(60)[0][0].title for call in calls] == ["a", "b", "c", "d", "e"]
    assert held.batches == [["a"], ["b", "d"], ["c"], ["e"]]


def test_a_search_that_is_interrupted_leaves_nobody_waiting(monkeypatch):
    client, go, sent = HttpRetriever("http://127.0.0.1:1", max_connections=1), threading.Event(), []

    def post(queries, top_k, retries):
        sent.append(queries)
        assert go.wait(60)
        if len(sent) <= 2:
            raise KeyboardInterrupt
        return [[Passage(query, "", 1.0)] for query in queries]

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    monkeypatch.setattr(client, "_post", post)
    with ThreadPoolExecutor(4) as pool:
        calls = []
        for number, (query, top_k) in enumerate((("a", 3), ("b", 3), ("c", 3), ("d", 5))):
            calls.append(pool.submit(client.search, [query], top_k))
            while len(client._waiting) < number or not sent:
                time.sleep(0.01)
        with monkeypatch.context() as patched:
            patched.setattr(http, "_Search", lambda queries, top_k: _Search(queries, top_k, Interrupted()))
            with pytest.raises(KeyboardInterrupt):
                client.search(["while it waits"])
        go.set()
        for interrupted in calls[:2]:
            with pytest.raises(KeyboardInterrupt):
                interrupted.result(60)
        with pytest.raises(ConnectionError, match="was interrupted"):  # it went along with b
            calls[2].result(60)
        assert calls[3].result(60) == [[Passage("d", "", 1.0)]]
    assert sent == [["a"], ["b", "c"], ["d"]]


def test_one_bad_query_does_not_fail_the_others():
    slow = Slow(0.1)
    with serve_site(RetrieverServer(slow, port=0)) as server:
        client = HttpRetriever(server.url, max_connections=1, max_retries=0)
        queries = ["a", "b", "bad", "c", "d"]
        with ThreadPoolExecutor(5) as pool:
            calls = {query: pool.submit(client.search, [query]) for query in queries}
        for query, call in calls.items():
            if query == "bad":
                with pytest.raises(RuntimeError, match=r"refused a search \(HTTP 500.*not liked"):
                    call.result()
            else:
                assert call.result()[0][0].title == query


class _Flaky(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        status, body = self.server.answers.pop(0)
        if status == "drip":
            self.server.drip(self)
            return
        if status == 0:
            self.connection.close()
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def flaky():
    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            """On purpose."""

    with serve_site(Server(("127.0.0.1", 0), _Flaky)) as server:
        server.paths = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server


GOOD = b'{"result": [[{"document": {"id": "0", "contents": "\\"Iron\\"\\nFe"}, "score": 2.5}]]}'


def test_a_retriever_that_stumbles_is_asked_again(flaky):
    flaky.answers = [(503, b""), (0, b""), (200, GOOD)]
    assert HttpRetriever(flaky.url).search(["iron"]) == [[Passage('"Iron"', "Fe", 2.5)]]
    assert flaky.answers == []
    flaky.answers = [(200, b'{"result": [[{"title": "Iron", "text": "Fe"}]]}')]  # without scores, with columns
    assert HttpRetriever(flaky.url).search(["iron"]) == [[Passage("Iron", "Fe", 0.0)]]


def test_no_more_passages_are_taken_than_asked_for(flaky):
    """As from a server that does not read `topk`."""
    entry = {"document": {"contents": "Iron\nFe"}, "score": 1.0}
    flaky.answers = [(200, json.dumps({"result": [[entry] * 10]}).encode())]
    assert HttpRetriever(flaky.url).search(["iron"], 2) == [[Passage("Iron", "Fe", 1.0)] * 2]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b'{"error": "no such field"}', r"refused a search \(HTTP 400: .*no such field"),
        (200, b"<html>hello", "is no retriever: .*hello"),
        (200, b'{"result": []}', "is no retriever"),
        (200, b'{"result": [[{"document": {"name": "x"}}]]}', "is no retriever"),
        (200, b'{"result": null}', "is no retriever"),
        (200, b"[" * 100_000, "is no retriever"),
        (200, b'{"result": [[3]]}', "is no retriever"),
        (200, b"\x1b]0;evil\x07", r"is no retriever: .*but gave '\\\\x1b\]0;evil"),
        (400, b"\x1b[2J\xff", r"HTTP 400: \\x1b\[2J"),
    ],
)
def test_answers_that_are_none(flaky, status, body, message):
    flaky.answers = [(status, body)]
    with pytest.raises(RuntimeError, match=message):
        HttpRetriever(flaky.url, max_retries=0).search(["iron"])


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def send_until_closed(first: bytes, piece: bytes, seconds: float):
    """A server that never comes to an end; `ended` is set when its client has gone."""
    ended = threading.Event()

    def drip(handler):
        deadline = time.monotonic() + 60
        try:
            handler.connection.sendall(first)
            while time.monotonic() < deadline:
                handler.connection.sendall(piece)
                time.sleep(seconds)
        except OSError:
            ended.set()
        handler.close_connection = True

    return drip, ended


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (HEAD + b"Content-Length: 1000000\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (HEAD + b"Connection: close\r\n\r\n", b" "),
        (HEAD, b"X-Header: y\r\n"),
        (b"", b"H"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 1000000\r\n\r\n", b" "),
        (b"HTTP/1.1 302 Moved\r\nLocation: /elsewhere\r\nContent-Length: 1000000\r\n\r\n", b" "),
    ],
    ids=["length", "chunks", "no length", "headers", "status line", "busy", "redirect"],
)
def test_a_body_that_comes_byte_by_byte_does_not_hold_its_connection(flaky, first, piece):
    flaky.answers = [("drip", None), (200, GOOD)]
    flaky.drip, ended = send_until_closed(first, piece, 0.05)
    client = HttpRetriever(flaky.url, timeout=0.5, max_retries=0, max_connections=1)
    with pytest.raises(ConnectionError, match=r"No retriever answers .*timed out"):
        client.search(["iron"])
    assert ended.wait(30), "the server still sends"
    # The one connection that the client may have is free again
    assert client.search(["iron"]) == [[Passage('"Iron"', "Fe", 2.5)]]


def test_a_connection_from_the_pool_is_limited_too(flaky):
    flaky.answers = [(200, GOOD), ("drip", None)]
    flaky.drip, ended = send_until_closed(HEAD + b"Content-Length: 1000000\r\n\r\n", b" ", 0.05)
    flaky.RequestHandlerClass.protocol_version = "HTTP/1.1"
    try:
        client = HttpRetriever(flaky.url, timeout=0.5, max_retries=0)
        assert client.search(["iron"])[0][0].title == '"Iron"'
        with pytest.raises(ConnectionError, match="timed out"):
            client.search(["iron"])
        assert ended.wait(30)
    finally:
        flaky.RequestHandlerClass.protocol_version = "HTTP/1.0"


def test_a_body_without_an_end_is_cut(flaky, monkeypatch):
    monkeypatch.setattr("mem1_trl.retrieval.http._MAX_BYTES", 2**20)
    flaky.answers = [("drip", None)]
    flaky.drip, ended = send_until_closed(HEAD + b"Connection: close\r\n\r\n", b" " * 2**16, 0.0)
    with pytest.raises(RuntimeError, match="gives more than 1 MB for one request"):
        HttpRetriever(flaky.url, max_retries=0).search(["iron"])
    assert ended.wait(30)


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "null", "1e999"])
def test_a_score_that_is_not_a_number_is_zero(flaky, score):
    flaky.answers = [(200, GOOD.replace(b"2.5", score.encode()))]
    assert HttpRetriever(flaky.url).search(["iron"]) == [[Passage('"Iron"', "Fe", 0.0)]]


def test_a_score_that_is_not_a_number_is_sent_as_null():
    class Broken:
        def search(self, queries, top_k=3):
            return [[Passage("a", "\ud800", float("nan"))] for _ in queries]

    with serve_site(RetrieverServer(Broken(), port=0)) as server:
        body = json.dumps({"queries": ["x"], "return_scores": True})
        _, found = ask(server, "POST", "/retrieve", body)
        assert found == {"result": [[{"document": {"contents": "a\n\ud800"}, "score": None}]]}
        assert HttpRetriever(server.url).search(["x"]) == [[Passage("a", "\ud800", 0.0)]]


def test_a_retriever_that_is_not_there_is_one_sentence(flaky):
    with pytest.raises(ConnectionError, match=r"No retriever answers at http://127.0.0.1:1/retrieve .*mem1 retriever"):
        RetrievalQAEnvironment.factory("http://127.0.0.1:1")
    with pytest.raises(ValueError, match="no address of a retriever"):
        HttpRetriever("localhost:8000")
    with pytest.raises(ValueError, match="must have no user name or password"):
        HttpRetriever("http://me:secret@127.0.0.1:1")
    flaky.answers = [(0, b"")] * 2
    with pytest.raises(ConnectionError, match="No retriever answers"):
        HttpRetriever(flaky.url, max_retries=1).search(["iron"])
    assert flaky.answers == []


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("?key=1", "/retrieve?key=1"),
        ("/?key=1", "/retrieve?key=1"),
        ("/find?key=1", "/find?key=1"),
        ("/", "/retrieve"),
    ],
)
def test_the_query_of_an_address_is_kept(flaky, address, path):
    flaky.answers = [(200, GOOD)]
    assert HttpRetriever(flaky.url + address).search(["iron"]) and flaky.paths == [path]


def test_a_time_out_is_a_connection_error():
    release, ended = threading.Event(), []

    class Hanging:
        def search(self, queries, top_k=3):
            ended.append(release.wait(60))
            return [[] for _ in queries]

    with serve_site(RetrieverServer(Hanging(), port=0)) as server:
        with pytest.raises(ConnectionError, match=r"No retriever answers .*timed out"):
            HttpRetriever(server.url, timeout=0.2, max_retries=0).search(["iron"])
        assert not ended, "the end of the search was not waited for"
        release.set()


# --- Environment and commands ------------------------------------------------------------------------------------------


def test_an_environment_searches_whatever_it_is_given(server, tmp_path):
    index = Bm25Index.build(CORPUS, tmp_path / "index", show_progress=False)
    file = lines(tmp_path / "corpus.jsonl", [{"title": title, "text": text} for title, text in CORPUS])
    rows = Dataset.from_json(str(file))  # has a method `search` of its own, for faiss
    for corpus in (CORPUS, rows, file, str(file), tmp_path / "index", index, server.url, HttpRetriever(server.url)):
        environment = RetrievalQAEnvironment.factory(corpus, top_k=1)()
        assert environment.search("gold") == "Doc 1(Title: Gold) Gold has the symbol Au.\n", corpus
    with pytest.raises(FileNotFoundError, match="no corpus 'nowhere'"):
        RetrievalQAEnvironment.factory("nowhere")


def test_the_commands(tmp_path, capsys):
    file = lines(tmp_path / "corpus.jsonl", [{"title": title, "text": text} for title, text in CORPUS])
    assert main(["index", str(file), str(tmp_path / "index")]) == 0
    assert ": 3 passages, " in capsys.readouterr().out
    assert main(["index", str(file), str(tmp_path / "index")]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main(["index", str(file), str(tmp_path / "other"), "--b", "2"]) == 2
    assert "b from 0 to 1" in capsys.readouterr().err
    assert main(["retriever", "--corpus", str(tmp_path / "none.jsonl")]) == 2
    assert "There is no corpus" in capsys.readouterr().err
    with serve_site(RetrieverServer(Bm25Index(CORPUS), port=0)) as server:
        assert main(["retriever", "--corpus", str(tmp_path / "index"), "--port", str(server.server_port)]) == 2
    assert "cannot be listened at (Address already in use): choose another." in capsys.readouterr().err


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_here_is_named(host):
    with pytest.raises(
        OSError, match=rf"'{re.escape(host)}' is not an address of this machine \(.*\): use 127\.0\.0\.1, or"
    ):
        RetrieverServer(Bm25Index(CORPUS), host, 0)


def test_the_served_index_is_asked_and_stopped(tmp_path):
    Bm25Index.build(CORPUS, tmp_path / "index", show_progress=False)
    command = [sys.executable, "-m", "mem1_trl", "retriever", "--corpus", str(tmp_path / "index"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        said = process.stdout.readline()
        assert said.startswith("3 passages at http://127.0.0.1:"), process.stderr.read()
        client = HttpRetriever(said.split(" at ")[1].split(". Ctrl-C")[0])
        assert client.search(["gold"], 1) == Bm25Index(CORPUS).search(["gold"], 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        timer.cancel()
        process.kill()
    assert (process.returncode, out, err) == (0, "Stopped.\n", "")
