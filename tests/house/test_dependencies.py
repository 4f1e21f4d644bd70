"""Tests of what is imported: it is declared in pyproject.toml, and heavy packages are imported only where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.doc_blocks import ROOT

import mem1_trl

SOURCE = Path(mem1_trl.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "faiss": "faiss-cpu",
    "huggingface_hub": "huggingface-hub",
    "Stemmer": "pystemmer",
    "openenv": "openenv-core",
}
"""Modules whose package has another name."""

ASKED_FOR = {"certifi": "certificates beside those of the system, if it is there"}
"""Modules that are used if they are installed, and that nobody is told to install."""


def names_of(requirements: list[str]) -> set[str]:
    """Packages, and the extras of others (`trl[vllm]`), which have the name of what they bring."""
    found = [Requirement(one) for one in requirements]
    return {name.lower().replace("_", "-") for one in found for name in (one.name, *one.extras)}


CORE = names_of(PROJECT["dependencies"])
EXTRAS = set().union(*(names_of(p) for name, p in PROJECT["optional-dependencies"].items() if name != "dev"))


def imported(text: str) -> dict[str, bool]:
    """Top modules that a file imports, or hands to `require` and `import_module` -> whether the file cannot be imported without."""
    found: dict[str, bool] = {}
    tree = ast.parse(text)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        for name in names:
            found[name.split(".")[0]] = found.get(name.split(".")[0], False) or node in tree.body
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_is_imported_is_declared(path):
    for module, always in imported(path.read_text(encoding="utf-8")).items():
        if module in sys.stdlib_module_names or module in ("mem1_trl", *ASKED_FOR):
            continue
        package = DISTRIBUTIONS.get(module, module).lower().replace("_", "-")
        if (
            path.name == "reference.py" and package == "tiktoken"
        ):  # named where it is asked for; no extra for one function
            continue
        assert package in (CORE if always else CORE | EXTRAS), (
            f"{module} is imported, but pyproject.toml does not name it"
        )


def test_the_reading_of_imports_sees_every_form():
    text = 'import a.b\nfrom c.d import e\nfrom . import f\nfrom ..g import h\ndef i():\n    import j\n    require("k.l", "x", "y")\n'
    assert imported(text) == {"a": True, "c": True, "j": False, "k": False}


def test_no_extra_brings_a_version_that_trl_does_not_take():
    """Of what TRL itself asks for in an extra: its own bounds, or narrower ones."""
    bounds = {}
    for line in requires("trl"):
        one = Requirement(line)
        if one.marker is not None and one.specifier:
            bounds.setdefault(one.name, one.specifier)
    assert {"vllm", "deepspeed", "bitsandbytes"} <= set(bounds)
    for extra, requirements in PROJECT["optional-dependencies"].items():
        for one in map(Requirement, requirements):
            lowest = [bound.version for bound in one.specifier if bound.operator == ">="]
            for bound in bounds.get(one.name, ()):
                assert bound.operator == ">=" and bound.contains(lowest[0]), (
                    f"{extra}: {one}, but TRL asks for {bound}"
                )


HEAVY = ("matplotlib", "bm25s", "evaluate", "faiss", "trafilatura", "lxml", "rapidfuzz", "Stemmer", "gymnasium")


def test_what_is_not_needed_is_not_imported():
    modules = ("trainers.grpo", "trainers.ppo", "agent", "environments", "web", "retrieval", "evaluation.evaluate")
    imports = "; ".join(f"import mem1_trl.{module}" for module in modules)
    code = f"import sys; {imports}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_that_are_imported_on_first_use_are_all_there():
    import mem1_trl.environments
    import mem1_trl.web

    for package in (mem1_trl.environments, mem1_trl.web):
        assert all(getattr(package, name).__name__ == name for name in package.__all__)
