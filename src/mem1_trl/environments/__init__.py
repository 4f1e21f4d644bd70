"""Environments in TRL's protocol: what an agent acts in, one file each."""

from .retrieval_qa import RetrievalQAEnvironment
from .web_qa import WebQAEnvironment

__all__ = ["RetrievalQAEnvironment", "WebQAEnvironment"]
