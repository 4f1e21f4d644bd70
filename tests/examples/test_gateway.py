"""The programs of `examples/gateway/` run to their end. Whether they learn is measured in docs/gateway.md."""

from __future__ import annotations

import json

import pytest
from support.doc_blocks import ROOT

pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

EXAMPLES = ROOT / "examples" / "gateway"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("train.py", ("--program", "loop")),
        ("train.py", ("--program", "compact")),
        ("smolagents_levers.py", ("--warm_up_steps", "2")),
    ],
)
def test_a_program_is_trained(fork_server, tmp_path, script, options):
    if script.startswith("smolagents"):
        pytest.importorskip("smolagents")
    environment = {"PYTHONPATH": str(ROOT / "src")}
    arguments = (*options, "--steps", "1", "--output_dir", tmp_path)
    done = fork_server.run(EXAMPLES / script, *arguments, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert 0.0 <= found["first"] <= 1.0 and found["first"] == found["last"]
