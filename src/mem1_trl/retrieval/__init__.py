"""Retrieval: one protocol, and indexes in memory, on disk, by vectors and behind HTTP."""

from .bm25 import Bm25Index
from .dense import DenseIndex, TransformersEncoder
from .http import HttpRetriever
from .open_retriever import open_retriever
from .passages import Passage, Retriever

__all__ = [
    "Bm25Index",
    "DenseIndex",
    "HttpRetriever",
    "Passage",
    "Retriever",
    "TransformersEncoder",
    "open_retriever",
]
