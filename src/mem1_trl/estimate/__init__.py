"""
What a run will take, from shapes alone: memory of a GPU, tokens, operations and time, before a weight is loaded.

`estimate_run(config, args, episode)` reads the configuration of a model and of a trainer, and the shape of an episode.
"""

from __future__ import annotations

from .estimate import Estimate, estimate_run
from .memory import BASES
from .shapes import EpisodeShape, ModelShape

__all__ = ["BASES", "EpisodeShape", "Estimate", "ModelShape", "estimate_run"]
