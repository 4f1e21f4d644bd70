"""The launch script for several nodes: the commands that it prints, that they can be understood, and what it refuses."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "multi_node"
SCRIPT = FOLDER / "launch.sh"
NODES = ("--nodes", "n1 n2 n3")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def launch(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=False)


def commands(*arguments: str, **variables: str) -> tuple[list[str], list[str]]:
    """The words of the server's command and of the trainers'."""
    done = launch("--dry_run", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    serve, train = done.stdout.splitlines()
    assert serve.endswith("&") and not train.endswith("&")
    return shlex.split(serve.removesuffix("&")), shlex.split(train)


def value(words: list[str], option: str) -> str:
    """Of `--option value` or `--option=value`."""
    for index, word in enumerate(words):
        if word == option:
            return words[index + 1]
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1]
    raise AssertionError(f"{option} is not in {words}")


def test_the_last_node_serves_and_the_others_train():
    script = ("train.py", "--output_dir", "runs/a b")
    serve, train = commands(*NODES, "--model", "me/model", "--tensor_parallel", "2", "--", *script)
    assert serve[:1] == train[:1] == ["srun"]
    assert value(serve, "--nodelist") == "n3" and value(train, "--nodelist") == "n1,n2"
    assert value(serve, "--nodes") == "1" and value(train, "--nodes") == value(train, "--ntasks") == "2"
    assert serve[serve.index("trl") :][:2] == ["trl", "vllm-serve"] and value(serve, "--model") == "me/model"
    assert (value(serve, "--tensor_parallel_size"), value(serve, "--data_parallel_size")) == ("2", "4")
    assert "--max_model_len" not in serve
    assert (value(train, "--nnodes"), value(train, "--nproc_per_node")) == ("2", "8")
    assert value(train, "--rdzv_endpoint") == "n1:29500"
    place = train.index("train.py")
    assert train.index("torchrun") < place and tuple(train[place : place + 3]) == script
    assert value(train, "--vllm_server_host") == "n3" and value(train, "--vllm_server_port") == value(serve, "--port")


def test_options_reach_the_commands():
    options = ("--gpus_per_node", "4", "--max_model_len", "2048", "--vllm_port", "8123", "--rendezvous_port", "30000")
    serve, train = commands(*NODES, "--model", "m", *options, "--", "t.py", SLURM_JOB_ID="77")
    assert value(serve, "--max_model_len") == "2048" and value(serve, "--port") == "8123"
    assert value(serve, "--data_parallel_size") == value(train, "--nproc_per_node") == "4"
    assert value(train, "--rdzv_endpoint") == "n1:30000" and value(train, "--rdzv_id") == "77"


def test_the_training_script_takes_what_it_is_given(tmp_path, monkeypatch):
    """The words behind the script, read by its own parser, and those of the server by TRL's."""
    from trl import TrlParser
    from trl.scripts.vllm_serve import ScriptArguments

    spec = importlib.util.spec_from_file_location("multi_node_train", FOLDER / "train.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, spec.name, module)
    spec.loader.exec_module(module)
    arguments = ("--output_dir", str(tmp_path), "--max_turns", "4", "--use_cpu", "True", "--bf16", "False")
    serve, train = commands(*NODES, "--model", "me/model", "--", "train.py", *arguments, "--objectives", "3")
    parser = TrlParser((module.TaskArguments, module.Mem1PPOConfig, module.ModelConfig))
    task, training, model = parser.parse_args_and_config(train[train.index("train.py") + 1 :])
    assert task.objectives == 3 and model.model_name_or_path == "me/model" and training.max_turns == 4
    assert training.use_vllm and training.vllm_mode == "server" and training.vllm_server_host == "n3"
    assert training.vllm_server_port == 8000 and training.vllm_server_timeout == 1800
    (served,) = TrlParser((ScriptArguments,)).parse_args_and_config(serve[serve.index("vllm-serve") + 1 :])
    assert served.model == "me/model" and served.port == 8000 and served.data_parallel_size == 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((*NODES, "--", "t.py"), "--model is missing: pass the id or path of the model."),
        ((*NODES, "--model", "m"), "the training script is missing: put it, and its arguments, after --."),
        ((*NODES, "--model", "m", "--gpus", "4", "--", "t.py"), "there is no option '--gpus' (the training script comes after --)"),
        ((*NODES, "--model", "m", "--vllm_port", "high", "--", "t.py"), "--vllm_port is 'high', but must be a whole number above 0."),
        ((*NODES, "--model", "--", "t.py"), "--model needs a value."),
        ((*NODES, "--model", "m", "--tensor_parallel", "3", "--", "t.py"), "--tensor_parallel 3 does not divide the 8 GPUs of a node"),
        ((*NODES, "--model", "m", "--data_parallel", "9", "--", "t.py"), "vLLM would need 9 GPUs of a node that has 8"),
        (("--nodes", "n1", "--model", "m", "--", "t.py"), "1 node is too few: the last one serves vLLM and the others train."),
        (("--model", "m", "--", "t.py"), "this is not a SLURM job: start it with sbatch, or name the nodes with --nodes."),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(arguments, sentence):
    done = launch("--dry_run", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"launch.sh: {sentence}") and done.stderr.count("\n") == 1


def test_the_server_stops_when_training_ends(tmp_path):
    """With a stand-in for `srun`: the exit status is that of training, and the server does not outlive it."""
    stand_in = tmp_path / "srun"
    stand_in.write_text(
        "#!/usr/bin/env bash\n"
        f'case "$*" in *vllm-serve*) echo $$ >{tmp_path}/server; exec sleep 60 ;; esac\n'
        f"while [[ ! -s {tmp_path}/server ]]; do sleep 0.05; done\nexit 7\n"
    )
    stand_in.chmod(0o755)
    done = launch(*NODES, "--model", "m", "--", "t.py", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 7, done.stderr
    server = int((tmp_path / "server").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
