"""[`ProcessEnvironment`], an environment in a process of its own; see docs/faults.md."""

from .environment_runtime.process import ProcessEnvironment

__all__ = ["ProcessEnvironment"]
