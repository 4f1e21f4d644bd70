"""Tests of the house: a light import, names that resolve, and imports that go one way."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mem1_trl

SOURCE = Path(mem1_trl.__file__).parent

ORDER = [
    "version",
    "lazy_exports",
    "printable",
    "words",
    "typed_fields",
    "json_text",
    "json_lines",
    "text_parts",
    "local_rows",
    "saved_files",
    "time_limit",
    "retrying",
    "waiting",
    "request_threads",
    "optional_packages",
    "trajectory",
    "context_rules",
    "wire",
    "facts",
    "protocol",
    "environment_runtime",
    "faults",
    "process_environment",
    "model_traits",
    "retrieval",
    "web",
    "rewards",
    "answers",
    "evaluate_metrics",
    "environments",
    "tasks",
    "curriculum",
    "metrics",
    "turn_usage",
    "display",
    "update",
    "rollout",
    "gateway",
    "configs",
    "estimate",
    "hub",
    "agent",
    "serve",
    "evaluation",
    "demonstrations",
    "trainers",
    "report",
    "cli",
]
"""Every file and folder of the package; each imports only from those above it (`__init__` and `__main__` stand outside)."""

PUBLIC = {
    "mem1_trl.configs": ["Mem1GRPOConfig", "Mem1PPOConfig"],
    "mem1_trl.context_rules": ["Compact", "ContextRule", "NextTurn", "Past"],
    "mem1_trl.curriculum": ["compose_curriculum"],
    "mem1_trl.demonstrations": [
        "collect_trajectories",
        "demonstration_dataset",
        "read_trajectories",
        "select_trajectories",
    ],
    "mem1_trl.display": ["print_trajectory"],
    "mem1_trl.environments": [
        "ProcessEnvironment",
        "RetrievalQAEnvironment",
        "WebQAEnvironment",
        "WebShopEnvironment",
        "idempotent",
    ],
    "mem1_trl.estimate": ["EpisodeShape", "Estimate", "estimate_run"],
    "mem1_trl.evaluate_metrics": [],
    "mem1_trl.evaluation": [
        "PAPER_OBJECTIVES",
        "EvaluatedTask",
        "Evaluation",
        "evaluate_agent",
        "evaluate_objectives",
        "paper_max_turns",
    ],
    "mem1_trl.facts": ["load_facts"],
    "mem1_trl.faults": ["FaultSettings", "idempotent", "is_refusal", "is_transient", "may_repeat"],
    "mem1_trl.gateway": ["GatewayEnvironment"],
    "mem1_trl.metrics": ["trajectory_metrics"],
    "mem1_trl.process_environment": ["ProcessEnvironment"],
    "mem1_trl.report": [],
    "mem1_trl.retrieval": ["Bm25Index"],
    "mem1_trl.rewards": ["exact_match_reward", "invalid_action_penalty"],
    "mem1_trl.serve": ["AgentBackend", "StateStore", "serve_agent"],
    "mem1_trl.tasks": ["compose_objectives", "load_qa_dataset", "sample_objectives"],
    "mem1_trl.trajectory": ["StopReason", "Trajectory", "Turn"],
    "mem1_trl.web": [],
}
"""Import paths that people use, with names that stay there; everything else in the package may move."""


def module_of(path: Path) -> str:
    """The row of `ORDER` a file belongs to: its first part below the package."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def own_imports(path: Path) -> set[str]:
    """Rows of `ORDER` that a file imports from, wherever in it the import stands."""
    package = ["mem1_trl", *path.relative_to(SOURCE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [*base, *(node.module or "").split(".")] if node.module else base
            names = [name for name in names if name]
            if names[:1] == ["mem1_trl"]:
                found |= {names[1]} if len(names) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                names = alias.name.split(".")
                if names[0] == "mem1_trl" and len(names) > 1:
                    found.add(names[1])
    return found


FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__main__.py" and path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    module = module_of(path)
    assert module in ORDER, f"{module} is a new module: say in ORDER what it may import"
    allowed = {*ORDER[: ORDER.index(module)], "version"}
    if len(path.relative_to(SOURCE).parts) > 1:
        allowed.add(module)  # files of one folder know each other
    assert own_imports(path) <= allowed


def test_the_reading_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "environments").mkdir()
    file = tmp_path / "environments" / "x.py"
    file.write_text(
        "from ..rollout import A\nfrom .. import metrics\nimport mem1_trl.agent\nfrom mem1_trl import tasks\n"
        "from .other import B\nimport torch\ndef f():\n    from mem1_trl.rewards import C\n"
    )
    assert own_imports(file) == {"rollout", "metrics", "agent", "tasks", "environments", "rewards"}


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_package_alone_imports_neither_torch_nor_trl():
    code = "import sys, mem1_trl; print({'torch', 'trl', 'transformers', 'datasets'} & set(sys.modules))"
    assert run_python(code).strip() == "set()"


def test_light_names_stay_light():
    code = (
        "import sys; from mem1_trl import Mem1Protocol, Trajectory, Turn, StopReason, __version__; "
        "Mem1Protocol().parse('<answer>x</answer>', []); print({'torch', 'trl', 'transformers'} & set(sys.modules))"
    )
    assert run_python(code).strip() == "set()"


@pytest.mark.parametrize("name", mem1_trl.__all__)
def test_every_public_name_resolves(name):
    value = getattr(mem1_trl, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__doc__
    assert name in dir(mem1_trl)


def test_public_names_are_those_of_the_contract():
    contract = {
        "Mem1PPOTrainer",
        "Mem1PPOConfig",
        "Mem1GRPOTrainer",
        "Mem1GRPOConfig",
        "Mem1Protocol",
        "Mem1Agent",
        "Turn",
        "Trajectory",
        "StopReason",
        "compose_objectives",
        "score_trajectories",
    }
    assert contract <= set(mem1_trl.__all__)
    assert len(set(mem1_trl.__all__)) == len(mem1_trl.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Mem1DPOTrainer'"):
        mem1_trl.Mem1DPOTrainer  # noqa: B018


@pytest.mark.parametrize("path", PUBLIC)
def test_public_import_paths_stay(path):
    module = importlib.import_module(path)
    assert [name for name in PUBLIC[path] if not hasattr(module, name)] == []


OWN_NAMES = {"rollout": {"_generate"}}
"""Methods of the package's own classes that are called as one of TRL's; files of that folder never see a trainer."""


def names_of_methods(source: str) -> set[str]:
    """Names of the functions that a file defines, and of the attributes that it reads or sets, also by a string."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_folder_but_the_seam_names_private_methods_of_trl(path):
    """One folder knows TRL's private methods and attributes; the others may call what it offers."""
    from mem1_trl.trainers.trl_seam.contract import RELIED_ATTRIBUTES, RELIED_METHODS

    if path.is_relative_to(SOURCE / "trainers" / "trl_seam"):
        return
    private = {*RELIED_METHODS, *(name for name in RELIED_ATTRIBUTES if name.startswith("_"))}
    used = names_of_methods(path.read_text(encoding="utf-8")) & private
    assert used <= OWN_NAMES.get(module_of(path), set())


def test_the_reading_of_methods_sees_every_form():
    source = (
        "class A(B):\n    def _generate(self): super()._compute_loss()\n    async def a(self): pass\n"
        "def f(trainer):\n    getattr(trainer, '_step')\n    trainer._metrics = {}\n"
    )
    assert names_of_methods(source) == {"_generate", "_compute_loss", "a", "f", "_step", "_metrics"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_json_of_strangers_has_one_reader(path):
    """`json.loads` raises a `RecursionError` for a thousand brackets, and takes `NaN` for a number."""
    readers = {"load", "loads", "JSONDecoder"}
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)]
    used = [node.attr for node in calls if isinstance(node.value, ast.Name) and node.value.id == "json"]
    assert path.name == "json_text.py" or not readers & set(used), "use mem1_trl.json_text.read_json"
