"""`mem1 serve --model_name_or_path PATH_OR_ID`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..optional_packages import require
from .conversation_options import ConversationArguments
from .options import CommandError, ConfigParser, check_writable


@dataclass
class ServeArguments(ConversationArguments):
    """
    Arguments of `mem1 serve`: those of [`ConversationArguments`], and:

    Parameters:
        name (`str`, *optional*, defaults to `"mem1"`):
            Name of the model for clients.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen at.
        port (`int`, *optional*, defaults to `8000`):
            Port to listen at.
        api_keys (`str`, *optional*):
            File of API keys, one a line. `None` serves everybody.
        sessions_dir (`str`, *optional*):
            Directory of the conversations, which survive a restart there. `None` keeps them in memory.
        max_sessions (`int`, *optional*, defaults to `10000`):
            Most states of conversations in memory.
        max_session_megabytes (`int`, *optional*, defaults to `256`):
            Most memory of these states.
        max_running, max_waiting (`int`, *optional*, defaults to `32` and `512`):
            Most requests that are answered, and that wait; others are told to come back.
        max_body_megabytes (`int`, *optional*, defaults to `4`):
            Most megabytes of a request.
    """

    name: str = field(default="mem1", metadata={"help": "Name of the model for clients."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen at; 0.0.0.0 is all of them."})
    port: int = field(default=8000, metadata={"help": "Port to listen at; 0 takes a free one."})
    api_keys: str | None = field(
        default=None, metadata={"help": "File of API keys, one a line. `None` serves everybody."}
    )
    sessions_dir: str | None = field(
        default=None, metadata={"help": "Directory of the conversations, which survive a restart there."}
    )
    max_sessions: int = field(default=10_000, metadata={"help": "Most states of conversations in memory."})
    max_session_megabytes: int = field(default=256, metadata={"help": "Most memory of these states."})
    max_running: int = field(default=32, metadata={"help": "Most requests that are answered at once."})
    max_waiting: int = field(default=512, metadata={"help": "Most requests that wait; others are told to come back."})
    max_body_megabytes: int = field(default=4, metadata={"help": "Most megabytes of a request."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("max_sessions", "max_session_megabytes", "max_running", "max_body_megabytes")
        if isinstance(self.max_waiting, int) and self.max_waiting < 0:
            raise ValueError(f"max_waiting must be at least 0, got {self.max_waiting}")
        if isinstance(self.port, int) and not 0 <= self.port < 2**16:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")


def run(args: Sequence[str]) -> None:
    """Serve an agent until interrupted."""
    parser = ConfigParser(
        ServeArguments,
        prog="mem1 serve",
        usage="mem1 serve --model_name_or_path PATH_OR_ID [OPTIONS] [--config FILE.yaml]",
        description="Serve an agent over OpenAI's API: POST /v1/chat/completions, GET /v1/models, /health, /metrics. Clients send their "
        "whole chat, and the agent's context stays as short as at the beginning. The tools of a client are called by the client.",
        epilog="Example: mem1 serve --model_name_or_path runs/quickstart/model --corpus facts --sessions_dir runs/sessions",
    )
    options = parser.read(args)
    for package in ("starlette", "uvicorn"):  # before the model is loaded
        require(package, "serve", "mem1 serve")
    keys = _keys(options.api_keys)
    if options.sessions_dir is not None:
        check_writable(options.sessions_dir, "sessions_dir")
    agent, factory = options.open(has_tools=True)

    from ..serve.backend import AgentBackend
    from ..serve.states import StateStore
    from ..wire.app import ChatApp, WireLimits
    from ..wire.server import WireServer

    store = StateStore(options.sessions_dir, options.max_sessions, options.max_session_megabytes * 2**20)
    limits = WireLimits(keys, options.max_body_megabytes * 2**20, options.max_running, options.max_waiting)
    chat = ChatApp(AgentBackend(agent, options.name, factory, store), limits)
    server = WireServer(chat, options.host, options.port)
    tools = agent.protocol.action_tags if factory is None else None
    if tools:
        print(
            f"The protocol {options.protocol_source(options.model_name_or_path)} has actions ({', '.join(tools.values())}): a request must "
            "bring tools of these names, unless --corpus or --environment gives them.",
            flush=True,
        )
    if not keys and options.host not in ("127.0.0.1", "localhost", "::1"):
        print("Everybody who reaches this address is served: --api_keys FILE asks for a key.", flush=True)
    print(
        f"{options.name} at {server.url}/v1. Ctrl-C ends it when its answers are finished, at most {server.patience} seconds later.",
        flush=True,
    )
    server.run()
    print("Stopped.")


def _keys(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        keys = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"the file of --api_keys cannot be read: {error}") from None
    if not keys:
        raise CommandError(f"the file of --api_keys must hold a key in each line, got none in {path!r}")
    return keys
