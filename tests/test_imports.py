"""Tests of the house: a light import, names that resolve, and imports that go one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mem1_trl

SOURCE = Path(mem1_trl.__file__).parent

ORDER = [
    "version",
    "trajectory",
    "protocol",
    "context",
    "facts",
    "arguments",
    "faults",
    "environment_calls",
    "actions",
    "tool_calls",
    "retrieval",
    "web",
    "external_memory",
    "rewards",
    "evaluate_metrics",
    "reference_evaluation",
    "environments",
    "tasks",
    "metrics",
    "intervals",
    "retention",
    "evaluation_result",
    "display",
    "tracking",
    "layouts",
    "folding",
    "attention_plan",
    "attention",
    "flex_tree",
    "prefix_cache",
    "generation",
    "untrusted",
    "rollout",
    "endpoint",
    "episode_scores",
    "tree_attention",
    "scoring",
    "advantages",
    "losses",
    "balancing",
    "adapters",
    "critic",
    "critic_optimizer",
    "configs",
    "checkpoints",
    "environment_pool",
    "process_environment",
    "agent_settings",
    "quantization",
    "sharding",
    "model_card",
    "unscored",
    "trl_adapter",
    "base_trainer",
    "grpo_trainer",
    "ppo_trainer",
    "agent",
    "evaluation",
    "demonstrations",
    "trajectory_hub",
    "report",
    "cli",
]
"""Every module of the package; each imports only from those above it (`__init__` and `__main__` stand outside)."""


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


def test_no_module_but_the_adapter_names_private_methods_of_trl():
    """One file knows TRL's private methods; the others may call what it offers."""
    from mem1_trl.trl_adapter import RELIED_METHODS

    for name in ("base_trainer", "grpo_trainer", "ppo_trainer"):
        tree = ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not defined & set(RELIED_METHODS), name
        assert not used & set(RELIED_METHODS) - {"_tokenize_prompts"}, name  # read, to check budgets in advance
