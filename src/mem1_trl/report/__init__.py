"""The report of a run: one HTML page that does not need a network, and its plots."""

from .build import report

__all__ = ["report"]
