"""Training under DeepSpeed and FSDP: what one process can show of it, and what is refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from support.helpers import tiny_model
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.trainers import refusals as sharding
from mem1_trl.trainers.distillation import refuse_distillation
from mem1_trl.update.critic.optimizer import FollowingOptimizer

TESTS = Path(__file__).parents[1]
CONFIGS = TESTS.parent / "examples" / "accelerate"
KINDS = ["grpo", "ppo", "adapter", "shared", "warmup", "shared_warmup"]


def train(directory: Path, model: str, *launcher: str, kinds: list[str] = KINDS) -> dict[str, dict]:
    """What `train_under.py` saves for each kind."""
    directory.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, *launcher, str(TESTS / "scripts" / "train_under.py"), model, str(directory), *kinds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return {kind: torch.load(directory / f"{kind}.pt", weights_only=False) for kind in kinds}


def compare(plain: dict, sharded: dict, kind: str) -> None:
    """Losses, metrics, and the weights of policy and critic."""
    assert len(plain["logs"]) == len(sharded["logs"]) >= 2, kind
    for a, b in zip(plain["logs"], sharded["logs"]):
        for name in a.keys() - {"step_time", "value/clip_ratio"}:
            if name == "grad_norm" and name not in b:  # the engine takes no part in the warm-up of a critic
                assert "warmup" in kind and a[name] == 0.0
            else:
                assert b[name] == pytest.approx(a[name], abs=1e-6, rel=1e-5), (kind, a["step"], name)
    assert plain["weights"].keys() == sharded["weights"].keys()
    moved = {name.split(".")[0] for name, weight in plain["weights"].items() if bool(weight.abs().max() > 0)}
    assert moved == ({"policy"} if kind == "grpo" else {"policy", "critic"})
    for name, weight in plain["weights"].items():
        torch.testing.assert_close(sharded["weights"][name], weight, atol=2e-5, rtol=0, msg=f"{kind} {name}")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
def test_zero_with_one_process_is_plain_training(tmp_path, actor_path):
    """Launched with the configuration files of the examples."""
    plain = train(tmp_path / "plain", actor_path)
    for stage, kinds in ((2, [*KINDS, "first_half", "second_half"]), (3, KINDS)):
        launcher = ("-m", "accelerate.commands.launch", f"--config_file={CONFIGS / f'zero{stage}.yaml'}")
        options = ("--num_processes=1", "--mixed_precision=no")
        sharded = train(tmp_path / f"zero{stage}", actor_path, *launcher, *options, kinds=kinds)
        for kind in kinds:
            assert sharded[kind]["stage"] == stage, kind
            assert sharded[kind]["engine"] == "DeepSpeedEngine" and sharded[kind]["processes"] == 1, kind
            if kind in plain:
                assert plain[kind]["stage"] is None
                compare(plain[kind], sharded[kind], kind)
        if "second_half" in kinds:  # resumed from the checkpoint of the engine and of the critic's optimizer
            assert len(sharded["first_half"]["logs"]) == 2
            compare(plain["ppo"], sharded["second_half"], "second_half")


# What is refused


class Plugin:
    """What the trainer asks of accelerate's DeepSpeed plugin, which cannot be made without the package."""

    def __init__(self, zero_stage: int):
        self.zero_stage = zero_stage


def build(tmp_path, tokenizer, args, trainer_class=Mem1PPOTrainer):
    return trainer_class(
        model=tiny_model("llama"),
        args=args,
        train_dataset=lookup_dataset(),
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )


def ppo(tmp_path, **settings) -> Mem1PPOConfig:
    return Mem1PPOConfig(**trainer_arguments(tmp_path, beta=0.0, max_turns=2, max_observation_length=40, **settings))


def test_ppo_refuses_loss_scaling_by_deepspeed(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # as `accelerate launch` says it
    args = ppo(tmp_path)
    args.deepspeed_plugin = Plugin(zero_stage=2)
    with pytest.raises(ValueError, match=r"does not support fp16 with DeepSpeed, .*: use bf16"):
        build(tmp_path, tokenizer, args)


def test_ppo_refuses_the_first_version_of_fsdp(tmp_path, tokenizer, monkeypatch):
    """As `accelerate launch` says it, where 1 is the default, and as the arguments say it, where 2 is."""
    args = ppo(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"needs FSDP's version 2, .*, got 1: set fsdp_version to 2"):
        build(tmp_path, tokenizer, args)
    monkeypatch.setenv("FSDP_VERSION", "2")
    sharding.refuse_sharded_weights(args)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    sharding.refuse_sharded_weights(ppo(tmp_path, fsdp=True))
    with pytest.raises(ValueError, match=r"needs FSDP's version 2, .*, got 1"):
        sharding.refuse_sharded_weights(ppo(tmp_path, fsdp=True, fsdp_config={"version": 1}))


def test_ppo_refuses_shards_in_the_memory_of_the_cpu(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"does not support fsdp_offload_params, .*: set it to false"):
        sharding.refuse_sharded_weights(ppo(tmp_path, fsdp=True, fsdp_config={"cpu_offload": True}))
    args = ppo(tmp_path)
    for name in ("ACCELERATE_USE_FSDP", "FSDP_OFFLOAD_PARAMS"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="does not support fsdp_offload_params"):
        sharding.refuse_sharded_weights(args)


def test_ppo_refuses_loss_scaling_by_fsdp(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    args = ppo(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match=r"does not support fp16 with FSDP, .*: use bf16"):
        sharding.refuse_sharded_weights(args)


@pytest.mark.parametrize("engine", ["FSDP", "ZeRO-3", "ZeRO-2"])
def test_what_scores_by_the_whole_policy_is_refused_where_no_process_has_it(tmp_path, engine, monkeypatch):
    """Rewards for the worth of states, and a teacher: each process scores as many as its own episodes have."""
    args = ppo(tmp_path)
    args.memory_value_weight, args.distillation_weight = 0.5, 0.25
    if engine == "FSDP":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    else:
        args.deepspeed_plugin = Plugin(zero_stage=int(engine[-1]))
    asked = [
        lambda: sharding.refuse_memory_value(args, has_environment=True),
        lambda: refuse_distillation(args, "teacher", has_environment=True, has_critic=False),
    ]
    said = ["memory_value_weight=0.5 needs the whole policy in each process, which scores as many states as its own episodes have",
            "distillation_weight=0.25 needs the whole policy in each process, which scores as many tokens as its own episodes have"]  # fmt: skip
    for ask, sentence in zip(asked, said, strict=True):
        if engine == "ZeRO-2":  # where each process has all weights
            ask()
        else:
            with pytest.raises(ValueError, match=f"{sentence}: use DDP or ZeRO-2, or leave it 0.0."):
                ask()


def test_parts_of_a_micro_batch_are_refused_under_the_first_fsdp(tmp_path, tokenizer, monkeypatch):
    """What the configuration cannot know, since `accelerate launch` says it by the environment."""
    args = Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2, max_tokens_per_micro_batch=100))
    sharding.refuse_parts(args, fsdp=False)
    with pytest.raises(ValueError, match="FSDP of version 1 does not go with max_tokens_per_micro_batch"):
        sharding.refuse_parts(args, fsdp=True)
    monkeypatch.setenv("FSDP_VERSION", "2")
    sharding.refuse_parts(args, fsdp=True)
    asked = []
    monkeypatch.setattr(
        "mem1_trl.trainers.trl_seam.micro_batches.refuse_parts", lambda *answers: asked.append(answers)
    )
    build(tmp_path, tokenizer, args, Mem1GRPOTrainer)
    assert asked == [(args, False)], "every trainer asks"


# The critic's own optimizer


def test_a_following_optimizer_steps_as_a_group_of_the_leader_would(tmp_path):
    torch.manual_seed(0)
    values = torch.randn(3, 5)

    def quadratic(weight):
        return ((weight - 1.0) ** 2 * torch.arange(1.0, 6.0)).sum()

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 8)

    policy, critic = torch.nn.Parameter(values[0].clone()), torch.nn.Parameter(values[1].clone())
    joint = torch.optim.AdamW([{"params": [policy]}, {"params": [critic], "lr": 0.05}], lr=1e-3, weight_decay=0.0)
    steps = schedule(joint)
    other_policy, other = torch.nn.Parameter(values[0].clone()), torch.nn.Parameter(values[1].clone())
    leader = torch.optim.AdamW([other_policy], lr=1e-3, weight_decay=0.0)
    following = FollowingOptimizer(torch.optim.AdamW([other], lr=0.05, weight_decay=0.0))
    other_steps = schedule(leader)
    for step in range(6):
        for parameter in (policy, critic, other_policy, other):
            parameter.grad = None
            quadratic(parameter).backward()
        joint.step()
        following.step(leader)
        leader.step()
        steps.step()
        other_steps.step()
        if step == 2:  # as a run does that is resumed
            following.save(tmp_path)
            following = FollowingOptimizer(torch.optim.AdamW([other], lr=0.05, weight_decay=0.0))
            following.load(tmp_path)
    torch.testing.assert_close(other, critic, atol=1e-7, rtol=0)
    assert float((critic.detach() - values[1]).abs().max()) > 0.1


def test_a_leader_that_stands_still_has_a_constant_schedule():
    parameter, still = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    following = FollowingOptimizer(torch.optim.SGD([parameter], lr=0.5))
    parameter.grad = torch.ones(1)
    following.step(torch.optim.SGD([still], lr=0.0))
    assert float(parameter.detach()) == pytest.approx(0.5)
    assert not math.isnan(following.optimizer.param_groups[0]["lr"])


# The configuration files


@pytest.mark.parametrize(
    ("name", "kind"), [("ddp", "MULTI_GPU"), ("zero2", "DEEPSPEED"), ("zero3", "DEEPSPEED"), ("fsdp2", "FSDP")]
)
def test_accelerate_reads_the_configuration_files(name, kind):
    """By its own reader, which refuses keys that it does not know."""
    from accelerate.commands.config.config_args import load_config_from_file

    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == kind and config.mixed_precision == "bf16" and config.num_processes == 8
    written = yaml.safe_load(path.read_text())
    assert config.deepspeed_config == written.get("deepspeed_config", {})
    assert config.fsdp_config == written.get("fsdp_config", {})
    assert config.deepspeed_config.get("zero_stage") == {"zero2": 2, "zero3": 3}.get(name)


def test_accelerate_hands_the_configuration_of_fsdp2_to_its_plugin(monkeypatch):
    """What `accelerate launch` puts into the environment is what FSDP is then set up with."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    line = [f"--config_file={CONFIGS / 'fsdp2.yaml'}", "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(line))
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type).upper() and plugin.cpu_ram_efficient_loading
