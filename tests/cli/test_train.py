"""`mem1 train`: what it takes, what it writes, and what it says about wrong input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from transformers.debug_utils import DebugOption

from mem1_trl import Mem1Agent, Mem1GRPOConfig, Mem1PPOConfig
from mem1_trl.cli import launch as launching
from mem1_trl.cli import main
from mem1_trl.cli.launch import own_arguments
from mem1_trl.cli.model_check import check_model
from mem1_trl.cli.options import CommandError
from mem1_trl.cli.train import _eval_tasks, _train_tasks, read
from mem1_trl.configs.checks import TRL_CHOICES
from mem1_trl.context_rules.named import import_rule
from mem1_trl.report.run_directory import read_run
from mem1_trl.trainers.checkpoints import mark_complete
from mem1_trl.update.critic.critic import backbone_folder

TINY = Path(__file__).parents[2] / "examples" / "assets" / "tiny-mem1"
BASE = ["train", "--model_name_or_path", str(TINY)]
SHORT = [*BASE, "--keywords", "true", "--passages", "1", "--max_completion_length", "48", "--max_turns", "3",
         "--per_device_train_batch_size", "4"]  # fmt: skip

GUESSING = '''
class Guessing:
    """Ends with the first guess."""

    def reset(self, prompt, secret, **row):
        self.secret, self.score = secret, 0.0

    def search(self, query: str) -> str:
        """
        Guess.

        Args:
            query: The guess.
        """
        self.score = float(self.secret in query)
        return "seen"

    def get_reward(self) -> float:
        return self.score


def short(completions, **kwargs):
    return [1.0 for _ in completions]
'''


def said(capsys, *args):
    code = main(list(args))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.err.splitlines()[0] if captured.err else captured.out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["train"], "the following arguments are required: --model_name_or_path"),
        ([*BASE, "--algorithm", "dpo"], "algorithm is 'dpo', but must be one of ppo, grpo"),
        ([*BASE, "--max_step", "2"], "an unknown option, 'max_step': did you mean 'max_steps'?"),
        ([*BASE, "--objectives", "0"], "objectives=[0] must be 1 or more each"),
        ([*BASE, "--max_turns", "0"], "max_turns must be at least 1, got 0."),
        ([*BASE, "--environment", "a.B"], "environment needs dataset_name: an environment, and the tasks that it is given"),
        ([*BASE, "--dataset_name", "a.jsonl"], "dataset_name needs environment: an environment, and the tasks that it is given"),
        ([*BASE, "--environment", "nowhere.Shop", "--dataset_name", "a.jsonl"], "environment='nowhere.Shop' cannot be imported: No module named 'nowhere'"),
        ([*BASE, "--environment", "json.Shop", "--dataset_name", "a.jsonl"], "environment='json.Shop' cannot be imported: json has no 'Shop'"),
        ([*BASE, "--question_column", "keywords"], "question_column is about a file of questions, and the bundled facts have their own: give questions, too"),
        ([*BASE, "--corpus_title", "nope"], "corpus_title is about a file of passages, and there is none: give the file as corpus"),
        ([*BASE, "--corpus", "http://localhost:9/", "--corpus_split", "x"], "corpus_split is about a file of passages, and a retriever knows its own"),
        ([*BASE, "--reward_funcs", "short"], "reward_funcs must be an import path such as my_module.name, got 'short'"),
        ([*BASE, "--algorithm", "grpo", "--value_model", "shared"], "value_model is PPO's critic, which algorithm='grpo' does not have"),
        ([*BASE, "--algorithm", "grpo", "--vf_coef", "0.9"], "an unknown option, 'vf_coef'"),
        ([*BASE, "--model", "x"], "an unknown option, 'model': did you mean 'model_name_or_path'?"),
        ([*BASE, "--datasets", "x"], "an unknown option, 'datasets': did you mean 'dataset_name'? (mixtures of data sets are not supported)"),
        ([*BASE, "--lora_r", "8"], "lora_r is about an adapter, and without use_peft the whole model is trained: give --use_peft true, or leave lora_r out"),
        ([*BASE, "--lora-r=16", "--use_peft", "false"], "lora_r is about an adapter, and without use_peft the whole model is trained"),
        ([*BASE, "--lora_target_modules", "q_proj", "v_proj"], "lora_target_modules is about an adapter"),
        ([*BASE, "--use_dora", "true"], "use_dora is about an adapter"),
        ([*BASE, "--bnb_4bit_quant_type", "fp4"], "bnb_4bit_quant_type is about weights in 4 bits, and without load_in_4bit there are none"),
        ([*BASE, "--use_bnb_nested_quant"], "use_bnb_nested_quant is about weights in 4 bits"),
        ([*BASE, "--algorithm", "grpo", "--loss_type", "gspo"], "argument --loss_type/--loss-type: invalid choice: 'gspo' (choose from 'grpo', 'dr_grpo', "),
        ([*BASE, "--questions", "/nowhere.jsonl"], "There is no file /nowhere.jsonl: check the path."),
        ([*BASE, "--corpus", "/nowhere.jsonl"], "there is no file '/nowhere.jsonl' for the corpus"),
        ([*BASE, "--accelerate_config", "fsdp9"], "accelerate_config must be a file or one of fsdp1, fsdp2, multi_gpu, single_gpu, zero1, zero2, zero3, got 'fsdp9'"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(capsys, tmp_path, monkeypatch, args, sentence):
    monkeypatch.chdir(tmp_path)
    code, line = said(capsys, *args)
    assert code == 2 and line.startswith(f"mem1 train: {sentence}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("import math; math.foo", "AttributeError: module 'math' has no attribute 'foo'"),
        ("import os; os.environ['NO_SUCH_TOKEN']", "KeyError: 'NO_SUCH_TOKEN'"),
        ("  x = 1", "IndentationError: unexpected indent"),
    ],
)
def test_a_fault_in_a_users_module_is_named(capsys, tmp_path, monkeypatch, line, error):
    """It was reported as a class that the module does not have, or as a bare error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"faulty_{error.partition(':')[0].lower()}"
    (tmp_path / f"{name}.py").write_text(f"{line}\nclass Shop:\n    pass\n")
    given = [*BASE, "--environment", f"{name}.Shop", "--dataset_name", "a.jsonl"]
    code, said_line = said(capsys, *given)
    assert code == 2 and f"environment='{name}.Shop' cannot be imported: {error}" in said_line
    with pytest.raises(ValueError, match=f"must name a module that can be imported: {error.partition(':')[0]}"):
        import_rule(f"{name}:Rule")


def test_a_list_without_objectives_is_refused(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("objectives: []\n")
    code, line = said(capsys, *BASE, "--config", str(tmp_path / "run.yaml"))
    assert code == 2 and "objectives must hold a number at least, got an empty list" in line


def test_the_file_gives_options_of_all_kinds_and_the_line_wins(tmp_path):
    """YAML reads 1e-5 as a text; `--algorithm` in the file decides which options there are."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model_name_or_path: {TINY}\nlearning_rate: 1e-5\nalgorithm: grpo\nlora_r: 4\nuse_peft: true\nobjectives: 3\n"
        f"max_turns: 9\noutput_dir: {tmp_path}\n"
    )
    args = ["--config", str(config), "--max_turns", "8"]
    options, settings, model = read(args)
    assert (options.objectives, settings.learning_rate, settings.max_turns, model.lora_r) == ([3], 1e-5, 8, 4)
    assert (type(settings), settings.logging_steps, settings.bf16) == (Mem1GRPOConfig, 1, False)
    assert type(read([*args, "--algorithm=ppo"])[1]) is Mem1PPOConfig


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("reward_weights: heavy", "reward_weights is 'heavy', but must be a list, each entry a number"),
        ("reward_weights: [1.0, heavy]", "reward_weights is [1.0, 'heavy'], but must be a list, each entry a number"),
        ("max_steps: [1]", "max_steps is [1], but must be a whole number"),
        ("loss_type: gspo", "loss_type is 'gspo', but must be one of grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo, vespo"),
        ("importance_sampling_level: turn", "importance_sampling_level is 'turn', but must be one of token, sequence"),
        ("max_turns: 3.5", "max_turns is 3.5, but must be a whole number"),
        ("max_turns: true", "max_turns is True, but must be a whole number"),
        ("max_completion_length: 16.5", "max_completion_length is 16.5, but must be a whole number or null"),
        ("max_steps: 1.5", "max_steps is 1.5, but must be a whole number"),
        ("per_device_train_batch_size: 2.5", "per_device_train_batch_size is 2.5, but must be a whole number"),
        ("lora_r: 4.5", "lora_r is 4.5, but must be a whole number"),
        ("use_peft: 1", "use_peft is 1, but must be true or false"),
        ("keywords: 0", "keywords is 0, but must be true or false"),
        ("learning_rate: true", "learning_rate is True, but must be a number"),
        ("output_dir: 3", "output_dir is 3, but must be text or null"),
        ("output_dir: true", "output_dir must be text or null, got True."),
        ("seed: -1", "seed must be a whole number from 0 to 4294967295, got -1."),
    ],
)  # fmt: skip
def test_wrong_yaml_is_one_sentence(capsys, tmp_path, content, sentence):
    config = tmp_path / "run.yaml"
    config.write_text(content)
    code, line = said(capsys, *BASE, "--algorithm", "grpo", "--config", str(config))
    assert code == 2 and line.startswith(f"mem1 train: {sentence}")


def test_one_value_stands_for_a_list_of_one(tmp_path):
    config = tmp_path / "run.yaml"
    for written, name, value in (
        ("1.5", "reward_weights", [1.5]),
        ("2", "reward_weights", [2]),
        ("1e-1", "reward_weights", [0.1]),  # a text to YAML
        ("q_proj", "lora_target_modules", "q_proj"),  # as TRL leaves a list of one
        ("a.b", "reward_funcs", ["a.b"]),
        ("[a.b, c.d]", "reward_funcs", ["a.b", "c.d"]),
        ("[underflow_overflow]", "debug", [DebugOption.UNDERFLOW_OVERFLOW]),
        ("null", "reward_weights", None),
    ):
        config.write_text(f"{name}: {written}\nuse_peft: true")
        parsed = read(["--config", str(config), "--algorithm", "grpo"])
        assert [getattr(one, name) for one in parsed if hasattr(one, name)] == [value]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("check: off", "off"),
        ("check: on", "on"),
        ("eval_strategy: no", "no"),
        ("save_strategy: no", "no"),
        ("fsdp: false", False),
        ("trackio_static_space_id: false", False),
        ("resume_from_checkpoint: true", True),
        ("scale_rewards: false", "none"),
        ("warmup_steps: 0.1", 0.1),
        ("save_steps: 5", 5),
    ],
)
def test_a_word_that_yaml_reads_as_a_boolean_means_what_is_documented(tmp_path, written, value):
    """And what libraries take beside the annotated type stays as it is."""
    config = tmp_path / "run.yaml"
    config.write_text(written)
    _, settings, _ = read(["--config", str(config)])
    assert getattr(settings, written.split(":")[0]) == value


def test_options_of_an_adapter_are_taken_with_one(tmp_path):
    model = read(
        [*BASE[1:], "--use_peft", "true", "--lora_r", "8", "--load_in_4bit", "true", "--bnb_4bit_quant_type", "fp4"]
    )[2]
    assert (model.use_peft, model.lora_r, model.bnb_4bit_quant_type) == (True, 8, "fp4")
    (tmp_path / "run.yaml").write_text("use_dora: false\nlora_target_modules: null\n")
    assert read([*BASE[1:], "--config", str(tmp_path / "run.yaml")])[2].use_peft is False
    (tmp_path / "run.yaml").write_text("lora_alpha: 32\nuse_peft: false\n")  # the value of its default
    with pytest.raises(CommandError, match="lora_alpha is about an adapter"):
        read([*BASE[1:], "--config", str(tmp_path / "run.yaml")])


def test_mixtures_of_a_file_of_trl_are_not_taken_for_another_option(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("datasets:\n  - path: a\n  - path: b\n")
    code, line = said(capsys, *BASE, "--config", str(tmp_path / "run.yaml"))
    assert code == 2 and line.endswith(
        "'datasets': did you mean 'dataset_name'? (mixtures of data sets are not supported)"
    )


def test_choices_are_those_of_trl():
    documented = Mem1GRPOConfig.__mro__[1].__doc__
    for name, choices in TRL_CHOICES.items():
        text = documented.split(f"        {name} (`")[1].split("(`", 2)[0]
        assert set(choices) <= set(re.findall(r'"(\w+)"', text)), name
    listed = documented.split("        loss_type (`")[1].split("mask_truncated_completions (`")[0]
    assert re.findall(r'^ +- `"(\w+)"`', listed, re.MULTILINE) == TRL_CHOICES["loss_type"]


def test_help_shows_the_tokens_of_a_turn(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--max-completion-length N Maximum number of tokens of one turn." in text
    assert "--eval_dataset_name" in text and "--mask_truncated_completions" not in text


@pytest.mark.parametrize(
    ("args", "said_of"),
    [
        (["--eval_questions", "q.jsonl"], "eval_questions"),
        (["--eval_split", "dev"], "eval_split"),
        (["--eval_tasks", "7"], "eval_tasks"),
    ],
)
def test_options_of_evaluations_need_one(capsys, args, said_of):
    sentence = f"{said_of} is about evaluations, of which there are none: give --eval_strategy, or leave {said_of} out"
    assert said(capsys, *BASE, *args) == (2, f"mem1 train: {sentence}")


def test_keywords_are_not_those_of_other_questions(capsys):
    code, line = said(capsys, *BASE, "--keywords", "true", "--eval_questions", "q.jsonl", "--eval_strategy", "steps")
    assert (code, line) == (
        2,
        "mem1 train: keywords belong to the bundled facts: leave it out, or leave out eval_questions",
    )


def test_of_an_option_that_is_given_twice_the_last_one_counts():
    options, config, _ = read([*BASE[1:], "--algorithm", "grpo", "--algorithm=ppo"])
    assert options.algorithm == "ppo" and isinstance(config, Mem1PPOConfig)


def test_questions_of_a_file_are_not_evaluated_on_themselves(capsys, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "a?", "answer": "b"}\n{"question": "c?", "answer": "d"}\n')
    code, line = said(
        capsys, *BASE, "--questions", str(questions), "--eval_strategy", "steps", "--output_dir", str(tmp_path / "o")
    )
    assert code == 2 and "--eval_questions" in line


@pytest.mark.slow
def test_a_run_writes_what_a_report_reads_and_goes_on(capsys, tmp_path):
    out = tmp_path / "run"
    args = [*SHORT, "--objectives", "1", "2", "--eval_strategy", "steps", "--eval_steps", "1", "--eval_tasks", "2",
            "--save_steps", "1", "--output_dir", str(out)]  # fmt: skip
    assert main([*args, "--max_steps", "1"]) == 0
    text = capsys.readouterr().out
    assert "step 1/1: reward " in text and "evaluation after step 1 on 2-objectives: reward " in text
    run = read_run(out)
    assert {result.objectives for result in run.results} == {1, 2}
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    (one,) = [entry for entry in history if "eval_1-objectives_reward" in entry]
    (two,) = [entry for entry in history if "eval_2-objectives_reward" in entry]
    saved = json.loads((out / "evaluation" / "eval_2-objectives-1.json").read_text())
    assert two["eval_2-objectives_reward"] == pytest.approx(saved["metrics"]["reward"]["mean"])
    assert not [key for key in one if key.startswith("eval_2")]
    assert Mem1Agent.from_pretrained(str(out)).settings.max_turns == 3

    assert main([*args, "--max_steps", "2"]) == 2  # neither continued nor overwritten unless that is said
    assert "--resume_from_checkpoint true" in capsys.readouterr().err
    assert main([*args, "--max_steps", "2", "--resume_from_checkpoint", "true"]) == 0
    text = capsys.readouterr().out
    assert "goes on after step 1 of 2" in text and "step 2/2" in text and "step 1/2" not in text


@pytest.mark.slow
def test_a_finished_run_without_checkpoints_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"global_step": 2, "log_history": []}')
    assert main(["train", "--model_name_or_path", str(TINY), "--output_dir", str(tmp_path)]) == 2
    said = f"{tmp_path} holds a finished run, without checkpoints to continue from: choose another --output_dir, or delete it"
    assert said in capsys.readouterr().err


@pytest.fixture
def unloaded(monkeypatch):
    """Ends the test where a model would be loaded."""

    def load(*args):
        raise AssertionError("the model is loaded before what is wrong is said")

    monkeypatch.setattr("mem1_trl.cli.train._trainer", load)


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json", "model-00001-of-00002.safetensors"])
def test_a_model_is_not_overwritten(capsys, tmp_path, unloaded, file):
    (tmp_path / file).write_text("{}")
    assert said(capsys, *BASE, "--output_dir", str(tmp_path)) == (
        2,
        f"mem1 train: {tmp_path} holds a model, which would be overwritten: choose another --output_dir, or delete it",
    )
    assert [path.name for path in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("launched", [[], ["--num_processes", "2"]])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("true", "is true, but there is no complete checkpoint in {new}: leave the option out to start from the beginning."),
        ("{new}/checkpoint-3", "is '{new}/checkpoint-3', but there is no checkpoint {new}/checkpoint-3: {new} holds none."),
    ],
)  # fmt: skip
def test_nothing_to_resume_from_is_said_before_the_model_is_loaded(
    capsys, tmp_path, unloaded, given, sentence, launched
):
    new = tmp_path / "new"
    args = ["--output_dir", str(new), "--resume_from_checkpoint", given.format(new=new), *launched]
    expected = f"mem1 train: --resume_from_checkpoint {sentence.format(new=new)}"
    assert said(capsys, *BASE, *args) == (2, expected)
    assert not new.exists()


@pytest.mark.parametrize(("wrote", "asked"), [("ppo", "grpo"), ("grpo", "ppo")])
def test_a_run_goes_on_with_its_own_algorithm(capsys, tmp_path, unloaded, wrote, asked):
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / "critic").mkdir(parents=True)
    if wrote == "ppo":
        (checkpoint / "critic" / "value_head.safetensors").write_text("")
    mark_complete(checkpoint, 2)
    args = ["--output_dir", str(tmp_path), "--resume_from_checkpoint", "true", "--algorithm", asked]
    assert said(capsys, *BASE, *args) == (
        2,
        f"mem1 train: --resume_from_checkpoint is true, but the checkpoint {checkpoint} is of a run with {wrote}, which {asked} cannot "
        f"continue: resume with {wrote}, or start from the beginning.",
    )
    with pytest.raises(AssertionError, match="the model is loaded"):
        main([*BASE, *args[:-1], wrote])


@pytest.mark.parametrize("below", ["", "/x"])
def test_a_file_is_no_place_for_a_run(capsys, tmp_path, unloaded, below):
    file = tmp_path / "taken"
    file.write_text("")
    assert said(capsys, *BASE, "--output_dir", f"{file}{below}") == (
        2,
        f"mem1 train: output_dir must be a folder, got '{file}{below}', where '{file}' is a file",
    )


def test_a_folder_without_a_model_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert said(capsys, "train", "--model_name_or_path", "empty") == (
        2,
        "mem1 train: the folder 'empty' holds no model (it has no config.json or adapter_config.json): check the path of the model",
    )


@pytest.mark.parametrize("option", ["value_model", "teacher_model_name_or_path"])
def test_a_further_model_that_is_nowhere_is_named_before_any_is_loaded(capsys, tmp_path, monkeypatch, option):
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    given = [f"--{option}", "./gone", "--output_dir", str(tmp_path / "out"), "--distillation_weight", "0.1"]
    assert said(capsys, *BASE, *given) == (
        2,
        f"mem1 train: {option}: there is no model at './gone': check the path (an id on the Hub is 'owner/name')",
    )


def test_the_backbone_of_a_saved_critic_is_looked_for(tmp_path):
    assert backbone_folder(str(tmp_path)) == str(tmp_path)
    (tmp_path / "value_head.safetensors").write_text("")
    assert backbone_folder(str(tmp_path)) == str(tmp_path / "backbone")


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json", "tokenizer_config.json"])
def test_a_folder_with_a_model_or_a_tokenizer_is_taken(tmp_path, file):
    """Where a server runs the model, its tokenizer is enough."""
    (tmp_path / file).write_text("{}")
    check_model(str(tmp_path))


@pytest.mark.parametrize(
    ("secrets", "sentence"),
    [
        ('null 1 2 "x" "y"', "row 4 of {file} has secret='x', but all values of a column must be of one type: it is 1 in row 2"),
        ('"x" 1', "row 2 of {file} has secret=1, but all values of a column must be of one type: it is 'x' in row 1"),
        ('["a"] "a"', "row 2 of {file} has secret='a', but all values of a column must be of one type: it is ['a'] in row 1"),
    ],
)  # fmt: skip
def test_a_column_of_several_types_is_named(capsys, tmp_path, monkeypatch, secrets, sentence):
    (tmp_path / "my_mixed_world.py").write_text(GUESSING)
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(f'{{"prompt": "p", "secret": {secret}}}\n' for secret in secrets.split()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    args = ["--environment", "my_mixed_world.Guessing", "--dataset_name", str(file)]
    assert said(capsys, *BASE, *args) == (2, f"mem1 train: {sentence.format(file=file)}")


def test_a_column_need_not_be_in_the_first_row(tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b", "secret": "s"}\n')
    options, _, _ = read(["--environment", "a.B", "--dataset_name", str(file)])
    assert options.load_tasks(str(file))["secret"] == [None, "s"]


def test_an_environment_and_a_reward_of_ones_own(capsys, tmp_path, monkeypatch):
    (tmp_path / "my_world_of_train.py").write_text(GUESSING)
    (tmp_path / "tasks.jsonl").write_text("".join(f'{{"prompt": "guess {i}", "secret": "a"}}\n' for i in range(4)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = main(
        [*BASE, *SHORT[SHORT.index("--max_completion_length") :], "--algorithm", "grpo", "--num_generations", "2", "--max_steps", "1",
         "--environment", "my_world_of_train.Guessing", "--dataset_name", "tasks.jsonl",
         "--reward_funcs", "my_world_of_train:short", "--output_dir", "out"]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert history[0]["rewards/short/mean"] == 1.0
    assert "rewards/Guessing/mean" in history[0] and "value/loss" not in history[0]


def test_no_option_is_described_as_its_opposite(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "--prefix_cache" in text and "--no_" not in text


def test_what_goes_on_from_another_run_overwrites_nothing(capsys, tmp_path, unloaded):
    mark_complete_in(tmp_path / "a" / "checkpoint-4", 4)
    mark_complete_in(tmp_path / "b" / "checkpoint-6", 6)
    args = [
        *BASE,
        "--algorithm",
        "grpo",
        "--resume_from_checkpoint",
        str(tmp_path / "a" / "checkpoint-4"),
        "--output_dir",
    ]
    code, line = said(capsys, *args, str(tmp_path / "b"))
    assert code == 2 and line.startswith(f"mem1 train: {tmp_path / 'b'} holds a run up to checkpoint-6")
    for own in ("a", "new"):
        with pytest.raises(AssertionError, match="the model is loaded"):
            main([*args, str(tmp_path / own)])


def mark_complete_in(checkpoint, step):
    checkpoint.mkdir(parents=True)
    mark_complete(checkpoint, step)


def test_runs_that_differ_in_their_seed_are_evaluated_on_the_same_tasks():
    found = []
    for seed in ("1", "2"):
        options, config, _ = read([*BASE[1:], "--eval_strategy", "steps", "--eval_tasks", "3", "--seed", seed])
        found.append([_eval_tasks(options, config)["prompt"], _train_tasks(options, config)["prompt"][:3]])
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


def test_all_is_saved_and_said_before_the_hub_may_fail(capsys, tmp_path, monkeypatch):
    done = []

    class Trainer:
        args = SimpleNamespace(push_to_hub=True)

        def train(self, resume_from_checkpoint):
            done.append("train")

        def save_model(self, folder):
            done.append(("model", self.args.push_to_hub))

        def save_state(self):
            done.append("state")

        def is_world_process_zero(self):
            return True

        def push_to_hub(self):
            done.append(("push", self.args.push_to_hub))
            raise OSError("the Hub does not answer")

    monkeypatch.setattr("mem1_trl.cli.train._trainer", lambda *args: Trainer())
    out = tmp_path / "out"
    assert main([*BASE, "--output_dir", str(out), "--push_to_hub", "true"]) == 2
    captured = capsys.readouterr()
    assert done == ["train", ("model", False), "state", ("push", True)]
    assert captured.out.startswith(f"model and log in {out};") and "the Hub does not answer" in captured.err


def test_batches_are_those_of_all_processes_that_are_started(capsys, tmp_path, monkeypatch):
    """Four times two episodes are one group of eight, of which one process has a quarter."""
    started = []
    monkeypatch.setattr("mem1_trl.cli.train.launch", lambda *args: started.append(args))
    args = [
        *BASE,
        "--algorithm",
        "grpo",
        "--num_generations",
        "8",
        "--per_device_train_batch_size",
        "2",
        "--output_dir",
        str(tmp_path / "x"),
    ]
    assert said(capsys, *args) == (
        2,
        "mem1 train: generation_batch_size (2) must be divisible by num_generations (8).",
    )
    assert main([*args, "--num_processes", "4"]) == 0 and main([*args, "--accelerate_config", "multi_gpu"]) == 0
    assert [one[2:4] for one in started] == [(None, 4), ("multi_gpu", None)]
    assert main([*args, "--num_processes", "3"]) == 2 and len(started) == 2
    assert "generation_batch_size (6)" in capsys.readouterr().err
    assert Mem1PPOConfig(output_dir="x", bf16=False).world_size == 1


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ChildFailedError("train", {0: ProcessFailure(0, 1, 2, "<N/A>")}), 2, "mem1 train: a process has failed, see above"),
        (SignalException("got a signal", signal.SIGINT), 130, "--resume_from_checkpoint true goes on from there"),
        (SignalException("got a signal", signal.SIGTERM), 143, ""),
    ],
    ids=["failed", "interrupted", "ended"],
)  # fmt: skip
def test_what_ends_several_processes_is_one_line(tmp_path, monkeypatch, capsys, error, status, words):
    """As torch's launcher raises it; its messages are of dozens of lines."""

    def launch_command(parsed):
        checkpoint = tmp_path / "x" / "checkpoint-3"
        checkpoint.mkdir(parents=True)
        mark_complete(checkpoint, 3)
        raise error

    monkeypatch.setattr("accelerate.commands.launch.launch_command", launch_command)
    args = [*BASE, "--output_dir", str(tmp_path / "x"), "--use_cpu", "true", "--num_processes", "2"]
    if status == 143:
        with pytest.raises(SystemExit) as ended:
            main(args)
        assert ended.value.code == status
    else:
        assert main(args) == status
    out, err = capsys.readouterr()
    assert words in out + err and "Traceback" not in out + err


@pytest.mark.parametrize(
    ("config", "processes", "devices", "alone"),
    [
        ("", 1, 0, False),
        ("distributed_type: MULTI_CPU", 2, 0, True),
        ("distributed_type: 'NO'", 2, 0, True),
        ("distributed_type: 'NO'\nuse_cpu: true", 2, 1, True),
        ("distributed_type: MULTI_GPU", 2, 2, False),
        ("distributed_type: 'NO'", 2, 4, True),
        ("distributed_type: MULTI_CPU\nnum_machines: 2", 2, 0, False),
        ("distributed_type: MULTI_CPU\nmpirun_config: {mpirun_hostfile: h}", 2, 0, False),
    ],
)  # fmt: skip
def test_where_accelerate_would_start_one_process_several_are_started(
    tmp_path, monkeypatch, config, processes, devices, alone
):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: devices)
    file = tmp_path / "c.yaml"
    file.write_text(config or "{}")
    settings = launching._settings(str(file))
    assert launching._starts_one_alone(settings, launching.count_processes(str(file), processes), False) is alone


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    with pytest.raises(CommandError, match="num_processes is 2, and each takes a GPU, of which this machine has 1"):
        launching._starts_one_alone({}, 2, False)
    assert launching._starts_one_alone({}, 2, on_cpu=True)


def test_what_is_meant_for_the_launcher_is_taken_out():
    args = [
        "--max_steps",
        "2",
        "--num_processes",
        "3",
        "--accelerate_config=fsdp2",
        "--accelerate-config",
        "ddp",
        "--seed",
        "1",
    ]
    assert own_arguments(args) == ["--max_steps", "2", "--seed", "1"]


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    config = tmp_path / "two.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 1\nnum_machines: 1\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mem1_trl", *SHORT, "--max_steps", "1", "--output_dir", str(out), "--use_cpu", "true",
               "--save_steps", "1", "--accelerate_config", str(config), "--num_processes", "2"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 1/1") == 1
    episodes = json.loads((out / "trainer_state.json").read_text())["log_history"][0]
    assert episodes["num_tokens"] > 0
    assert (out / "mem1_agent.json").is_file()
    states = sorted(path.name for path in (out / "checkpoint-1").glob("mem1_run_state_*.pt"))
    assert states == ["mem1_run_state_0.pt", "mem1_run_state_1.pt"]


def test_a_blank_line_of_a_file_is_one_sentence(capsys, tmp_path, monkeypatch):
    """It was Python's sentence about `<`, without the name of the option."""
    monkeypatch.chdir(tmp_path)
    Path("blank.yaml").write_text("model_name_or_path: x\noutput_dir: out\nmax_steps:\n")
    code, error = said(capsys, "train", "--config", "blank.yaml")
    assert code == 2 and "max_steps is empty, but must be" in error and "leave the line out" in error
