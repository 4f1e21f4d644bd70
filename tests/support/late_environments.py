"""An environment whose process sees a second late that its parent is gone, as on a loaded machine. Import it in a process of its own."""

import time
from multiprocessing import process

from support.fault_environments import Misbehaving

join = process._ParentProcess.join


def late(parent, timeout=None):
    join(parent, timeout)
    time.sleep(1)


process._ParentProcess.join = late


class Late(Misbehaving):
    """An environment that misbehaves in a process that is slow to notice."""

    def doze(self) -> None:
        """Still act when the parent is killed."""
        time.sleep(0.5)
