"""Environments in TRL's protocol: what an agent acts in, one file each."""

from .retrieval_qa import RetrievalQAEnvironment

__all__ = ["RetrievalQAEnvironment"]
