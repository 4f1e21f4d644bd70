"""What the tests hold already: each category is a selection of them, whose cases are counted."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from .outcome import Outcome

ROOT = Path(__file__).parents[2]

SUITES = {
    "environments that raise, hang, crash or lie": "tests/environment_runtime tests/trainers/test_fault_training.py",
    "reward functions that misbehave": "tests/trainers/test_non_finite.py tests/trainers/test_user_mistakes.py tests/test_rewards.py -k 'reward or finite or row or number'",
    "kills and resumes, bit for bit": "tests/trainers/test_checkpoints.py",
    "ranks that die or fail": "tests/trainers/test_fault_processes.py tests/house/test_tests.py -k 'processes or process or forked'",
    "retriever servers that misbehave": "tests/retrieval/test_retrieval.py -k 'server or retriever or request or answers or body or score or time_out or search'",
    "web sites that misbehave": "tests/web/test_web.py",
    "model servers that misbehave": "tests/rollout/test_server_faults.py tests/rollout/test_endpoint.py tests/rollout/test_completions.py",
    "threads of one agent, together and apart": "tests/agent/test_agent_threads.py",
}
"""Category -> arguments of pytest."""


def measure(arguments: str) -> Outcome:
    """The cases of a selection of tests."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        command = f"{sys.executable} -m pytest -n 0 -p no:cacheprovider --junitxml={report} {arguments}"
        done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
        # Otherwise a file is not there, or nothing was selected, and the report is empty
        ran = done.returncode in {0, 1}
        if not ran or not report.is_file():
            return Outcome(tried=1, failed=1, failures=[(done.stdout + done.stderr)[-600:]])
        return read_report(report.read_text(encoding="utf-8"))


def read_report(text: str) -> Outcome:
    """The cases of a report of pytest."""
    outcome = Outcome()
    for case in ElementTree.fromstring(text).iter("testcase"):
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        if case.find("skipped") is not None:
            outcome.skipped += 1
            continue
        outcome.tried += 1
        if problem is not None:
            outcome.fail(f"{case.get('name')}: {problem.get('message', '')}")
    return outcome
