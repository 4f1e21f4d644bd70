"""Numbers of a server, as Prometheus reads them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any


class Counts:
    """Numbers that only grow, counted by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(self, name: str, amount: float = 1.0, **labels: Any) -> None:
        """Let a number grow."""
        key = name, tuple(sorted((label, str(value)) for label, value in labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def text(self, gauges: Mapping[str, float]) -> str:
        """All numbers, and others that go up and down."""
        with self._lock:
            values = sorted(self._values.items())
        lines: list[str] = []
        for name in sorted({key[0] for key, _ in values}):
            lines.append(f"# TYPE {name} counter")
            for (own, labels), value in values:
                if own == name:
                    shown = ",".join(f'{label}="{text}"' for label, text in labels)
                    lines.append(f"{name}{{{shown}}} {value:.17g}" if shown else f"{name} {value:.17g}")
        for name, value in sorted(gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {value:.10g}"]
        return "\n".join(lines) + "\n"
