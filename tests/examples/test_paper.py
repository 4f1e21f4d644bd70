"""The paper's experiment: the chain on a small scale, its configurations, its checks, and the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "paper"
sys.path.insert(0, str(FOLDER))

import checks  # noqa: E402
import table  # noqa: E402
import train  # noqa: E402
from smoke_files import write_files  # noqa: E402

TINY = str(ROOT / "examples" / "assets" / "tiny-mem1")
REAL = ("published", "several_gpus", "one_gpu")
SIZES = {
    "Qwen/Qwen2.5-7B": dict(
        hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064,
        tie_word_embeddings=False,
    ),
    "Qwen/Qwen2.5-1.5B": dict(
        hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936,
        tie_word_embeddings=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "data"
    write_files(folder)
    return folder


def files(data: Path) -> list[str]:
    named = [str(data / name / "train.jsonl") for name in ("nq", "hotpotqa")]
    return ["--train_files", *named, "--corpus", str(data / "wiki-18.jsonl")]


def start(monkeypatch, *arguments: str) -> str | None:
    """Run train.py's main; the sentences with which it ended, if it did."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    try:
        train.main()
    except SystemExit as ended:
        return str(ended.code)
    return None


def smoke(*arguments: str) -> list[str]:
    return ["--config", str(FOLDER / "smoke.yaml"), "--model_name_or_path", TINY, "--check_only", "True", *arguments]


def test_files_have_the_schemas_of_flashrag(data):
    question = json.loads((data / "nq" / "train.jsonl").read_text().splitlines()[0])
    assert set(question) == {"id", "question", "golden_answers"} and isinstance(question["golden_answers"], list)
    passage = json.loads((data / "wiki-18.jsonl").read_text().splitlines()[0])
    assert set(passage) == {"id", "contents"} and passage["contents"].startswith('"')
    assert "\n" in passage["contents"]


def test_a_complete_setup_passes_the_checks(data, monkeypatch, capsys):
    assert start(monkeypatch, *smoke(*files(data))) is None
    said = capsys.readouterr().out
    assert said.endswith("Nothing is missing.\n")
    assert "8 tasks are played at a time, and 4 are in an update (the paper: 128 and 64)." in said


def test_a_context_that_grows_is_trained_without_an_estimate(data, monkeypatch, capsys):
    options = ("--context", "full", "--layout", "packed", "--check_only", "True")
    assert start(monkeypatch, *smoke(*files(data), *options)) is None
    said = capsys.readouterr().out
    assert said == "No estimate: with context='full' contexts grow.\nNothing is missing.\n"


def test_each_thing_that_is_missing_is_one_sentence(data, monkeypatch, tmp_path):
    (tmp_path / "odd.jsonl").write_text('{"id": "0", "query": "q", "golden_answers": ["a"]}\n')
    ended = start(
        monkeypatch,
        *smoke("--train_files", str(tmp_path / "none.jsonl"), str(tmp_path / "odd.jsonl"), "--corpus", "http://127.0.0.1:9"),
        "--load_in_4bit", "True", "--use_peft", "False", "--gpu_memory", "0.1",
    )  # fmt: skip
    lines = ended.split("\n")
    assert (
        all(line.startswith("train.py: ") for line in lines) and len(lines) == 4
    )  # such a run has no memory to be told
    assert f"There is no file {str(tmp_path / 'none.jsonl')!r}" in lines[0]
    assert "question" in lines[1] and "'query'" in lines[1]
    assert "No retriever answers at http://127.0.0.1:9/retrieve" in lines[2]
    assert "Quantized weights are frozen, and nothing would be trained: set use_peft: true." in lines[3]
    ended = start(monkeypatch, *smoke(*files(data)), "--gpu_memory", "0.1")
    assert ended.startswith("train.py: A GPU must have about") and "but it has 0" in ended and "\n" not in ended


def test_a_corpus_that_is_too_small_and_packages_that_are_not_installed(data, monkeypatch, tmp_path):
    (tmp_path / "small.jsonl").write_text('{"id": "0", "contents": "\\"A\\"\\nThe capital city of a country."}\n')
    real = checks.importlib.util.find_spec
    absent = ("bitsandbytes", "vllm")
    monkeypatch.setattr(
        checks.importlib.util, "find_spec", lambda name, *a: None if name in absent else real(name, *a)
    )
    named = files(data)[:-1]
    options = ("--passages", "3", "--load_in_4bit", "True", "--use_vllm", "True")
    ended = start(monkeypatch, *smoke(*named, str(tmp_path / "small.jsonl"), *options))
    few, bitsandbytes, vllm = ended.split("\n")
    assert "A search must find 3 passages, but the retriever" in few and "found 1: is the corpus complete?" in few
    assert "bitsandbytes is not installed: pip install bitsandbytes, or leave out load_in_4bit" in bitsandbytes
    assert "vllm is not installed: pip install vllm, or leave out use_vllm." in vllm


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("lerning_rate: 1.0", "the file of --config holds an unknown option, 'lerning_rate': did you mean 'learning_rate'?"),
        ("layout: paked", "layout is 'paked', but must be one of packed, per_turn, paper"),
        ("objectives: 0", "objectives must be at least 1, got 0."),
        ("expected_episode: [1.0, 2.0]", "expected_episode must have 4 numbers"),
        ("lam: [", "the file of --config is not YAML: while parsing a flow node"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_sentence(data, monkeypatch, tmp_path, line, sentence):
    name = line.partition(":")[0]
    lines = [one for one in (FOLDER / "smoke.yaml").read_text().splitlines() if not one.startswith(f"{name}:")]
    (tmp_path / "own.yaml").write_text("\n".join([*lines, line, ""]))
    ended = start(monkeypatch, "--config", str(tmp_path / "own.yaml"), *files(data))
    assert ended.startswith("train.py: ") and "\n" not in ended and sentence in ended


def test_a_launch_with_another_number_of_processes_is_refused(data, monkeypatch):
    ended = start(monkeypatch, *smoke(*files(data), "--gpus", "4", "--zero2", "True"))
    assert "meant for 4 GPU(s), but 1 process(es) were started: use accelerate launch --num_processes 4" in ended
    assert "zero2 is True, but DeepSpeed's stage is None" in ended


@pytest.mark.parametrize(("name", "gpu", "fits"), [("published", 141, False), ("several_gpus", 80, True), ("one_gpu", 24, True)])  # fmt: skip
def test_configurations_are_those_of_the_paper(data, monkeypatch, tmp_path, capsys, name, gpu, fits):
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    model = AutoConfig.for_model(
        "qwen2", num_hidden_layers=28, dtype="bfloat16", **SIZES[config["model_name_or_path"]]
    )
    model.save_pretrained(tmp_path)
    described = ("--check_only", "True", "--use_cpu", "True", "--gpu_memory", str(gpu))
    ended = start(
        monkeypatch, "--config", str(FOLDER / f"{name}.yaml"), *files(data), "--model_name_or_path", str(tmp_path), *described
    )  # fmt: skip
    assert (ended is None) == fits, ended
    said = capsys.readouterr().out
    assert "128 tasks are played at a time, and 64 are in an update" in said
    largest = float(said.split("memory of one GPU: ")[1].split(" GB")[0].replace(",", ""))
    [row] = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith(f"| `{name}.yaml`")]
    written = float(row.split("|")[-2].strip().removesuffix(" GB"))
    assert written == pytest.approx(largest * checks.SPARE[0] + checks.SPARE[1] / 1e9, rel=0.03), (
        "README.md says another"
    )
    script, args, _ = checks.read_options(
        (train.ScriptArguments, train.Mem1PPOConfig, train.ModelConfig),
        ["--config", str(FOLDER / f"{name}.yaml"), "--use_cpu", "True"],
    )
    assert (script.objectives, script.passages, script.protocol) == (2, 3, "reference")
    assert (args.max_turns, args.max_completion_length, args.max_observation_length) == (6, 1000, 1000)
    assert (args.gamma, args.lam, args.beta, args.entropy_coef) == (1.0, 1.0, 0.001, 0.001)
    assert (args.epsilon, args.cliprange_value, args.max_grad_norm, args.temperature) == (0.2, 0.5, 1.0, 1.0)
    assert (args.num_generations, args.num_iterations, args.max_steps, args.warmup_steps) == (1, 1, 1000, 25)
    assert args.kl_in_reward and args.whiten_advantages
    factor = 1 if name == "published" else 10
    assert (args.learning_rate, args.value_learning_rate) == pytest.approx((1e-6 * factor, 1e-5 * factor))
    assert args.steps_per_generation == 2 * args.gradient_accumulation_steps


def test_tasks_are_pairs_of_rows_of_one_file(data):
    questions = [checks.load_qa_dataset(path) for path in files(data)[1:3]]
    tasks = checks.compose(questions, 2)
    assert len(tasks) == 40
    assert tasks[0]["questions"] == questions[0]["question"][:2]
    assert tasks[20]["questions"] == questions[1]["question"][:2]


def test_the_table_has_the_papers_numbers_and_their_sources(capsys, monkeypatch):
    record = json.loads((FOLDER / "published_results.json").read_text())
    rows = table.published_rows(record)
    assert rows["MEM1-QA 7B (paper)"][16] == {"em": 1.97, "f1": 2.39, "peak": 10.4, "seconds": 8.7}
    assert all(set(by_number) == {2, 8, 16} for by_number in rows.values())
    monkeypatch.setattr(sys, "argv", ["table.py", "--markdown"])
    table.main()
    said = capsys.readouterr().out
    assert "| MEM1-QA 7B (paper) | 0.709 / 0.838 / 6.4 / 6.49 |" in said and "| this run" not in said
    for source in ("2506.15841", "2603.00680", "2511.02805"):
        assert source in said


@pytest.mark.slow
def test_the_whole_chain_runs(tmp_path):
    command = [sys.executable, str(FOLDER / "run.py"), "--smoke", "--output_dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Nothing is missing." in done.stdout and "s a step, which is" in done.stdout
    assert "MEM1-QA 7B (paper)" in done.stdout
    for n in (1, 2):
        found = json.loads((tmp_path / "evaluation" / f"this-run-{n}.json").read_text())
        assert (found["count"], found["objectives"], found["errors"]) == (4, n, 0.0)
    rows = table.own_rows(tmp_path)["this run (4 tasks)"]
    assert set(rows) == {1, 2} and rows[2]["peak"] > 0.5
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()
    left = subprocess.run(
        [*command, "--config", "x.yaml"], env=environment, capture_output=True, text=True, check=False
    )
    assert left.returncode == 2 and "give either --smoke or --config FILE" in left.stderr
