"""An application on a port: in this thread until a signal ends it, or in one of its own."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

from ..optional_packages import require
from .app import ChatApp
from .listening import address_family, http_address, naming_address

_PATIENCE = 30.0  # seconds for a server to begin
_BACKLOG = 2048  # connections that wait to be taken


class WireServer:
    """
    Serves a [`ChatApp`] with uvicorn.

    Example:

    ```python
    with WireServer(ChatApp(backend)) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    ```

    Args:
        chat ([`ChatApp`]):
            What is served.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen at.
        port (`int`, *optional*, defaults to `0`):
            Port; 0 takes a free one.
        patience (`float`, *optional*, defaults to `30.0`):
            Seconds for which answers under way are waited for when the server ends, at least 1.

    Raises:
        `OSError`: If the port is taken.
    """

    def __init__(self, chat: ChatApp, host: str = "127.0.0.1", port: int = 0, patience: float = 30.0):
        uvicorn = require("uvicorn", "serve", "A server")
        self.chat = chat
        self.patience = max(1, round(patience))  # with 0 uvicorn calls even an idle end an error
        self._socket = socket.socket(address_family(host))
        try:
            with naming_address(host, port):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._socket.bind((host, port))
                self._socket.listen(_BACKLOG)  # who knows the address may connect, and waits until it serves
        except OSError:
            self._socket.close()
            raise
        self.url = http_address(host, self._socket.getsockname()[1])
        config: Any = uvicorn.Config(
            chat.app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            backlog=_BACKLOG,
            timeout_graceful_shutdown=self.patience,
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve in this thread until SIGINT or SIGTERM; answers under way are finished."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._close()

    def __enter__(self) -> WireServer:
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        until = time.monotonic() + _PATIENCE
        while not self._server.started:
            if time.monotonic() > until or not self._thread.is_alive():
                raise RuntimeError("The server did not start.")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        assert self._thread is not None
        self._thread.join()
        self._close()

    def _close(self) -> None:
        self._socket.close()
        self.chat.close()
