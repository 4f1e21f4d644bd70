"""The end of a server while answers are under way that take longer than it waits."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.reading_agent import reading
from support.serving import PLAIN

pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

import openai

from mem1_trl import Mem1Agent
from mem1_trl.serve import AgentBackend
from mem1_trl.wire.app import ChatApp
from mem1_trl.wire.server import WireServer


def test_clients_are_told_that_the_server_ends(actor, tokenizer, caplog):
    agent = Mem1Agent(actor, tokenizer, PLAIN, conversational=False, max_completion_length=1800, max_turns=1)
    model = reading(agent, lambda context: f"<think>s</think><answer>{'long ' * 300}</answer>")
    model.gate.clear()  # each token takes 20 ms
    chat = ChatApp(AgentBackend(agent))
    server = WireServer(chat, patience=1.0)
    pieces = []

    def ask(client, stream):
        messages = [{"role": "user", "content": "a"}]
        answer = client.chat.completions.create(model="mem1", messages=messages, stream=stream)
        for chunk in answer if stream else ():
            pieces.append(chunk.choices[0].delta.content)

    with (
        ThreadPoolExecutor(2) as pool,
        server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        whole, stream = pool.submit(ask, client, False), pool.submit(ask, client, True)
        until = time.monotonic() + 20
        while (chat.open < 2 or len(pieces) < 3) and time.monotonic() < until:
            time.sleep(0.01)
        server.__exit__()
        sentence = "The server ends: ask again later."
        with pytest.raises(openai.InternalServerError, match=sentence) as error:
            whole.result()
        assert error.value.status_code == 503
        with pytest.raises(openai.APIError, match=sentence):
            stream.result()
    assert len(pieces) >= 3 and not [one for one in caplog.records if one.exc_info], "no traceback in the log"
