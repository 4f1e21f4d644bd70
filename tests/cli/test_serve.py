"""`mem1 serve` as a command: it says where it listens, answers, and ends on SIGTERM when what is under way is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest
from support.doc_blocks import ROOT

from mem1_trl.cli import main
from mem1_trl.cli.serve import _keys

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

TINY = str(ROOT / "examples" / "assets" / "tiny-mem1")


def test_a_file_is_no_place_for_sessions(capsys, tmp_path):
    file = tmp_path / "taken"
    file.write_text("")
    assert main(["serve", "--model_name_or_path", TINY, "--sessions_dir", str(file)]) == 2
    sentence = f"mem1 serve: sessions_dir must be a folder, got '{file}', where '{file}' is a file"
    assert capsys.readouterr().err.splitlines()[0] == sentence


@pytest.fixture
def served(tmp_path):
    """The command in a process of its own, and its address."""
    command = [
        sys.executable, "-m", "mem1_trl", "serve", "--model_name_or_path", TINY, "--corpus", "facts", "--top_k", "1",
        "--max_completion_length", "64", "--port", "0", "--sessions_dir", str(tmp_path / "sessions"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("mem1 at http://127.0.0.1:"), line + (process.stderr.read() if process.poll() else "")
        yield process, line.split()[2].rstrip(".")
    finally:
        process.kill()
        process.communicate()


def ask(url: str, text: str) -> str:
    body = {"model": "mem1", "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["choices"][0]["message"]["content"]


@pytest.mark.slow
def test_it_answers_and_ends_on_sigterm_after_what_is_under_way(served):
    process, url = served
    assert ask(url, "capital of France") == "Paris"
    answers = []
    under_way = threading.Thread(target=lambda: answers.append(ask(url, "capital of Japan; capital of Italy")))
    running = url.removesuffix("/v1") + "/metrics"
    under_way.start()
    while "mem1_requests_open 1" not in urllib.request.urlopen(running).read().decode():
        assert under_way.is_alive(), "the answer was there before the signal"
    process.send_signal(signal.SIGTERM)
    under_way.join(60)
    _, errors = process.communicate(timeout=60)
    assert len(answers) == 1 and answers[0], "what was under way is answered"
    assert process.returncode in (0, -signal.SIGTERM) and "Traceback" not in errors
    with pytest.raises(OSError):
        ask(url, "capital of France")


def test_it_says_which_tools_a_request_must_bring(capsys, monkeypatch):
    monkeypatch.setattr("mem1_trl.wire.server.WireServer.run", lambda server: None)
    for given, said in (([], 1), (["--corpus", "facts"], 0), (["--protocol", "default"], 0)):
        assert main(["serve", "--model_name_or_path", TINY, "--port", "0", *given]) == 0
        assert capsys.readouterr().out.count("has actions (search): a request must bring tools of these names") == said


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_keys_are_read_with_a_byte_order_mark_or_without(tmp_path, encoding):
    (tmp_path / "keys").write_text("s3cret\n\n other \n", encoding=encoding)
    assert _keys(str(tmp_path / "keys")) == ("s3cret", "other")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--api_keys", "/nowhere"], "/nowhere"),
        (["--max_running", "0"], "max_running"),
        (["--max_waiting", "-1"], "max_waiting must be at least 0, got -1"),
        (
            ["--context", "compact", "--context_kwargs", "nojson"],
            "context_kwargs must be a JSON object such as '{\"every\": 4}', got 'nojson'",
        ),
        (["--prot", "1"], "an unknown option, 'prot'"),
    ],
)
def test_wrong_input_is_one_sentence(capsys, arguments, sentence):
    assert main(["serve", "--model_name_or_path", TINY, *arguments]) == 2
    error, help_line = capsys.readouterr().err.splitlines()
    assert error.startswith("mem1 serve: ") and sentence in error and "--help" in help_line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--repetition_penalty", "0"], "repetition_penalty must be above 0, got 0"),
        (["--temperature", "inf"], "temperature must be a finite number, got inf"),
    ],
)
def test_a_setting_out_of_its_range_is_one_sentence(capsys, arguments, sentence):
    assert main(["serve", "--model_name_or_path", TINY, *arguments]) == 2
    assert f"mem1 serve: {sentence}" in capsys.readouterr().err
