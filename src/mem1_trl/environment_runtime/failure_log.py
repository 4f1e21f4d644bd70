"""What is logged of failures: the first of each method with its traceback, the later ones as a count."""

from __future__ import annotations

import logging
import threading
from collections import Counter

logger = logging.getLogger(__name__)


class FailureLog:
    """
    Logs failures of calls of environments. A failure that the agent reads, or that costs an episode, would otherwise leave no trace
    of where in the code it happened; one that happens in every episode should not fill the log.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._later: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, name: str, error: BaseException) -> None:
        """
        Log a failure with its traceback if it is the first of its method, and count it otherwise.

        Args:
            name (`str`):
                The method, such as "`search` of Library".
            error (`BaseException`):
                What it raised.
        """
        with self._lock:
            if name in self._known:
                self._later[name] += 1
                return
            self._known.add(name)
        logger.warning("%s failed. Later failures of it are counted only.", name, exc_info=error)

    def later(self) -> str:
        """The failures that were only counted since the last call of this method, such as "`search` of Library 3 times"."""
        with self._lock:
            counts, self._later = self._later, Counter()
        return ", ".join(f"{name} {count} time{'s' * (count > 1)}" for name, count in counts.most_common())
