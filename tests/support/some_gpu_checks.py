"""Checks for the tests of scripts/check_gpu.py, in a module that another process can import."""

from __future__ import annotations

import os
import time

from gpu_checks.check import Finding, Setting, Skipped


def crashes(setting: Setting) -> Finding:
    os._exit(3)


def fine(setting: Setting) -> Finding:
    finding = Finding({"process": os.getpid()})
    finding.expect("number", 1.0, most=2.0)
    return finding


def strange(setting: Setting) -> Finding:
    finding = Finding({"process": os.getpid()})
    finding.expect("number", float("nan"), most=2.0)
    finding.expect_equal("layout", "per_turn", "packed")
    return finding


def broken(setting: Setting) -> Finding:
    raise RuntimeError("no such kernel")


def absent(setting: Setting) -> Finding:
    raise Skipped("vllm is not installed")


def hangs(setting: Setting) -> Finding:
    time.sleep(600)
    return Finding()
