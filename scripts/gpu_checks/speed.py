"""Benchmarks in short: time of an update in the layouts, beside their tokens."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .check import Check, Finding, Setting

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OVERHEAD = 1.25
"""How many times the ratio of their tokens the ratio of two layouts' times may be."""


def check_update(setting: Setting) -> Finding:
    """`benchmarks/update_step.py`, which fails by itself where exact layouts disagree on the sum of log-probs."""
    finding = Finding()
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "update_step.json"
        size = ["--smoke"] if setting.short else ["--hidden_size", "1024", "--layers", "8", "--repeats", "3"]
        command = [sys.executable, str(BENCHMARKS / "update_step.py"), "--only", "layouts", "--device", setting.device]
        done = subprocess.run([*command, *size, "--output", str(output)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[-1])
        for case in json.loads(output.read_text())["cases"]:
            examine(finding, case, setting.short)
    return finding


def examine(finding: Finding, case: dict[str, Any], short: bool) -> None:
    """Hold a case of the benchmark against what is expected: where fewer tokens are forwarded, less time is needed."""
    name, variants = case["name"], case["variants"]
    tokens = variants["packed"]["values"]["tokens"] / variants["per_turn"]["values"]["tokens"]
    time = variants["packed"]["median_seconds"] / variants["per_turn"]["median_seconds"]
    for layout, one in variants.items():
        finding.measured[f"{name}: {layout}"] = {"ms": 1e3 * one["median_seconds"], "tokens": one["values"]["tokens"]}
    finding.measured[f"{name}: tokens of packed over per_turn"] = tokens
    # Of tiny sizes the times mean nothing
    finding.expect(f"{name}: time over tokens", time / tokens, math.inf if short else OVERHEAD)


def checks(short: bool) -> list[Check]:
    """Updates in the layouts."""
    return [Check("speed: an update", check_update)]
