"""What may go wrong in an environment, and how a method says that it may be repeated; see docs/faults.md."""

from .environment_runtime.errors import (
    CallTimedOut,
    EnvironmentDied,
    RemoteError,
    describe_error,
    idempotent,
    is_refusal,
    is_transient,
    may_repeat,
)
from .environment_runtime.faults import FaultCounts, FaultSettings, as_reward, fault_metrics

__all__ = [
    "CallTimedOut",
    "EnvironmentDied",
    "FaultCounts",
    "FaultSettings",
    "RemoteError",
    "as_reward",
    "describe_error",
    "fault_metrics",
    "idempotent",
    "is_refusal",
    "is_transient",
    "may_repeat",
]
