"""The command line: help, one sentence for whatever is wrong, and the way from a model to a page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError
from support.chat_server import serve
from transformers import AutoTokenizer

import mem1_trl
from mem1_trl import StopReason, Trajectory, Turn
from mem1_trl.cli import main
from mem1_trl.cli.evaluate import _MEANS, _print_table
from mem1_trl.cli.train import how_to_evaluate, read
from mem1_trl.evaluation import EvaluatedTask, Evaluation

TINY = Path(__file__).parents[2] / "examples" / "assets" / "tiny-mem1"
MODEL = ["eval", "--model_name_or_path", str(TINY)]


def said(capsys, *args: str) -> tuple[int, str]:
    """Exit code and the first line of what was said about an error."""
    code = main(list(args))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.err.splitlines()[0] if captured.err else captured.out


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("eval", "report", "trajectories"))
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"{mem1_trl.__version__}\n")


def test_help_is_fast_because_it_imports_nothing_heavy():
    code = (
        "import sys\nfrom mem1_trl.cli import main\n"
        "for args in (['--help'], ['eval', '--help'], ['report', '--help'], ['trajectories', '--help']):\n"
        "    try: main(args)\n    except SystemExit as end: assert end.code == 0\n"
        "print({'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules))"
    )
    assert run_python(code).strip().endswith("set()")


def test_the_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "mem1_trl", "repot"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "mem1: there is no command 'repot': did you mean 'report'?\n")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["eval"], "mem1 eval: the following arguments are required: --model_name_or_path/--model-name-or-path"),
        ([*MODEL, "--objectivs", "2"], "mem1 eval: an unknown option, 'objectivs': did you mean 'objectives'?"),
        ([*MODEL, "--objective", "2"], "mem1 eval: an unknown option, 'objective': did you mean 'objectives'?"),
        ([*MODEL, "--tasks", "many"], "mem1 eval: argument --tasks: invalid int value: 'many'"),
        ([*MODEL, "--tasks", "0"], "mem1 eval: tasks must be at least 1, got 0"),
        ([*MODEL, "--objectives", "0"], "mem1 eval: objectives=[0] must be 1 or more each"),
        ([*MODEL, "--context", "truncate"], "mem1 eval: context='truncate' needs a length to truncate to: set `max_context_length`."),
        ([*MODEL, "--backend", "chat"], "mem1 eval: backend is about a server: give its address with --endpoint, or leave backend out"),
        ([*MODEL, "--endpoint", "localhost"], "mem1 eval: endpoint must be the address of a server such as 'http://localhost:8000/v1', got 'localhost'."),
        ([*MODEL, "--endpoint", "http://h/v1", "--backend", "vllm"], "mem1 eval: argument --backend: invalid choice: 'vllm' (choose from 'completions', 'chat')"),
        ([*MODEL, "--endpoint", "http://h/v1", "--device", "cpu"], "mem1 eval: device is about a model that runs here, and endpoint is a server: leave out one of them"),
        ([*MODEL, "--endpoint", "http://h/v1", "--dtype", "float32"], "mem1 eval: dtype is about a model that runs here, and endpoint is a server: leave out one of them"),
        ([*MODEL, "--config"], "mem1 eval: --config needs the path of a YAML file"),
        ([*MODEL, "--config=/nowhere.yaml"], "mem1 eval: the file of --config cannot be read: No such file or directory: /nowhere.yaml"),
        ([*MODEL, "--protocol", "papr"], "mem1 eval: protocol is 'papr', but must be one of default, paper, reference, reference_inference, tool_calls, webshop, or a directory."),
        ([*MODEL, "--questions", "/nowhere.jsonl"], "mem1 eval: There is no file /nowhere.jsonl: check the path."),
        ([*MODEL, "--split", "tset"], "mem1 eval: split must be 'train' or 'test', got 'tset'."),
        ([*MODEL, "--corpus", "/nowhere.jsonl"], "mem1 eval: there is no file '/nowhere.jsonl' for the corpus"),
        ([*MODEL, "--seed", "-1"], "mem1 eval: seed must be a whole number from 0 to 9223372036854775807, got -1."),
        ([*MODEL, "--output_dir", f"{TINY}/config.json/a"], f"mem1 eval: output_dir must be a folder, got '{TINY}/config.json/a', where '{TINY}/config.json' is a file"),
        (["chat", *MODEL[1:], "--conversation", str(TINY)], f"mem1 chat: conversation must be a file in a folder that is there, but '{TINY}' is a folder"),
        (["chat", *MODEL[1:], "--conversation", "/nowhere/a.json"], "mem1 chat: conversation must be a file in a folder that is there, but '/nowhere/a.json' is in '/nowhere', which is not a folder"),
        ([*MODEL, "--split", "validation"], "mem1 eval: split must be 'train' or 'test', got 'validation'."),
        (["eval", "--model_name_or_path", "/nowhere"], "mem1 eval: there is no model at '/nowhere': check the path (an id on the Hub is 'owner/name')"),
        (["train", "--model_name_or_path", "a/b/c"], "mem1 train: there is no model at 'a/b/c': check the path (an id on the Hub is 'owner/name')"),
        (["chat", "--model_name_or_path", "./nowhere"], "mem1 chat: there is no model at './nowhere': check the path (an id on the Hub is 'owner/name')"),
        (["eval", "--model_name_or_path", f"{TINY}/config.json"], f"mem1 eval: a model must be a folder, got the file '{TINY}/config.json': check the path of the model"),
        ([*MODEL, "--model", "x"], "mem1 eval: an unknown option, 'model': did you mean 'model_name_or_path'?"),
        (["eval", "--model_name_or_path", str(TINY.parent)], f"mem1 eval: the folder '{TINY.parent}' holds no model (it has no config.json or adapter_config.json): check the path of the model"),
        ([*MODEL, "--protocol", str(TINY.parent)], f"mem1 eval: there is no mem1_protocol.json at '{TINY.parent}': check the path, or say how the model is spoken to with --protocol (default, paper, reference, reference_inference, tool_calls, webshop, or a directory)"),
        ([*MODEL, "--top_p", "2"], "mem1 eval: top_p must be at most 1, got 2.0."),
        ([*MODEL, "--min_p", "4", "--temperature", "1"], "mem1 eval: min_p must be at most 1, got 4.0."),
        ([*MODEL, "--top_p", "0.3"], "mem1 eval: top_p=0.3 has no effect with temperature=0, which takes the most likely token: raise that, or leave top_p out"),
        (["chat", *MODEL[1:], "--min_p", "0.1"], "mem1 chat: min_p=0.1 has no effect with temperature=0, which takes the most likely token: raise that, or leave min_p out"),
        ([*MODEL, "--memory_top_k", "5"], "mem1 eval: memory_top_k=5 has no effect with context='mem1': use 'external', or leave memory_top_k out"),
        (["serve", *MODEL[1:], "--memory_top_k", "5"], "mem1 serve: memory_top_k=5 has no effect with context='mem1': use 'external', or leave memory_top_k out"),
        (["chat", *MODEL[1:], "--top_k", "5"], "mem1 chat: top_k is about what the agent searches, and there is none: give corpus, or leave it out"),
        ([*MODEL, "--questions", "q.jsonl", "--split", "train"], "mem1 eval: split is about a data set on the Hub, and q.jsonl is a file, which is taken as a whole: leave it out"),
        ([*MODEL, "--corpus", "c.csv", "--corpus_split", "test"], "mem1 eval: corpus_split is about a data set on the Hub, and c.csv is a file, which is taken as a whole: leave it out"),
        ([*MODEL, "--corpus", str(TINY), "--corpus_title", "t"], f"mem1 eval: corpus_title is about a file or a data set of passages, and {TINY} is a folder: leave it out"),
        ([*MODEL, "--output_dir", ""], "mem1 eval: output_dir is empty: give a value, or leave it out"),
        (["train", *MODEL[1:], "--output_dir", ""], "mem1 train: output_dir is empty: give a value, or leave it out"),
        (["train", *MODEL[1:], "--corpus="], "mem1 train: corpus is empty: give a value, or leave it out"),
        (["report", "runs", ""], "mem1 report: run_dir is empty: give a value, or leave it out"),
        (["index", "", "there"], "mem1 index: corpus is empty: give a value, or leave it out"),
        (["retriever", "--corpus", ""], "mem1 retriever: corpus is empty: give a value, or leave it out"),
        (["report", "/nowhere"], "mem1 report: '/nowhere' is not a directory: pass the output directory of a run."),
        (["report", ".", "--outptu", "x"], "mem1 report: an unknown option, 'outptu': did you mean 'output'?"),
        (["trajectories", "/nowhere.jsonl"], "mem1 trajectories: there is no file '/nowhere.jsonl': pass a .jsonl file of episodes, or the id of a data set."),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(capsys, args, sentence):
    assert said(capsys, *args) == (2, sentence)


def test_a_file_is_neither_a_data_set_of_the_hub_nor_an_index(capsys):
    assert said(capsys, "trajectories", __file__, "--split", "test") == (
        2, f"mem1 trajectories: split='test' is about a data set on the Hub, and {__file__!r} is a file, which is read as a whole: leave it out."
    )  # fmt: skip
    assert said(capsys, "index", __file__, __file__, "--overwrite") == (
        2, f"mem1 index: {__file__!r} is a file and is not replaced: choose a directory."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("no network"), "and the Hub cannot be asked for a model of that name (ConnectionError: no network): check the path"),
        (HFValidationError("bad"), "and no model of that name on the Hub that this account may read: check the path, or the id"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["eval", "train", "chat", "serve"])
def test_a_model_that_is_nowhere_is_asked_for_once(capsys, monkeypatch, command, error, words):
    asked = []

    def ask(url, **where):
        asked.append(url)
        raise error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    code, line = said(capsys, command, "--model_name_or_path", "w/tiny")
    assert code == 2 and line.startswith(f"mem1 {command}: there is no folder 'w/tiny' here, {words}")
    assert len(asked) == 1 and "w/tiny" in asked[0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "{file} has no rows: pass a file of rows that each hold a question and an answer."),
        ('{"question": "a?", "answer": "b"}', "1 usable rows do not make one task of 2 different questions: give more questions, or fewer to a "
         "task with --objectives."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["eval", "train"])
def test_too_few_questions_are_one_sentence(capsys, tmp_path, command, content, sentence):
    file = tmp_path / "questions.jsonl"
    file.write_text(content)
    args = ["--questions", str(file), "--objectives", "2", "--output_dir", str(tmp_path / "out")]
    code, line = said(capsys, command, *MODEL[1:], *args)
    assert (code, line) == (2, f"mem1 {command}: {sentence.format(file=file)}")


@pytest.fixture
def eight(tmp_path):
    """A file of eight questions."""
    file = tmp_path / "eight.jsonl"
    file.write_text("".join(json.dumps({"question": f"q{n}?", "answer": str(n)}) + "\n" for n in range(8)))
    return str(file)


def test_too_many_objectives_are_refused_before_the_model_is_loaded(capsys, eight, monkeypatch):
    monkeypatch.setattr("mem1_trl.cli.evaluate.open_agent", lambda *given: pytest.fail("the model was loaded"))
    assert said(capsys, *MODEL, "--questions", eight, "--objectives", "1", "16", "--tasks", "1") == (
        2, "mem1 eval: 8 usable rows do not make one task of 16 different questions: give more questions, or fewer to a task with --objectives."
    )  # fmt: skip


def test_the_command_that_training_names_runs_with_few_questions(capsys, caplog, eight, tmp_path):
    options, _, _ = read([*MODEL[1:], "--questions", eight])
    command = re.search("`mem1 (eval [^`]*)`", how_to_evaluate(options, str(TINY)))[1]
    short = ["--tasks", "1", "--max_turns", "1", "--max_completion_length", "4", "--output_dir", str(tmp_path)]
    assert main([*shlex.split(command), *short]) == 0
    names = sorted(path.stem for path in (tmp_path / "evaluation").glob("*.json"))
    assert names == [f"tiny-mem1-{n}" for n in (1, 2, 3, 4, 6, 8)]
    assert "and there are 8: 16 objectives are left out." in caplog.text
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
    assert shown == ["1", "2", "3", "4", "6", "8"]


def test_the_command_that_training_names_gives_a_context_rule_of_ones_own(capsys, tmp_path, monkeypatch):
    """A path that is only saved with a model imports nothing, so that the command without it was refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the current directory is none of them
    (tmp_path / "rule_of_mine.py").write_text(
        "import dataclasses\nfrom mem1_trl.context_rules import Mem1\n\n\n@dataclasses.dataclass(frozen=True)\nclass Mine(Mem1):\n    size: int = 1\n"
    )
    shutil.copytree(TINY, "run")
    Path("run/mem1_agent.json").write_text(json.dumps({"context": "rule_of_mine:Mine", "context_kwargs": {"size": 2}}))
    options, _, _ = read([*MODEL[1:], "--keywords", "true"])
    command = re.search("`mem1 (eval [^`]*)`", how_to_evaluate(options, "run"))[1]
    assert command == (
        "eval --model_name_or_path run --keywords true --context rule_of_mine:Mine --context_kwargs '{\"size\": 2}'"
    )
    short = ["--objectives", "1", "--tasks", "1", "--max_turns", "1", "--max_completion_length", "4"]
    assert main([*shlex.split(command), *short]) == 0
    settings = json.loads(Path("runs/eval/evaluation/run-1.json").read_text())["settings"]
    assert (settings["context"], settings["context_kwargs"]) == ("rule_of_mine:Mine", {"size": 2})


def test_a_finished_evaluation_of_another_agent_names_options(capsys, tmp_path):
    args = [*MODEL, "--objectives", "1", "--tasks", "1", "--max_completion_length", "8", "--output_dir", str(tmp_path)]
    assert main(args) == 0
    capsys.readouterr()
    code, line = said(capsys, *args, "--seed", "1")
    assert code == 2 and line.endswith("delete it to evaluate again, or choose another --label or --output_dir.")


@pytest.mark.parametrize("label", ["[ppo] run", "[/run]"])
def test_the_table_has_the_label_as_it_is(capsys, label):
    turn = Turn((1,), (2,))
    task = EvaluatedTask(0, {"prompt": "p", "answers": [["a"]]}, "p", Trajectory([turn]), {"turns": 1.0})
    _print_table([Evaluation.from_tasks([task], label)], _MEANS)
    assert f"{label}: means over the tasks" in " ".join(capsys.readouterr().out.split())


def test_a_folder_of_one_file_of_episodes_is_read(capsys, tmp_path):
    assert said(capsys, "trajectories", str(tmp_path)) == (
        2, f"mem1 trajectories: '{tmp_path}' holds no .jsonl file of episodes: pass the folder of an evaluation, or a file"
    )  # fmt: skip
    args = [*MODEL, "--tasks", "1", "--max_completion_length", "8", "--output_dir", str(tmp_path)]
    assert main([*args, "--objectives", "1"]) == 0
    capsys.readouterr()
    assert main(["trajectories", str(tmp_path)]) == 0
    assert "episode 0" in capsys.readouterr().out
    assert main([*args, "--objectives", "2"]) == 0
    capsys.readouterr()
    code, line = said(capsys, "trajectories", str(tmp_path))
    assert (code, line.split(": ", 1)[1]) == (
        2,
        f"'{tmp_path}' holds 2 files of episodes: pass one of them (evaluation/tiny-mem1-1.jsonl, evaluation/tiny-mem1-2.jsonl)",
    )


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "xla"])
def test_an_unknown_device_is_one_sentence(capsys, device):
    code, line = said(capsys, *MODEL, "--tasks", "1", "--device", device)
    assert code == 2
    assert line.startswith(f"mem1 eval: device must be one that this machine has, such as cpu, got {device!r}: ")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("objectivs: [1]", "the file of --config holds an unknown option, 'objectivs': did you mean 'objectives'?"),
        ("objectives: [1, two]", "objectives is [1, 'two'], but must be a list, each entry a whole number"),
        ("tasks: 2.5", "tasks is 2.5, but must be a whole number"),
        ("tasks: true", "tasks is True, but must be a whole number"),
        ("max_turns: often", "argument --max_turns/--max-turns: invalid int value: 'often'"),
        (
            "context: half",
            "context must be one of 'mem1', 'full', 'truncate', 'external', 'compact', 'on_demand', 'fold', or the import path",
        ),
        ("keywords: 3", "keywords is 3, but must be true or false"),
        ("max-tasks: 3", "the file of --config holds an unknown option, 'max_tasks': did you mean 'tasks'?"),
        ("max-turns: 3\nmax_turns: 4", "the file of --config holds 'max-turns' and 'max_turns', which are one option"),
        ("max_new-x: 3\nmax-new_x: 4", "the file of --config holds 'max_new-x' and 'max-new_x', which are one option"),
        ("max_turns: 3\nmax_turns: 3", "the file of --config holds 'max_turns' twice"),
        (
            "context: compact\ncontext_kwargs:\n  fraction: 0.5\n  fraction: 0.6",
            "the file of --config holds 'fraction' twice in 'context_kwargs'",
        ),
        ("config: other.yaml", "the file of --config holds another 'config': put all options in one file"),
        ("- tasks", "Config file {file} must contain a YAML mapping."),
    ],
)
def test_wrong_yaml_is_one_sentence(capsys, tmp_path, content, sentence):
    file = tmp_path / "a.yaml"
    file.write_text(content)
    code, line = said(capsys, *MODEL, "--config", str(file))
    assert code == 2
    assert line.removeprefix("mem1 eval: ").startswith(sentence.format(file=file))


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("MEM1_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["report", "/nowhere"])


def test_an_argument_goes_into_yaml_and_the_command_line_wins(tmp_path, monkeypatch):
    from mem1_trl.cli.evaluate import EvalArguments
    from mem1_trl.cli.options import ConfigParser

    file = tmp_path / "a.yaml"
    file.write_text(
        "model_name_or_path: x\nobjectives: 2\ntasks: 7\ntemperature: 1\nmax-turns: 3\nconversational: false\n"
    )
    options = ConfigParser(EvalArguments).read(["--config", str(file), "--tasks", "5", "--keywords"])
    assert (options.objectives, options.tasks, options.temperature, options.max_turns) == ([2], 5, 1.0, 3)
    assert (options.conversational, options.keywords, options.context) == (False, True, None)


def test_from_a_model_to_a_page(tmp_path, capsys):
    run = tmp_path / "run"
    questions, corpus = tmp_path / "questions.jsonl", tmp_path / "corpus.jsonl"
    rows = [{"question": f"capital of {land}", "golden_answers": [city]} for land, city in CAPITALS.items()]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    passages = [{"title": land, "contents": f"The capital of {land} is {city}."} for land, city in CAPITALS.items()]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in passages))
    config = tmp_path / "eval.yaml"
    config.write_text(
        f"model_name_or_path: {TINY}\nobjectives: [1, 2]\ntasks: 2\nmax_turns: 3\nmax_completion_length: 48\n"
        f"max_observation_length: 120\nquestions: {questions}\ncorpus: {corpus}\ncorpus_text: contents\ntop_k: 1\n"
    )
    assert main(["eval", "--config", str(config), "--label", "Tiny", "--output_dir", str(run)]) == 0
    summary = json.loads((run / "evaluation" / "tiny-2.json").read_text())
    assert (summary["agent"], summary["objectives"], summary["count"]) == ("Tiny", 2, 2)
    assert summary["settings"]["max_turns"] == 3
    capsys.readouterr()

    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert "Tiny" in (tmp_path / "page.html").read_text()

    episodes = run / "evaluation" / "tiny-1.jsonl"
    records = [json.loads(line) for line in episodes.read_text().splitlines()]
    assert "capital of" in records[1]["trajectory"]["turns"][0]["observation"]  # the corpus that was named
    assert main(["trajectories", str(episodes), "--index", "1"]) == 0
    printed = capsys.readouterr().out
    assert "episode 1" in printed
    assert "episode 0" not in printed
    assert records[1]["prompt_text"].strip() in printed
    assert main(["trajectories", str(episodes), "--limit", "1"]) == 0
    assert "1 of 2 episodes" in capsys.readouterr().out
    assert said(capsys, "trajectories", str(episodes), "--index", "9")[0] == 2


def test_collected_episodes_are_chosen_by_their_task(tmp_path, capsys):
    played = Trajectory([Turn((1,), (2,), text="<answer>a</answer>")], stop_reason=StopReason.ANSWER).to_dict()
    lines = [
        {"row": row, "sample": sample, "prompt": f"q{row}", "task": None, "trajectory": played}
        for row in range(2)
        for sample in range(2)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["trajectories", str(tmp_path / "a.jsonl"), "--index", "1"]) == 0
    printed = capsys.readouterr().out
    assert "episode 1 " in printed and "episode 1, sample 1 " in printed and "episode 0" not in printed


CAPITALS = {"Atlantis": "Poseidonis", "Utopia": "Amaurot", "Lilliput": "Mildendo", "Laputa": "Lagado"}


def last_said(capsys, *args: str) -> tuple[int, str]:
    """Exit code and the last line of what was said, after a progress bar."""
    code = main(list(args))
    said_of_it = capsys.readouterr().err
    assert "Traceback" not in said_of_it
    return code, re.split(r"[\r\n]+", said_of_it.strip())[-1]


def test_a_model_server_that_refuses_is_one_sentence(tmp_path, capsys):
    with serve(lambda messages: "") as server:
        server.fails = lambda request: 401
        args = [*MODEL, "--endpoint", server.url, "--backend", "chat", "--tasks", "1", "--objectives", "1"]
        code, line = last_said(capsys, *args, "--output_dir", str(tmp_path))
    assert code == 2 and line.startswith("mem1 eval: The model server refused a request (") and "another key" in line


def test_what_is_no_retriever_is_one_sentence(tmp_path, capsys):
    with serve(lambda messages: "") as server:
        url = server.url.removesuffix("/v1")
        code, line = last_said(capsys, *MODEL, "--corpus", url, "--tasks", "1", "--output_dir", str(tmp_path))
    assert code == 2 and line.startswith("mem1 eval: ") and "etriever" in line and url in line


@pytest.mark.parametrize("backend", ["completions", "chat", None])
def test_a_served_model_is_evaluated(tmp_path, capsys, backend):
    """Tokenizer, protocol and settings are those beside the model; only the turns come from the server."""
    answer = "<think>a</think><answer>none; none</answer>"
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    with serve(lambda messages: answer, complete=lambda text: answer, tokenizer=tokenizer, takes_ids=True) as server:
        args = [*MODEL, "--endpoint", server.url, "--endpoint_model", "served", "--tasks", "3", "--objectives", "2"]
        args += ["--output_dir", str(tmp_path), *([] if backend is None else ["--backend", backend])]
        assert main(args) == 0
    assert {request["model"] for request in server.requests} == {"served"} and len(server.requests) == 3
    sent = "messages" if backend == "chat" else "prompt"
    assert all(sent in request for request in server.requests)
    summary = json.loads((tmp_path / "evaluation" / "served-2.json").read_text())
    assert summary["settings"]["backend"] == (backend or "offered")
    assert "served: means over the tasks" in capsys.readouterr().out


def test_a_file_of_options_in_another_encoding_is_one_sentence(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("tasks: 2", encoding="utf-16")
    code, line = said(capsys, *MODEL, "--config", str(tmp_path / "run.yaml"))
    assert (code, line) == (2, "mem1 eval: the file of --config is not text in UTF-8: save it in that encoding")
