"""Internal: what is saved next to a model and what is pushed to the Hub."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .trajectories import load_trajectories as load_trajectories
    from .trajectories import push_trajectories as push_trajectories

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "load_trajectories": "trajectories",
        "push_trajectories": "trajectories",
    },
)
