"""`transformers serve` with the tiny model: the episodes that the same model plays here, token for token."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from support.ports import held_port
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import Mem1Agent

SETTINGS = {"max_observation_length": 60, "conversational": False, "max_completion_length": 40, "max_turns": 4}


@pytest.fixture
def address(actor, tokenizer, tmp_path):
    """Address of a server of the tiny model, which stands in `tmp_path`."""
    pytest.importorskip("fastapi")
    pytest.importorskip("openai")
    actor.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tmp_path), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with held_port() as port, (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--dtype", "float32"], stdout=log, stderr=log, env=environment
        )
        try:
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline and server.poll() is None:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait()


@pytest.mark.slow
def test_transformers_serve_plays_what_the_model_plays_here(actor, tokenizer, tmp_path, address):
    rows = [{"prompt": f"{'ab' * (i % 3)}q{i}?", "secret": str(i % 3)} for i in range(4)]
    here = Mem1Agent(actor, tokenizer, SHORT, **SETTINGS).run_batch(rows, [LookupEnvironment() for _ in rows])
    agent = Mem1Agent(str(tmp_path), client=address, protocol=SHORT, **SETTINGS)
    there = agent.run_batch(rows, [LookupEnvironment() for _ in rows])
    assert sum(len(trajectory.turns) for trajectory in here) > len(rows)
    for ours, theirs in zip(here, there, strict=True):
        assert [(t.prompt_ids, t.completion_ids) for t in ours.turns] == [
            (t.prompt_ids, t.completion_ids) for t in theirs.turns
        ]
        assert ours.answer == theirs.answer
