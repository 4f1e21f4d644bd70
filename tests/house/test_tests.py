"""Tests of the tests: none needs another one, a certain folder, a certain order, or an idle machine."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from support.forking import processes_that_end
from support.meeting import Meeting
from support.ports import held_port
from support.processes import alive, ends
from torch.distributed import TCPStore

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))
SHORTEST_BOUND = 30.0
"""Seconds. A busy machine may hold up a test for many times as long as it takes."""
CLOCK = re.compile(r"(?:monotonic|perf_counter|time\.time)\(\) - \w+ <=? ([\d.]+)")


def imported_modules(text: str) -> set[str]:
    """Parts of all dotted names that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)] if node.module != "__future__" else []
            found |= {part for name in names if name for part in name.split(".")} | (
                {"tests"} if node.level else set()
            )
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_file_imports_a_test_module(path):
    modules = {file.stem for file in FILES if file.stem.startswith("test_")} | {"tests", "conftest"}
    assert not imported_modules(path.read_text(encoding="utf-8")) & modules


def test_the_reading_of_imports_sees_every_form():
    text = "import a.b\nfrom c import d\nfrom . import e\ndef f():\n    from g.h import i\n"
    assert imported_modules(text) == {"a", "b", "c", "d", "e", "g", "h", "i", "tests"}


def test_no_id_holds_an_absolute_path(request):
    folders = {str(TESTS.parent), os.path.expanduser("~"), os.sep + "tmp" + os.sep}
    named = [item.nodeid for item in request.session.items if any(folder in item.nodeid for folder in folders)]
    assert named == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_fails_on_a_busy_machine(path):
    bounds = [float(seconds) for seconds in CLOCK.findall(path.read_text(encoding="utf-8"))]
    assert all(bound >= SHORTEST_BOUND for bound in bounds), "prove it by `support.meeting` or an event instead"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_port_is_only_found_free(path):
    """Another process may be given it before the server that it was meant for has started."""
    assert path.name in ("ports.py", Path(__file__).name) or "getsockname" not in path.read_text(encoding="utf-8")


def test_a_held_port_is_given_to_nobody_but_can_be_listened_on():
    with held_port() as port:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with pytest.raises(OSError, match="Address already in use"), socket.socket() as other:
            other.bind(("127.0.0.1", port))
        with held_port() as another:
            assert another != port
        store = TCPStore("127.0.0.1", port, is_master=True)
        store.set("key", "value")
        assert TCPStore("127.0.0.1", port, is_master=False).get("key") == b"value"


def test_a_meeting_is_for_calls_that_overlap(monkeypatch):
    monkeypatch.setattr("support.meeting.PATIENCE", 0.05)
    with pytest.raises(AssertionError, match="2 calls must overlap, but only 1 did"):
        Meeting(2).wait()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_processes_end_with_the_test_that_started_them():
    command = ["sh", "-c", "sleep 300 >/dev/null 2>&1 & echo $!"]
    with processes_that_end():
        left = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert alive(left)
    assert ends(left)


def test_a_process_that_ends_while_its_state_is_read_is_not_alive(monkeypatch):
    def read(path):
        raise ProcessLookupError(f"No such process: {path}")

    monkeypatch.setattr(Path, "read_text", read)
    assert not alive(os.getpid()) and ends(os.getpid())


# The process that scripts are forked from


@pytest.mark.slow  # the process must first import everything
def test_a_forked_script_is_a_process_as_any_other(fork_server, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, os, sys, threading, time\n"
        "atexit.register(lambda: print('at exit'))\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
        "print(__name__, sys.argv[1:], os.environ['WORD'], os.getcwd() == sys.argv[1], file=sys.stderr)\n"
        "sys.exit('no more' if sys.argv[2] == 'fail' else None)\n"
    )
    done = fork_server.run(script, Path.cwd(), "pass", environment={"WORD": "a b"})
    assert done.returncode == 0
    assert done.stdout == "thread\nat exit\n"
    assert done.stderr == f"__main__ {[str(Path.cwd()), 'pass']} a b True\n"
    failed = fork_server.run(script, Path.cwd(), "fail", environment={"WORD": ""})
    assert failed.returncode == 1 and failed.stderr.endswith("no more\n")


@pytest.mark.slow  # the process must first import everything
def test_the_end_of_a_forked_script_deletes_nothing_of_the_next(fork_server, tmp_path):
    """wandb makes a directory when it is imported, and deletes it when the process ends."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "import wandb.sdk.data_types._private as private\n"
        "print(private.MEDIA_TMP.name, Path(private.MEDIA_TMP.name).is_dir())\n"
    )
    first, second = (fork_server.run(script).stdout.split() for _ in range(2))
    assert first[1] == second[1] == "True" and first[0] != second[0]
    assert not Path(first[0]).exists() and not Path(second[0]).exists()


@pytest.mark.slow  # the process must first import everything
def test_a_forked_script_that_takes_too_long_is_killed_with_all_it_started(fork_server, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "rank = int(os.environ.get('RANK', 0))\n"
        "left = subprocess.Popen(['sleep', '300'])\n"
        "open(f'{sys.argv[1]}/{rank}', 'w').write(str(left.pid))\n"
        "assert sys.argv[2] == 'hang' or rank != 1, 'rank 1 gives up'\n"
        "time.sleep(300)\n"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        fork_server.run(script, tmp_path, "hang", timeout=2.0)
    assert ends(int((tmp_path / "0").read_text()))
    # One of two fails: the other does not wait for it
    done = fork_server.run(script, tmp_path, "fail", ranks=2)
    assert done.returncode == 1 and "rank 1 gives up" in done.stderr
    assert all(ends(int((tmp_path / str(rank)).read_text())) for rank in range(2))
