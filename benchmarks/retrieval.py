"""
Retrieval at scale: build time, memory and queries per second of an index on disk.

    python benchmarks/retrieval.py --threads 1 --repeats 3 --directory runs/retrieval

The corpus is synthetic, of real words: words and their frequencies are counted over the docstrings of Python's standard
library, and each passage draws 100 of them (the length of Search-R1's Wikipedia passages). One word in twenty is replaced by
a rare name, two of the words joined, so that the vocabulary grows with the corpus as that of a real one does. Titles are two such
names. Queries are a title with a word of its passage (keywords), or a question made of common words around them.

1. `mem1 index` in a process of its own: time, its largest memory, size on disk.
2. A process that loads the index and searches: what of its memory is its own, and what is mapped and shared.
3. Queries per second: all lists walked through and the scores of all passages partitioned (bm25s, as [`Bm25Index`] did it
   before), bm25s with numba (`--numba`), and [`Bm25Index.search`]. They must find the same passages.
4. The same over HTTP: a server process, 16 clients.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from options import parse_arguments
from report import Report
from timing import Timing, compare, processor_time

from mem1_trl.retrieval import Bm25Index, HttpRetriever
from mem1_trl.words import words_of_query

LENGTH = 100
TOP_K = 3
_WORD = re.compile(r"[A-Za-z]+")

_SEARCHER = """
import json, sys, time
before = time.perf_counter()
from mem1_trl.retrieval import Bm25Index
def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
    return {name: int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}
imported, start = memory(), time.perf_counter()
index = Bm25Index.load(sys.argv[1])
loaded, seconds = memory(), time.perf_counter() - start
for query in json.load(open(sys.argv[2])):
    index.search([query], 3)
print(json.dumps({"imported": imported, "loaded": loaded, "searched": memory(), "load_seconds": seconds}))
"""


def words_of_the_standard_library() -> tuple[list[str], list[int]]:
    """Words of all docstrings, lower case, with how often they occur; most frequent first."""
    counts: Counter[str] = Counter()
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                counts.update(_WORD.findall((ast.get_docstring(node) or "").lower()))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [word for word, _ in ordered], [count for _, count in ordered]


def write_corpus(path: Path, passages: int, queries: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Write JSON lines; returns keyword queries and questions."""
    words, counts = words_of_the_standard_library()
    shares = np.cumsum(counts) / sum(counts)
    stock = [word for word in words if len(word) > 3]
    generator, numbers = random.Random(seed), np.random.default_rng(seed)
    asked = set(generator.sample(range(passages), min(queries, passages)))
    common = words[:200]
    keywords, questions = [], []

    def name() -> str:
        return generator.choice(stock) + generator.choice(stock)

    with path.open("w", encoding="utf-8") as file:
        for first in range(0, passages, 10_000):
            block = np.searchsorted(shares, numbers.random((min(10_000, passages - first), LENGTH)))
            for number, row in enumerate(block.tolist(), start=first):
                drawn = [words[index] for index in row]
                for place in range(generator.randrange(20), LENGTH, 20):
                    drawn[place] = name()
                title = f"{name()} {generator.choice(stock)}"
                file.write(json.dumps({"title": title, "text": " ".join(drawn)}) + "\n")
                if number in asked:
                    keywords.append(f"{title} {generator.choice(drawn)}")
                    around = generator.choices(common, k=6)
                    questions.append(f"what is the {drawn[0]} of {title} and {' '.join(around)} in {drawn[1]}")
    generator.shuffle(keywords)
    generator.shuffle(questions)
    return keywords, questions


def walk_everything(index: Bm25Index, bm25: Any, queries: list[str]) -> list[list[float]]:
    """Scores of the best, by bm25s: all lists added up into a score of each passage."""
    found = []
    for query in queries:
        words = [number for word in words_of_query(query) if (number := index._vocabulary.get(word)) is not None]
        if bm25.backend == "numba":
            scores = bm25.retrieve([words], k=TOP_K, show_progress=False, chunksize=None, backend_selection="numba")[
                1
            ][0]
            found.append([float(score) for score in scores if score > 0])
            continue
        scores = bm25.get_scores(words)
        best = np.partition(scores, -TOP_K)[-TOP_K:]
        found.append(sorted((float(score) for score in best if score > 0), reverse=True))
    return found


def search(index: Any, queries: list[str]) -> list[list[float]]:
    """Scores of the best, one query after the other."""
    return [[passage.score for passage in index.search([query], TOP_K)[0]] for query in queries]


def search_together(retriever: HttpRetriever, queries: list[str], clients: int) -> list[list[float]]:
    """Scores of the best, asked for by as many threads as there are episodes."""
    with ThreadPoolExecutor(clients) as pool:
        found = pool.map(lambda query: retriever.search([query], TOP_K)[0], queries)
        return [[passage.score for passage in passages] for passages in found]


def build_case(args: argparse.Namespace, report: Report, corpus: Path, directory: Path) -> None:
    cpu, start = processor_time(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "mem1_trl", "index", str(corpus), str(directory), "--overwrite"], check=True)
    timing = Timing([time.perf_counter() - start], [processor_time() - cpu])
    manifest = json.loads((directory / "index.json").read_text())
    values = {
        "passages": manifest["passages"],
        "words": manifest["words"],
        "entries": manifest["entries"],
        "milliseconds_per_1000_passages": 1e6 * timing.median / manifest["passages"],
        "largest_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "corpus_bytes": corpus.stat().st_size,
        "index_bytes": sum(file.stat().st_size for file in directory.iterdir()),
    }
    report.add(
        f"build, {args.passages:,} passages", {"mem1 index": timing}, "mem1 index", None, {"mem1 index": values}
    )


def memory_case(args: argparse.Namespace, report: Report, directory: Path, queries: list[str]) -> None:
    asked = directory.parent / "queries.json"
    asked.write_text(json.dumps(queries))
    command = [sys.executable, "-c", _SEARCHER, str(directory), str(asked)]
    cpu, start = processor_time(), time.perf_counter()
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    timing = Timing([time.perf_counter() - start], [processor_time() - cpu])
    values = {
        "queries": len(queries),
        "milliseconds_to_load": 1e3 * found["load_seconds"],
        "own_before_bytes": found["imported"]["RssAnon"],
        "own_after_bytes": found["searched"]["RssAnon"],
        "mapped_and_shared_bytes": found["searched"]["RssFile"] - found["imported"]["RssFile"],
    }
    name = "load and search"
    report.add(f"memory of one process, {args.passages:,} passages", {name: timing}, name, None, {name: values})


def speed_case(args: argparse.Namespace, report: Report, index: Bm25Index, name: str, queries: list[str]) -> None:
    import bm25s

    postings = index._postings
    arrays = {
        "data": postings._scores,
        "indices": postings._passages,
        "indptr": postings._starts,
        "num_docs": len(index),
    }
    variants: dict[str, Any] = {}
    for backend in ("numpy", "numba") if args.numba else ("numpy",):
        bm25 = bm25s.BM25(backend=backend)
        bm25.scores, bm25.nonoccurrence_array = arrays, None
        bm25.vocab_dict, bm25.unique_token_ids_set = {"": -1}, range(len(postings._best))
        variants[f"all lists, bm25s {backend}"] = partial(walk_everything, index, bm25, queries)
    variants["Bm25Index"] = partial(search, index, queries)
    baseline = next(iter(variants))
    timings = compare(variants, args.repeats, baseline, label=name)
    for variant, timing in timings.items():
        for one, other in zip(timing.result, timings[baseline].result, strict=True):
            if not np.allclose(one, other, rtol=1e-4):
                raise SystemExit(f"{variant} finds other passages: {one} instead of {other}.")
    values = {
        variant: {
            "queries": len(queries),
            "found": sum(bool(scores) for scores in timing.result),
            "milliseconds_per_query": 1e3 * timing.median / len(queries),
            "queries_per_second": len(queries) / timing.median,
        }
        for variant, timing in timings.items()
    }
    report.add(f"{name}, {len(index):,} passages, one thread", timings, baseline, None, values)


def http_case(args: argparse.Namespace, report: Report, directory: Path, index: Bm25Index, queries: list[str]) -> None:
    command = [sys.executable, "-m", "mem1_trl", "retriever", "--corpus", str(directory), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split(" at ")[1].split("/retrieve")[0]
        retriever = HttpRetriever(address)
        variants = {
            "in the process": partial(search, index, queries),
            "HTTP, 1 client": partial(search, retriever, queries),
            "HTTP, 16 clients": partial(search_together, retriever, queries, 16),
        }
        timings = compare(variants, args.repeats, "in the process", label="HTTP")
    finally:
        server.terminate()
        server.wait()
    if any(timing.result != timings["in the process"].result for timing in timings.values()):
        raise SystemExit("The results differ.")
    values = {
        # By the wall: the server's processor time is not this process's
        variant: {"queries": len(queries), "queries_per_second_of_wall_time": len(queries) / median(timing.seconds)}
        for variant, timing in timings.items()
    }
    report.add(f"keywords over HTTP, {len(index):,} passages", timings, "in the process", None, values)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--passages", type=int, default=1_000_000, help="size of the corpus")
        parser.add_argument("--queries", type=int, default=500, help="queries of one repetition")
        parser.add_argument("--numba", action="store_true", help="bm25s with numba too, which must be installed")
        parser.add_argument(
            "--directory", type=Path, default=None, help="where corpus and index go (default: temporary)"
        )

    args = parse_arguments(__doc__, add, repeats=3)
    if args.smoke:
        args.passages, args.queries = 2000, 20
    settings = {"passages": args.passages, "words_per_passage": LENGTH, "queries": args.queries, "top_k": TOP_K}
    report = Report("retrieval", args, settings)
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        corpus, directory = Path(name) / "corpus.jsonl", Path(name) / "index"
        keywords, questions = write_corpus(corpus, args.passages, args.queries)
        build_case(args, report, corpus, directory)
        corpus.unlink()
        memory_case(args, report, directory, keywords + questions)
        index = Bm25Index.load(directory)
        speed_case(args, report, index, "keywords", keywords)
        speed_case(args, report, index, "questions", questions)
        http_case(args, report, directory, index, keywords)
    report.finish()


if __name__ == "__main__":
    main()
