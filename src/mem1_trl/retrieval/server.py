"""Any retriever behind HTTP, with the API of Search-R1 and MEM1; see `http.py` for what goes over the wire."""

from __future__ import annotations

import logging
import socketserver
from collections.abc import Sized
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..json_text import read_json, write_json
from ..version import __version__
from ..wire.listening import address_family, http_address, naming_address
from .passages import Passage, Retriever, check_found

logger = logging.getLogger(__name__)

_MAX_BODY = 16 * 2**20
_MAX_QUERIES = 4096


class _Refused(Exception):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class RetrieverServer(ThreadingHTTPServer):
    """
    A server with `POST /retrieve` and `GET /health`. It answers each request in a thread of its own, so the retriever is
    loaded once for all clients of the machine.

    Args:
        retriever ([`Retriever`]):
            What to search in.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen at. There is no password: let others than this machine reach it only in a network that you
            trust.
        port (`int`, *optional*, defaults to `8000`):
            Port to listen at; 0 takes a free one, see `url`.
        top_k (`int`, *optional*, defaults to `3`):
            Passages for a request without `topk`.
        max_top_k (`int`, *optional*, defaults to `100`):
            Most passages that a request may ask for.

    Raises:
        `OSError`: if the port is taken.

    Example:

    ```python
    >>> with RetrieverServer(Bm25Index.load("wiki-bm25"), port=8000) as server:
    ...     server.serve_forever()
    ```
    """

    daemon_threads = True
    request_queue_size = 256  # all episodes of a batch connect at once

    def __init__(
        self, retriever: Retriever, host: str = "127.0.0.1", port: int = 8000, top_k: int = 3, max_top_k: int = 100
    ) -> None:
        if not 1 <= top_k <= max_top_k:
            raise ValueError(f"`top_k` is {top_k}: it must be between 1 and max_top_k={max_top_k}.")
        self.retriever = retriever
        self.top_k = top_k
        self.max_top_k = max_top_k
        self.address_family = address_family(host)
        with naming_address(host, port):
            super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Address of the server, such as `"http://127.0.0.1:8000"`."""
        return http_address(str(self.server_address[0]), self.server_port)

    def server_bind(self) -> None:
        """Bind without looking up the name of the address, which may take seconds where there is no name service."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def answer(self, request: Any) -> dict[str, Any]:
        """The answer to the body of a `POST /retrieve`."""
        if not isinstance(request, dict):
            raise _Refused(400, 'Send a JSON object, such as {"queries": ["symbol of gold"], "topk": 3}.')
        queries = request.get("queries")
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise _Refused(400, '"queries" must be a list of strings.')
        if len(queries) > _MAX_QUERIES:
            raise _Refused(400, f'"queries" holds {len(queries)} queries: send at most {_MAX_QUERIES} at once.')
        top_k = request.get("topk")
        top_k = self.top_k if top_k is None else top_k
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= self.max_top_k:
            raise _Refused(400, f'"topk" must be a whole number from 1 to {self.max_top_k}.')
        with_scores = request.get("return_scores", False)
        if not isinstance(with_scores, bool):
            raise _Refused(400, '"return_scores" must be true or false.')
        found = check_found(self.retriever, self.retriever.search(queries, top_k), len(queries)) if queries else []
        if with_scores:
            return {"result": [[{"document": _document(p), "score": p.score} for p in passages] for passages in found]}
        return {"result": [[_document(passage) for passage in passages] for passages in found]}


def _document(passage: Passage) -> dict[str, str]:
    # The first line is the title: one that has several would spill into the text
    return {"contents": f"{' '.join(passage.title.splitlines())}\n{passage.text}"}


class _Handler(BaseHTTPRequestHandler):
    server: RetrieverServer
    protocol_version = "HTTP/1.1"  # clients keep their connections
    server_version = f"mem1-trl/{__version__}"
    timeout = 120
    # Headers and body in one packet, sent at once: else each answer waits 40 ms for the client's acknowledgement
    wbufsize = 2**16
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path.split("?")[0] not in ("/health", "/"):
            self._send(404, {"error": "There is GET /health and POST /retrieve."})
            return
        size = len(self.server.retriever) if isinstance(self.server.retriever, Sized) else None
        self._send(200, {"status": "ok", "passages": size})

    def do_POST(self) -> None:
        try:
            body = self._body()
            if self.path.split("?")[0].rstrip("/") != "/retrieve":
                raise _Refused(404, "There is GET /health and POST /retrieve.")
            try:
                request = read_json(body)
            except ValueError as error:
                raise _Refused(400, f"The body is not JSON ({error}).") from None
            self._send(200, self.server.answer(request))
        except _Refused as error:
            self._send(error.status, {"error": str(error)})
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            logger.exception("A search failed.")
            self._send(500, {"error": f"The search failed: {type(error).__name__}: {error}"})

    def handle_expect_100(self) -> bool:
        """Tell a client that waits for it to send its body; what is written is kept for the answer otherwise."""
        goes_on = super().handle_expect_100()
        self.wfile.flush()
        return goes_on

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True
            raise _Refused(411, "The request has no Content-Length.")
        if int(length) > _MAX_BODY:
            self.close_connection = True  # the body is not read, so nothing can follow it
            raise _Refused(413, f"The request has {length} bytes: send at most {_MAX_BODY}.")
        return self.rfile.read(int(length))

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = write_json(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet, but for debugging: a training run makes thousands of requests."""
        logger.debug(format, *args)
