"""A program whose server still answers when it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

PROGRAM = """
import asyncio, threading
import httpx
from mem1_trl.wire.app import ChatApp

asked = threading.Event()

class Hanging:
    name = "model"

    def answer(self, *request):
        asked.set()
        threading.Event().wait()

    def gauges(self):
        return {}

async def ask():
    transport = httpx.ASGITransport(app=ChatApp(Hanging()).app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        body = {"model": "model", "messages": [{"role": "user", "content": "a"}]}
        answer = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        while not asked.is_set():
            await asyncio.sleep(0.01)
        answer.cancel()

asyncio.run(ask())
print("the end")
"""


def test_a_program_does_not_wait_for_an_answer_that_hangs():
    """Threads of a pool of the standard library are joined when the interpreter ends."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr
