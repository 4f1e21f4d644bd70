"""The report of a run: one HTML page that opens without a network, and its plots."""

from .build import report

__all__ = ["report"]
