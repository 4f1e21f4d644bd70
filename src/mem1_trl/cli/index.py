"""`mem1 index CORPUS DIR`"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from .options import CommandError, Parser, existing_corpus, naming_columns


def run(args: Sequence[str]) -> None:
    """Write a search index to disk."""
    parser = Parser(
        prog="mem1 index",
        description="Index a corpus for search by BM25. The directory holds all that a search needs, passages included; it "
        "appears when it is complete.",
    )
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        type=existing_corpus,
        help="a file with one JSON object on each line, also .gz (title and text, or contents, whose first line is the title); a "
        ".json, .csv or .parquet file; or a folder of text files (.txt, .md)",
    )
    parser.add_argument("directory", metavar="DIR", help="where to write the index")
    parser.add_argument("--title", default="title", help="key of the title (default: %(default)s)")
    parser.add_argument("--text", default="text", help="key of the text (default: %(default)s)")
    parser.add_argument(
        "--stopwords", choices=("none", "en"), default="none", help="words to leave out (default: %(default)s)"
    )
    parser.add_argument("--k1", type=float, default=1.5, help="BM25's k1 (default: %(default)s)")
    parser.add_argument("--b", type=float, default=0.75, help="BM25's b, from 0 to 1 (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an index that is there already")
    options = parser.parse_args(args)
    if Path(options.directory).exists() and not options.overwrite:
        raise CommandError(f"{options.directory!r} is there already: choose another directory, or add --overwrite")

    from ..retrieval import Bm25Index

    began = time.perf_counter()
    with naming_columns("--title", "--text"):
        index = Bm25Index.build(
            options.corpus,
            options.directory,
            title=options.title,
            text=options.text,
            stopwords=None if options.stopwords == "none" else options.stopwords,
            k1=options.k1,
            b=options.b,
            overwrite=options.overwrite,
        )
    size = sum(file.stat().st_size for file in Path(options.directory).iterdir())
    print(f"{options.directory}: {len(index):,} passages, {size / 1e6:,.0f} MB, {time.perf_counter() - began:,.1f} s")
