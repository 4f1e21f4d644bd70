"""The benchmarks run, compare like with like, and write what they say. Nothing here looks at a time."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    """The files that the scripts import as their neighbours."""
    names = ("memory_and_flops", "report", "summarize", "timing")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture
def run(tmp_path, fork_server):
    """The JSON of a smoke run, its structure checked."""

    def smoke(name: str, *arguments: str) -> dict:
        output = tmp_path / f"{name}.json"
        options = ("--smoke", "--threads", "1", "--output", output, *arguments)
        source = str(Path(__file__).parents[2] / "src")
        done = fork_server.run(BENCHMARKS / f"{name}.py", *options, environment={"PYTHONPATH": source})
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(output.read_text())
        assert report["benchmark"] == name and report["smoke"] is True
        assert report["system"]["threads"] == 1 and report["system"]["torch"] == torch.__version__
        assert report["cases"]
        for case in report["cases"]:
            assert case["name"] in done.stdout  # in the table
            assert case["variants"][case["baseline"]]["median_ratio"] == 1.0
            for variant in case["variants"].values():
                assert len(variant["wall_seconds"]) == len(variant["cpu_seconds"]) > 0
                assert variant["min_seconds"] <= variant["median_seconds"] <= variant["max_seconds"]
        return report

    return smoke


def values(case: dict, key: str) -> list:
    return [variant["values"][key] for variant in case["variants"].values()]


@pytest.mark.slow
def test_update_step_computes_one_gradient_in_fewer_tokens(run):
    report = run("update_step")
    layouts = [case["variants"] for case in report["cases"] if "per_turn" in case["variants"]]
    assert layouts
    for variants in layouts:
        packed = next(variants[name]["values"] for name in ("packed", "one tree") if name in variants)
        unfolded = variants["per_turn"]["values"]
        assert packed["summed_logprob"] == pytest.approx(unfolded["summed_logprob"], rel=1e-4)
        assert packed["tokens"] < unfolded["tokens"]
    (memory,) = [case for case in report["cases"] if case["name"].startswith("memory")]
    few, many = values(memory, "tokens")
    one, other = values(memory, "kB_per_token")
    assert many == 16 * few and other == pytest.approx(one, rel=0.02), (
        "a mask of all pairs, one byte each, would be a tenth of it"
    )


@pytest.mark.slow
def test_the_trainers_have_the_gradient_of_trl_on_a_row_for_each_turn(run):
    (case,) = run("trainer_update")["cases"]
    errors = {
        name: variant["values"]["gradient_error"]
        for name, variant in case["variants"].items()
        if "gradient_error" in variant["values"]
    }
    assert set(errors) == {"trl, a row for each turn", "per_turn", "packed"}
    assert max(errors.values()) < 1e-5 and {"ppo", "ppo, shared critic"} <= case["variants"].keys()


@pytest.mark.slow
def test_rollout_plays_the_same_turns_in_both_and_reads_less_of_them(run):
    variants = ("trl", "mem1", "full-no-cache")
    report = run("rollout", "--variants", *variants)
    assert [case["settings"]["turns"] for case in report["cases"]] == [1, 3]
    completion, group = report["settings"]["completion"], report["settings"]["group"]
    for case in report["cases"]:
        turns = case["settings"]["turns"] * group
        assert values(case, "turns") == [turns] * 3
        assert values(case, "generated_tokens") == [turns * completion] * 3
        theirs, mine, full = values(case, "forwarded_tokens")
        # Without a cache the appended history is TRL's own work, token by token
        assert full == theirs
        if turns > group:
            assert mine < theirs


@pytest.mark.slow
def test_training_step_takes_the_same_steps(run):
    report = run("training_step")
    step, start, imports = report["cases"]
    assert values(step, "largest_difference") == pytest.approx([0.0, 0.0], abs=1e-6)  # of loss and reward
    assert list(start["variants"]) == ["trl", "mem1"]
    theirs, mine = values(imports, "modules")
    assert mine < theirs


@pytest.mark.slow
def test_environments_answer_the_same_by_both_ways(run):
    report = run("environments")
    *searches, loop = report["cases"]
    assert len(searches) == 4
    for case in searches:
        queries, found = values(case, "queries"), values(case, "found")
        assert found == queries  # every query is made of words of the corpus
    assert values(loop, "steps") == [2, 128]


@pytest.mark.slow
def test_learning_speed_measures_before_and_after(run):
    report = run("learning_speed")
    (case,) = report["cases"]
    assert list(case["variants"]) == ["ppo", "grpo"]
    assert values(case, "steps") == [1, 1] and values(case, "reached") == [False, False]
    before = values(case, "em_before")
    assert before[0] == before[1]  # the same model on the same tasks
    for name, variant in case["variants"].items():
        curve = case["settings"]["curves"][name]
        assert [point["step"] for point in curve] == [0, 1]
        assert curve[0]["seconds"] == 0 and curve[1]["seconds"] == variant["median_seconds"]


def test_repetitions_run_forwards_and_backwards(modules):
    calls = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = modules.timing.compare(variants, repeats=2, baseline="a", warmup=1)
    assert "".join(calls) == "cba" + "abc" + "cba"
    assert [len(timing.seconds) for timing in timings.values()] == [2, 2, 2]
    with pytest.raises(ValueError, match="none of the variants a, b, c"):
        modules.timing.compare(variants, repeats=1, baseline="d")


def test_ratios_are_of_pairs(modules):
    timing = modules.timing
    assert timing.ratios(timing.Timing([1.0, 6.0, 3.0]), timing.Timing([2.0, 2.0, 3.0])) == [0.5, 3.0, 1.0]


def test_flops_of_matrices_and_of_attention(modules):
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert modules.memory_and_flops.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7

    def attend(causal: bool) -> None:
        q, k, v = (torch.randn(2, 4, 16, 8, requires_grad=True) for _ in range(3))
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward()

    # Two matrix products forward; five backward, one of them the scores again
    per_pair = 2 * 4 * 7 * 2 * 8
    assert modules.memory_and_flops.count_flops(lambda: attend(False)) == per_pair * 16 * 16
    assert modules.memory_and_flops.count_flops(lambda: attend(True)) == per_pair * 16 * 17 // 2


def test_peak_memory_counts_what_is_held_at_once(modules):

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.zeros(1000, 250)

    def together() -> None:
        kept = [torch.zeros(1000, 250) for _ in range(3)]
        del kept

    assert modules.memory_and_flops.peak_memory(one_after_the_other) == pytest.approx(1e6, rel=0.01)
    assert modules.memory_and_flops.peak_memory(together) == pytest.approx(3e6, rel=0.01)


def test_summary_comes_from_the_files(modules, tmp_path):
    summarize, timing = modules.summarize, modules.timing
    args = type("Args", (), {"smoke": False, "repeats": 2, "device": "cpu", "clock": "wall"})
    report = modules.report.Report("probe", args, {"hidden_size": 1024})
    timings = {"slow": timing.Timing([2.0, 4.0], [1.0, 1.0]), "fast": timing.Timing([1.0, 1.0], [1.0, 1.0])}
    report.add("case", timings, "slow", values={"fast": {"peak_bytes": 5_000_000}})
    (tmp_path / "probe.json").write_text(json.dumps(report.as_dict()))
    text = "a\n<!-- results: probe -->\nold\n<!-- end -->\nb\n<!-- results: none -->\n<!-- end -->\n"
    filled = summarize.fill(text, tmp_path)
    assert "old" not in filled and filled.startswith("a\n") and "Not measured yet." in filled
    assert "| variant | median (range) | time / slow (range) | peak MB |" in filled
    assert "| slow | 3 s (2 s – 4 s) | 1 | - |" in filled
    assert "| fast | 1 s (1 s – 1 s) | 0.38 (0.25 – 0.50) | 5 |" in filled
    assert "hidden size 1,024" in filled
    assert summarize.fill(filled, tmp_path) == filled
    (tmp_path / "probe.json").write_text(json.dumps({**report.as_dict(), "smoke": True}))
    with pytest.raises(ValueError, match="smoke run"):
        summarize.fill(text, tmp_path)


def test_readme_is_what_the_files_say(modules):
    summarize = modules.summarize
    text = summarize.README.read_text()
    assert summarize.fill(text, BENCHMARKS / "results") == text
    for path in (BENCHMARKS / "results").glob("*.json"):
        if ".smoke" not in path.name:
            assert f"<!-- results: {path.stem} -->" in text


@pytest.mark.slow
def test_retrieval_finds_the_same_by_every_way(run):
    report = run("retrieval")
    build, memory, keywords, questions, http = report["cases"]
    [built] = build["variants"].values()
    assert built["values"]["passages"] == 2000 and built["values"]["entries"] > 2000 * 50
    [searched] = memory["variants"].values()
    assert searched["values"]["own_after_bytes"] > 0
    for case in (keywords, questions):
        assert values(case, "found") == values(case, "queries") == [20] * len(case["variants"])
    assert list(http["variants"]) == ["in the process", "HTTP, 1 client", "HTTP, 16 clients"]


@pytest.mark.slow
def test_trees_forward_fewer_tokens_for_the_same_logprobs(run):
    for case in run("trees")["cases"]:
        one_call, like_lengths, tree = values(case, "tokens")
        assert tree < like_lengths <= one_call
        assert values(case, "summed_logprob") == pytest.approx(
            [case["variants"]["packed"]["values"]["summed_logprob"]] * 3, rel=1e-4
        )


@pytest.mark.slow
def test_episodes_that_wait_and_those_that_do_not_play_the_same_turns(run):
    played, *simulated, decoded = run("waiting")["cases"]
    assert len(set(values(decoded, "tokens"))) == 1
    assert values(played, "turns") == [2, 8, 8]
    assert played["variants"]["longest episode alone"]["values"]["actions_alone"] > 0
    for case in simulated:
        lockstep, _, _, admitted = values(case, "decoding_steps")
        assert admitted <= lockstep


def test_simulated_steps_are_those_counted_by_hand(modules):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        waiting = importlib.import_module("waiting")
    finally:
        sys.path.remove(str(BENCHMARKS))
    lengths, quick, slow = [[3, 1], [1, 4]], [[0, 0], [0, 0]], [[0, 0], [8, 0]]
    assert waiting.lockstep(lengths, quick) == (3 + 4, 7)
    assert waiting.lockstep(lengths, slow) == (3 + 4, 3 + 8 + 4)
    # A call of 3, then both are ready: a call of 4
    assert waiting.in_calls(lengths, quick) == (3 + 4, 7)
    # The second episode is ready again at 11: a call of 3, one of 1, one of 4
    assert waiting.in_calls(lengths, slow) == (3 + 1 + 4, 15)
    # Left when half have ended: calls of 1, 2 (the first turn of one, the second of the other ends after 4) and 2
    assert waiting.in_calls(lengths, quick, share=2) == (1 + 2 + 1 + 1, 5)
    # One is generated in steps 0 to 4, the other in 0 to 1 and 1 to 5
    assert waiting.with_admission(lengths, quick) == (5, 5)
    # 0 to 3 and 3 to 4; 0 to 1 and 9 to 13
    assert waiting.with_admission(lengths, slow) == (4 + 4, 13)
