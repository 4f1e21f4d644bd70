"""
Run scripts in processes forked from this one, which has imported the libraries: `fork_server.py DESCRIPTOR`.

Started by [`support.forking.ForkServer`]. DESCRIPTOR is its end of a connection, on which requests come and exit statuses go.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import runpy
import signal
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def preload() -> None:
    """Import what nearly every script imports. Nothing here may start a thread, which a fork would lose."""
    import datasets
    import peft
    import torch
    import trl

    import mem1_trl
    import mem1_trl.evaluation

    torch.set_num_threads(1)
    for name in mem1_trl.__all__:
        getattr(mem1_trl, name)
    assert trl.GRPOTrainer and peft.LoraConfig and datasets.Dataset  # TRL imports on first use


def temporary_directories() -> list[tempfile.TemporaryDirectory]:
    """Those that the imported libraries made for themselves, and delete when the process ends: wandb's, for instance."""
    return [thing for thing in gc.get_objects() if isinstance(thing, tempfile.TemporaryDirectory)]


def become(request: dict[str, Any], rank: int, group: int, shared: list[tempfile.TemporaryDirectory]) -> None:
    """Make a fresh child look like a process that was started with the script."""
    os.setpgid(0, group)
    for directory in shared:  # at its end, this process would delete them for all that are forked later
        directory._finalizer.detach()
        directory.__init__()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(request[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["ranks"] > 1:
        ranks = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": request["ranks"],
            "LOCAL_WORLD_SIZE": request["ranks"],
        }
        os.environ.update({name: str(value) for name, value in ranks.items()})
    os.chdir(request["directory"])
    sys.argv = [request["script"], *request["arguments"]]
    sys.path[0] = str(Path(request["script"]).parent)
    import numpy as np

    np.random.seed()


def finish(connection: Connection, children: list[int], deadline: float) -> int | None:
    """Exit status of the first child that failed, or 0; `None` after the deadline. The others are then ended, as by torchrun."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses and (ended := os.waitpid(child, os.WNOHANG))[0]:
                statuses[child] = os.waitstatus_to_exitcode(ended[1])
        if connection.poll():  # nothing is asked while a script runs, so that the other end is gone
            deadline = 0.0
        late = time.monotonic() > deadline
        if late or any(statuses.values()):
            end_group(children[0])
            for child in children:
                if child not in statuses:
                    os.waitpid(child, 0)
            return None if late else next(filter(None, statuses.values()))
        time.sleep(0.005)
    end_group(children[0])  # what the script left running
    return 0


def end_group(group: int) -> None:
    """Kill what is left of a process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def serve(connection: Connection, shared: list[tempfile.TemporaryDirectory]) -> dict[str, Any] | None:
    """Answer requests until the other end is gone. In a child: the request that it was made for."""
    while True:
        try:
            request = connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        children: list[int] = []
        for rank in range(request["ranks"]):
            child = os.fork()
            if child == 0:
                connection.close()
                become(request, rank, children[0] if children else 0, shared)
                return request
            # By both, since either may be first to need it
            os.setpgid(child, children[0] if children else child)
            children.append(child)
        connection.send(finish(connection, children, time.monotonic() + request["timeout"]))


def play(script: str) -> int:
    """Exit status of the script, whose exit handlers have run."""
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # as the interpreter does before exit handlers: wait for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    preload()
    gc.collect()
    shared = temporary_directories()
    gc.freeze()  # a collection in a child would copy every page that it looks at
    connection.send("ready")
    request = serve(connection, shared)
    if request is not None:
        os._exit(play(request["script"]))  # tearing down all modules would copy those pages, too, and takes seconds


if __name__ == "__main__":
    main()
