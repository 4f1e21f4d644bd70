"""
DeepSpeed with weights, gradients and states in shards: two processes (gloo) against one that holds everything.

Skipped without the package: `pip install deepspeed`, which needs a compiler where it first runs.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.shards import OF_THE_SPLIT, assert_went_on, relative_error

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed"),
]
SCRIPT = Path(__file__).parents[1] / "scripts" / "scripted_steps.py"
THREE_STEPS = ("--steps=3", "--max-grad-norm=0.1")
SPLIT = ("--per-device=2", "--accumulation=2")
OWN_CRITICS = {"ppo", "warmup", "checkpointing", "reference", "cut"}


@pytest.fixture
def run(tmp_path, fork_server):
    """What `scripted_steps.py` saves, of one process or of two at a stage of ZeRO."""

    def steps(name: str, kind: str, *options: str, stage: int | None = None) -> dict:
        output = tmp_path / f"{name}.pt"
        engine = () if stage is None else (*SPLIT, f"--zero={stage}")
        arguments = (kind, output, *THREE_STEPS, *engine, *options)
        done = fork_server.run(SCRIPT, *arguments, ranks=1 if stage is None else 2, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(output, weights_only=False)

    return steps


def same(plain: dict, split: dict) -> None:
    """Logs, among them norms of gradients that are clipped, and the weights at the end."""
    assert (plain["processes"], split["processes"]) == (1, 2)
    assert split["distributed"] == "DistributedType.DEEPSPEED"
    assert len(plain["logs"]) == len(split["logs"]) == 3
    assert any(entry["grad_norm"] > 0.1 for entry in plain["logs"]), "the limit must bind"
    for one, other in zip(plain["logs"], split["logs"], strict=True):
        for name in one.keys() - OF_THE_SPLIT:
            if name == "grad_norm" and name not in other:  # the engine takes no part in the warm-up of a critic
                assert one[name] == 0.0
            else:
                assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
    for part in plain["weights"]:
        assert relative_error(plain["weights"][part], split["weights"][part]) < 1e-6, part


@pytest.mark.parametrize("kind", ["grpo", "ppo", "adapter", "shared", "warmup"])
def test_three_steps_at_stage_2_are_those_of_one_process(run, kind):
    split = run("split", kind, stage=2)
    same(run("plain", kind), split)
    assert set(split["parts"].values()) == {1.0}


@pytest.mark.parametrize(
    "kind",
    [
        "grpo",
        "ppo",
        "adapter",
        "shared",
        "warmup",
        "shared_warmup",
        "checkpointing",
        "reference",
        "cut",
        "cut_shared",
        "grpo_adapter",
    ],
)
@pytest.mark.parametrize("loaded", [False, True])
def test_three_steps_at_stage_3_are_those_of_one_process(run, kind, loaded):
    """Of a model that was made before, and of one that is in shards from its loading on."""
    options = ("--from-path",) if loaded else ()
    split = run("split", kind, *options, stage=3)
    same(run("plain", kind, *options), split)
    assert split["parts"]["policy"] == pytest.approx(0.5, abs=0.02)
    if kind in OWN_CRITICS or kind == "adapter":  # whose frozen weights are those of the policy
        assert split["parts"]["critic"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(("kind", "budget"), [("grpo", 110), ("ppo", 82), ("shared", 82), ("warmup", 82), ("ppo", 1)])
def test_parts_of_a_micro_batch_add_up(run, kind, budget, stage):
    """Processes make equally many passes, some of them over nothing; the engine steps after the last."""
    parts = run("parts", kind, f"--max-tokens={budget}", stage=stage)
    same(run("plain", kind), parts)
    assert max(log["micro_batch/parts"] for log in parts["logs"]) > 2


@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_of_which_no_episode_is_left_moves_nothing(run, stage):
    """The engine steps in its last backward pass, and momentum of the first step would move the weights in the second."""
    plain, split = run("plain", "idle"), run("split", "idle", stage=stage)
    assert relative_error(plain["weights"]["policy"], split["weights"]["policy"]) < 1e-6


def test_a_critic_from_a_path_is_split_too(run):
    """Which transformers would split for an engine that no critic has."""
    options = ("--from-path", "--critic-from-path")
    split = run("split", "ppo", *options, stage=3)
    same(run("plain", "ppo", *options), split)
    assert split["parts"]["critic"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("kind", ["ppo", "adapter", "shared"])
def test_a_run_at_stage_3_is_saved_whole_and_goes_on_to_the_last_digit(run, tmp_path, kind):
    whole = run("whole", kind, "--from-path", stage=3)
    kept = ("--from-path", f"--run={tmp_path / 'run'}")
    assert len(run("first", kind, *kept, "--stop-after=2", stage=3)["logs"]) == 2
    second = run("second", kind, *kept, "--resume", stage=3)
    assert len(second["gradients"]) == 1
    assert_went_on(whole, second, tmp_path / "run" / "checkpoint-3", kind)


def test_bfloat16_at_stage_3_stays_close(run):
    """Weights of the critic and the optimizer's are float32; both models compute in bfloat16."""
    plain, split = run("plain", "ppo"), run("split", "ppo", "--bf16", stage=3)
    assert {str(weight.dtype) for weight in split["weights"]["critic"].values()} == {"torch.float32"}
    for one, other in zip(plain["logs"], split["logs"], strict=True):
        for name in ("grad_norm", "value/grad_norm", "value/loss"):
            assert other[name] == pytest.approx(one[name], rel=0.05), name
