"""Tests of packages that are missing or broken: they end a run with one sentence, whoever asks for them and wherever."""

from __future__ import annotations

import sys

import pytest
from support.fault_environments import Importing

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.actions import run_calls
from mem1_trl.environment_runtime.calls import EnvironmentCaller
from mem1_trl.environment_runtime.faults import FaultSettings
from mem1_trl.environment_runtime.pool import EnvironmentPool
from mem1_trl.environments import ProcessEnvironment, WebShopEnvironment
from mem1_trl.environments.webshop import load_bundled_webshop
from mem1_trl.optional_packages import require

WORDS = r"`{}` of Importing cannot work here and would fail in every episode: ModuleNotFoundError: No module named 'no_such_package'"


@pytest.fixture(params=["here", "in a process"])
def pool(request):
    factory = Importing if request.param == "here" else ProcessEnvironment.factory(Importing)
    pool = EnvironmentPool(factory, Mem1Protocol(), FaultSettings(retries=0))
    yield pool
    pool.close()


def test_a_missing_package_ends_the_run(pool):
    with pytest.raises(ImportError, match=WORDS.format("reset")) as caught:
        pool.start([{"where": "reset"}, {}])
    assert "no_such_package" in str(caught.value.__cause__)
    (started,) = pool.start([{"where": "search"}])
    with pytest.raises(ImportError, match=WORDS.format("search")):
        run_calls([(started.environment.search, {"query": "x"})], pool.caller, [started.environment])
    (started,) = pool.start([{"where": "get_reward"}])
    with pytest.raises(ImportError, match=WORDS.format("get_reward")):
        pool.score([started.environment])


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ("run", "import no_such_package"),
        ("run", "from json import no_such_name"),
        ("run", "import subprocess_of_nobody.deeper as x"),
        ("run", "__import__('no_such' + '_package')"),
        ("load", "no_such_package"),
    ],
)
def test_what_the_agent_asks_for_does_not(pool, action, text):
    """It wrote the import itself: an error that it reads, as any other."""
    (started,) = pool.start([{}])
    parameter = "code" if action == "run" else "name"
    call = (getattr(started.environment, action), {parameter: text})
    (result,) = run_calls([call], pool.caller, [started.environment])
    assert result.failed and "Error" in result.text and not result.fatal


def test_a_package_that_is_missing_when_all_closes_is_a_warning(caplog):
    class Leaving(Importing):
        def close(self):
            import no_such_package  # noqa: F401

    pool = EnvironmentPool(Leaving, Mem1Protocol())
    pool.close()
    assert "Closing a Leaving failed" in caplog.text


# The extras of this package


@pytest.mark.parametrize("package", ["Stemmer", "rapidfuzz"])
def test_webshop_asks_for_its_extras_when_it_is_made(monkeypatch, package):
    shop = load_bundled_webshop()
    shop.search_engine  # noqa: B018
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf'needs the package {package}, which is not installed: pip install "mem1-trl\[webshop\]"'
    ):
        WebShopEnvironment(shop)


@pytest.mark.parametrize("package", ["trafilatura", "protego"])
def test_the_web_asks_for_its_extras_when_it_is_made(monkeypatch, package):
    from mem1_trl.environments import WebQAEnvironment

    class Engine:
        def search(self, query, top_k):
            return []

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=f"Reading the web needs the package {package}, which is not installed"
    ) as caught:
        WebQAEnvironment.factory(Engine())
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import a_dependency_that_is_gone", "ModuleNotFoundError: No module named 'a_dependency_that_is_gone'"),
        ("raise OSError('libx.so.1: cannot open shared object file')", "OSError: libx.so.1: cannot open"),
        ("from json import nothing_like_it", "ImportError: cannot import name 'nothing_like_it'"),
    ],
)
def test_a_broken_package_is_not_called_missing(monkeypatch, tmp_path, source, said):
    (tmp_path / "broken_package.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="installed but cannot be imported") as caught:
        require("broken_package", "web", "This test")
    assert said in str(caught.value) and said.split(": ", 1)[1] in str(caught.value.__cause__)


def test_an_interrupted_batch_counts_nothing_twice():
    """The caller is usable after the error, for the environments that are closed then."""
    caller = EnvironmentCaller(FaultSettings(retries=2))
    environment = Importing()
    environment.reset(where="search")
    with pytest.raises(ImportError):
        run_calls([(environment.search, {"query": "x"})], caller)
    environment.reset()
    assert run_calls([(environment.search, {"query": "x"})], caller)[0].text == "x"
