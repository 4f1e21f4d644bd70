"""Tests of scripts/check_gpu.py: its short form on a CPU, that each kind of check finds a fault, and all of it on a GPU."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch
from support.doc_blocks import ROOT

import mem1_trl.update.attention.cpu_kernels as cpu_kernels

for folder in ("scripts", "benchmarks"):
    sys.path.append(str(ROOT / folder))

import check_gpu
import gpu_checks.check
from gpu_checks import exactness, speed, training
from gpu_checks.check import Check, Finding, Setting, outcome_of, outcomes
from support import some_gpu_checks

HERE = Setting("cpu", short=True)


@pytest.mark.slow
def test_the_command_runs_everything_on_a_cpu_and_writes_one_file(tmp_path, capfd):
    output = tmp_path / "gpu.json"
    assert check_gpu.main(["--device", "cpu", "--short", "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert record["device"] == "cpu" and record["short"] and record["differs"] == []
    found = {one["name"]: one for one in record["checks"]}
    assert len(found) == len(record["checks"])
    assert found["system"]["measured"]["system"]["torch"] == torch.__version__
    said = capfd.readouterr().out.splitlines()
    for name, one in found.items():
        assert one["outcome"] in ("as expected", "skipped")
        assert (one["reasons"] == []) == (one["outcome"] == "as expected") and one["seconds"] >= 0
        assert sum(line.startswith(f"{name}: {one['outcome']}") for line in said) == 1
    assert record["skipped"] == [name for name, one in found.items() if one["outcome"] == "skipped"]
    assert found["vLLM: colocate"]["reasons"][0] in ("vllm is not installed", "vllm needs a GPU")
    exact = found["exactness: llama, float32"]["measured"]
    assert 0 < exact["packed: nats"] < 1e-4 and 0 < exact["packed: gradient"] < 1e-4
    assert exact["tokens of the tree over those of rows"] < 0.9
    half = found["exactness: llama, bfloat16"]["measured"]
    assert 1e-3 < half["packed: nats"] < 1
    for trainer in ("GRPO", "PPO"):
        assert found[f"two steps: {trainer}, float32"]["measured"]["steps"] == 2
    assert said[-1].startswith(f"{len(found) - len(record['skipped'])} as expected, 0 different")


def test_a_kernel_that_is_off_is_found(monkeypatch):
    real = cpu_kernels.tree_attention
    assert exactness.check_model("llama", torch.float32, HERE).differs == []
    monkeypatch.setattr(cpu_kernels, "tree_attention", lambda *args: 1.02 * real(*args))
    found = exactness.check_model("llama", torch.float32, HERE).differs
    assert [sentence.split(" is ")[0] for sentence in found] == ["packed: nats", "packed: gradient"]


def test_a_kernel_that_is_not_used_is_found(monkeypatch):
    monkeypatch.setattr(exactness.interface, "can_plan", lambda *args: False)
    found = exactness.check_model("llama", torch.float32, HERE).differs
    assert found[0] == "follows a tree is False, expected True"
    assert found[1] == "tokens of the tree over those of rows is 1, expected at most 0.95"


def test_steps_that_change_nothing_are_found(monkeypatch):
    real = training.trainer_arguments
    monkeypatch.setattr(
        training, "trainer_arguments", lambda *args, **more: real(*args, **{**more, "learning_rate": 0.0})
    )
    (sentence,) = training.check_trainer("GRPO", "float32", HERE).differs
    assert sentence.startswith("trained tensors that have not moved is ['model.embed_tokens.weight', ")


def test_a_trainer_that_is_refused_is_found(monkeypatch):
    real = cpu_kernels.tree_attention
    monkeypatch.setattr(cpu_kernels, "tree_attention", lambda *args: 1.5 * real(*args))
    (check,) = [one for one in training.checks(short=True) if one.name == "two steps: GRPO, float32"]
    found = outcome_of(check, HERE)
    assert found.outcome == "different" and found.reasons == ["layout is 'per_turn', expected 'packed'"]


def test_a_benchmark_that_fails_or_is_slow_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "BENCHMARKS", tmp_path)
    (tmp_path / "update_step.py").write_text("raise SystemExit('exact layouts disagree')")
    (check,) = speed.checks(short=True)
    found = outcome_of(check, HERE)
    assert found.outcome == "failed" and found.reasons[0].endswith(": exact layouts disagree")
    variant = {"median_seconds": 0.5, "values": {"tokens": 100}}
    case = {"name": "c", "variants": {"packed": variant, "per_turn": {**variant, "values": {"tokens": 200}}}}
    slow = Finding()
    speed.examine(slow, case, short=False)
    assert slow.differs == ["c: time over tokens is 2, expected at most 1.25"]
    case["variants"]["packed"] = {"median_seconds": 0.3, "values": {"tokens": 100}}
    fast = Finding()
    speed.examine(fast, case, short=False)
    assert fast.differs == [] and fast.measured["c: time over tokens"] == pytest.approx(1.2)


# Processes


def test_each_check_runs_whatever_becomes_of_the_others(tmp_path, capfd):
    kinds = {
        "crashes": some_gpu_checks.crashes,
        "is fine": some_gpu_checks.fine,
        "is strange": some_gpu_checks.strange,
        "is broken": some_gpu_checks.broken,
        "is absent": some_gpu_checks.absent,
    }
    output = tmp_path / "found.json"
    assert check_gpu.run([Check(name, run) for name, run in kinds.items()], HERE, 600, output) == 1
    record = json.loads(output.read_text())
    assert record["differs"] == ["crashes", "is strange", "is broken"] and record["skipped"] == ["is absent"]
    by_name = {one["name"]: (one["outcome"], one["reasons"]) for one in record["checks"]}
    assert by_name["crashes"] == ("failed", ["its process ended with exit status 3"])
    assert by_name["is fine"] == ("as expected", [])
    assert by_name["is strange"] == (
        "different",
        ["number is nan, expected at most 2", "layout is 'per_turn', expected 'packed'"],
    )
    assert by_name["is broken"][0] == "failed" and by_name["is broken"][1][0].endswith(": no such kernel")
    assert by_name["is absent"] == ("skipped", ["vllm is not installed"])
    processes = {one["measured"]["process"] for one in record["checks"] if "process" in one["measured"]}
    assert len(processes) == 1 and os.getpid() not in processes  # libraries are imported once
    said = capfd.readouterr().out
    assert "is strange: different (0 s)\n    number is nan, expected at most 2\n" in said


def test_a_check_that_does_not_end_is_ended(monkeypatch):
    checks = [Check("hangs", some_gpu_checks.hangs), Check("comes after", some_gpu_checks.fine)]
    hangs, after = outcomes(checks, HERE, seconds=1.0)  # since the time of all of them is over
    assert hangs.outcome == "skipped" and hangs.reasons == ["the 1 seconds were over before it ended"]
    assert after.outcome == "skipped" and after.reasons == ["the 1 seconds were over"]
    monkeypatch.setattr(gpu_checks.check, "LONGEST", 1.0)
    hangs, after = outcomes(checks, HERE, seconds=600)  # since it takes longer than any
    assert hangs.outcome == "failed" and hangs.reasons == ["it had not ended after 1 seconds"]
    assert after.outcome == "as expected"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "check",
    [one for part in check_gpu.PARTS.values() for one in part.checks(short=True)],
    ids=lambda check: check.name,
)
def test_a_gpu_is_as_expected(check):
    (found,) = outcomes([check], Setting("cuda", short=True), seconds=600)
    assert found.outcome in ("as expected", "skipped"), found.reasons
