"""Waits of the main thread end with an interrupt, whenever it comes."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The signal reaches a thread that does not wait: for the one that does, as if it had come in the moment before the wait
PROGRAM = """
import signal, sys, threading, time
from mem1_trl.retrieval.http import HttpRetriever
from mem1_trl.rollout.server_calls import ServerCalls
from mem1_trl.waiting import wait_until

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets programs in the background ignore it
end = threading.Event()

def interrupt(*_):
    time.sleep(0.2)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    end.wait()

def requests():
    ServerCalls(4, 5).all([end.wait, interrupt])

def search():
    retriever = HttpRetriever("http://127.0.0.1:9/retrieve")
    retriever._free = 0
    threading.Thread(target=interrupt, daemon=True).start()
    retriever.search(["a"])

def waiting():
    threading.Thread(target=interrupt, daemon=True).start()
    wait_until(end.wait)

globals()[sys.argv[1]]()
"""


@pytest.mark.parametrize("wait", ["requests", "search", "waiting"])
@pytest.mark.skipif(sys.platform == "win32", reason="signals of threads are those of POSIX")
def test_an_interrupt_just_before_a_wait_ends_it(wait):
    ended = subprocess.run([sys.executable, "-c", PROGRAM, wait], stderr=subprocess.PIPE, text=True, timeout=100)
    assert "KeyboardInterrupt" in ended.stderr and ended.returncode != 0
