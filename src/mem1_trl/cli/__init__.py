"""The command line, `mem1`: evaluate an agent, write a report, look at trajectories."""

from .main import main

__all__ = ["main"]
