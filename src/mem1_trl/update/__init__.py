"""Internal but for [`score_trajectories`]: from trajectories to a gradient."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .row_batch import RowBatch as RowBatch
    from .rows import build_row as build_row
    from .scoring import score_trajectories as score_trajectories

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "RowBatch": "row_batch",
        "build_row": "rows",
        "score_trajectories": "scoring",
    },
)
