"""Whether processes still run."""

from __future__ import annotations

import time
from pathlib import Path

PATIENCE = 30.0


def alive(pid: int) -> bool:
    """
    Whether a process runs; one that has ended and that its parent did not wait for does not.

    A process may end between the moment at which its file is opened and the one at which it is read. The system then says that
    there is no such process instead of no such file.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def ends(pid: int) -> bool:
    """Whether a process is gone within `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
