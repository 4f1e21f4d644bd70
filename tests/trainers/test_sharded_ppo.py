"""PPO with weights in shards: two processes under FSDP2 (gloo) against one that holds everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.shards import OF_THE_SPLIT, assert_went_on, relative_error
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parents[1] / "scripts"
SHARDED = ("--per-device=2", "--accumulation=2", "--shard")
EXTREMES_OF_ROWS = frozenset({"clip_ratio/low_min", "clip_ratio/high_max"})
THREE_STEPS = ("--steps=3", "--max-grad-norm=0.1")


@pytest.fixture
def run(tmp_path, fork_server):
    """What `scripted_steps.py` saves."""

    def steps(name: str, kind: str, *options: str, processes: int = 1) -> dict:
        output = tmp_path / f"{name}.pt"
        done = fork_server.run(
            SCRIPTS / "scripted_steps.py", kind, output, *THREE_STEPS, *options, ranks=processes, timeout=200
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(output, weights_only=False)

    return steps


def same(plain: dict, sharded: dict, without: frozenset[str] = frozenset()) -> None:
    """Gradients of each step, logs, and the weights at the end; `without` are metrics that some steps lack: those that cut rows."""
    assert (plain["processes"], sharded["processes"]) == (1, 2)
    assert sharded["distributed"] == "DistributedType.FSDP", "otherwise both train in plain data parallelism"
    assert len(plain["gradients"]) == len(sharded["gradients"]) == 3
    for step, (one, other) in enumerate(zip(plain["gradients"], sharded["gradients"])):
        assert one.keys() == other.keys()
        for part in one:
            if one[part] or other[part]:  # the policy has none while the critic warms up
                assert relative_error(one[part], other[part]) < 1e-5, (step, part)
    assert not without or any(one.keys() - other.keys() for one, other in zip(plain["logs"], sharded["logs"]))
    for one, other in zip(plain["logs"], sharded["logs"], strict=True):
        missing = one.keys() - other.keys()
        assert missing in (set(), without)
        for name in one.keys() - OF_THE_SPLIT - missing:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
    for part in plain["weights"]:
        assert relative_error(plain["weights"][part], sharded["weights"][part]) < 1e-6, part


@pytest.mark.parametrize(
    "kind", ["grpo", "ppo", "adapter", "shared", "warmup", "shared_warmup", "checkpointing", "reference"]
)
def test_three_steps_in_shards_are_those_of_one_process(run, kind):
    plain = run("plain", kind)
    sharded = run("sharded", kind, *SHARDED, processes=2)
    same(plain, sharded)
    clipped = [entry["grad_norm"] > 0.1 for entry in plain["logs"]]
    assert any(clipped), "the limit must bind, so that clipping over shards is seen"
    assert sharded["parts"]["policy"] == pytest.approx(0.5, abs=0.01)
    if kind in ("ppo", "adapter"):
        assert sharded["parts"]["critic"] == pytest.approx(0.5, abs=0.02)
        assert any(entry["value/grad_norm"] > 0.1 for entry in plain["logs"])


@pytest.mark.parametrize("kind", ["cut", "cut_shared"])
def test_values_of_cut_states_are_asked_for_by_all_processes_together(run, kind):
    plain = run("plain", kind)
    assert 0 < plain["logs"][0]["completions/clipped_ratio"] < 1
    same(plain, run("sharded", kind, *SHARDED, processes=2))


@pytest.mark.parametrize("kind", ["grpo", "ppo", "shared"])
def test_parts_of_a_micro_batch_in_shards_add_up(run, kind):
    plain = run("plain", kind)
    sharded = run("sharded", kind, "--per-device=4", "--max-tokens=200", "--shard", processes=2)
    assert sharded["logs"][0]["micro_batch/parts"] > 1
    same(plain, sharded)
    # Beside the accumulation of Trainer, which keeps whole gradients until the last micro-batch
    same(plain, run("both", kind, *SHARDED, "--max-tokens=100", processes=2))


@pytest.mark.parametrize(("kind", "budget"), [("grpo", 110), ("ppo", 82), ("shared", 82), ("ppo", 1)])
def test_a_trajectory_that_one_process_cuts_does_not_keep_the_other_waiting(run, kind, budget):
    """Every pass gathers shards, so that the process with fewer pieces passes three tokens that count nothing."""
    sharded = run("sharded", kind, "--per-device=4", f"--max-tokens={budget}", "--shard", processes=2)
    empty = [own.count(0) for own in sharded["trained"]]
    assert max(log["micro_batch/parts"] for log in sharded["logs"]) > 4
    assert budget == 1 or sum(empty) > 0
    same(run("plain", kind), sharded, without=EXTREMES_OF_ROWS)


@pytest.mark.parametrize("kind", ["ppo", "adapter", "shared"])
def test_a_run_in_shards_is_saved_whole_and_goes_on_to_the_last_digit(run, tmp_path, kind):
    whole = run("whole", kind, *SHARDED, processes=2)
    kept = (*SHARDED, f"--run={tmp_path / 'run'}")
    assert len(run("first", kind, *kept, "--stop-after=2", processes=2)["gradients"]) == 2
    second = run("second", kind, *kept, "--resume", processes=2)
    assert len(second["gradients"]) == 1
    saved = tmp_path / "run" / "checkpoint-3"
    assert_went_on(whole, second, saved, kind)
    assert (saved / "critic" / "optimizer.pt").is_file()
    if kind == "adapter":
        of_file = load_file(saved / "critic" / "backbone" / "adapter_model.safetensors")
        of_run = {name: w for name, w in second["weights"]["critic"].items() if "lora" in name}
        assert len(of_file) == len(of_run) > 0
        for name, weight in of_run.items():
            short = name.replace(".default", "").split("layers.")[1]
            assert any(key.endswith(short) and torch.equal(value, weight) for key, value in of_file.items()), name


def test_a_reference_that_follows_goes_on_too(run, tmp_path):
    """Of a reference that began anew, the divergence of the third step would be another, and with it the weights."""
    whole = run("whole", "moving", *SHARDED, processes=2)
    kept = (*SHARDED, f"--run={tmp_path / 'run'}")
    run("first", "moving", *kept, "--stop-after=2", processes=2)
    second = run("second", "moving", *kept, "--resume", processes=2)
    for name, weight in whole["weights"]["policy"].items():
        assert torch.equal(second["weights"]["policy"][name], weight), name
    saved = torch.load(tmp_path / "run" / "checkpoint-3" / "mem1_reference.pt", weights_only=True)
    assert {name: tuple(weight.shape) for name, weight in saved.items()}.items() >= {
        name: tuple(weight.shape) for name, weight in second["weights"]["policy"].items()
    }.items()


def test_an_adapter_of_which_nothing_would_be_saved_is_refused(tmp_path, fork_server):
    wrapped = "--engine=FSDP_ACTIVATION_CHECKPOINTING=true"
    arguments = ("adapter", tmp_path / "none.pt", *SHARDED, wrapped)
    done = fork_server.run(SCRIPTS / "scripted_steps.py", *arguments, ranks=2, timeout=90)
    assert done.returncode == 1
    assert (
        "fsdp_activation_checkpointing does not go with an adapter, of which an empty file would be saved"
        in done.stderr
    )


@pytest.mark.parametrize("variable", ["FSDP_ACTIVATION_CHECKPOINTING=true", "FSDP_CPU_RAM_EFFICIENT_LOADING=false"])
def test_settings_of_the_engine_hold_for_the_critic_too(run, variable):
    same(run("plain", "ppo"), run("sharded", "ppo", *SHARDED, f"--engine={variable}", processes=2))


def test_processes_that_end_at_different_tokens_wait_for_each_other(tmp_path, fork_server, actor_path):
    """A process that stopped calling the model before the others would leave them waiting for its part of the weights."""
    done = fork_server.run(SCRIPTS / "generate_in_shards.py", actor_path, tmp_path, ranks=2, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    model = AutoModelForCausalLM.from_pretrained(actor_path, dtype=torch.float32)
    found = [row for rank in (0, 1) for row in torch.load(tmp_path / f"{rank}.pt", weights_only=True)]
    lengths = [len(ids) for _, ids, _ in found]
    assert len(found) == 3 and lengths[0] < max(lengths[1:])
    for prompt, ids, logprobs in found:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-5, rtol=0)
