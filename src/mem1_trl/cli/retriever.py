"""`mem1 retriever --corpus FILE.jsonl|DIR`"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

from .options import CommandError, Parser, naming_columns


def run(args: Sequence[str]) -> None:
    """Serve a corpus until interrupted."""
    parser = Parser(
        prog="mem1 retriever",
        description="Search a corpus over HTTP, with the API of Search-R1 and MEM1: POST /retrieve with "
        '{"queries": ["..."], "topk": 3, "return_scores": true}, and GET /health.',
    )
    parser.add_argument(
        "--corpus",
        required=True,
        metavar="FILE|DIR",
        help="a corpus (a file of passages or a folder of text files), which is indexed in memory, or a directory that `mem1 index` wrote, which is mapped",
    )
    parser.add_argument("--title", default="title", help="key of the title in the corpus (default: %(default)s)")
    parser.add_argument("--text", default="text", help="key of the text in the corpus (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is all of them (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (default: %(default)s)")
    parser.add_argument(
        "--top_k", type=int, default=3, help="passages for a request that does not say (default: %(default)s)"
    )
    options = parser.parse_args(args)
    if not 0 <= options.port < 2**16:
        raise CommandError(f"--port is {options.port}: it must be from 0 to 65535")
    if options.corpus.startswith(("http://", "https://")):
        raise CommandError("--corpus is an address: pass a file of passages or a directory that `mem1 index` wrote")

    from ..retrieval import open_retriever
    from ..retrieval.server import RetrieverServer

    with naming_columns("--title", "--text"):
        retriever = open_retriever(options.corpus, options.title, options.text)
    with RetrieverServer(retriever, options.host, options.port, options.top_k) as server:
        print(f"{len(retriever):,} passages at {server.url}/retrieve. Ctrl-C ends it.", flush=True)  # type: ignore[arg-type]

        def stop(*_: object) -> None:
            # `shutdown` waits for the loop, which runs in this thread
            threading.Thread(target=server.shutdown).start()

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, stop)
        server.serve_forever(poll_interval=0.1)
    print("Stopped.")
