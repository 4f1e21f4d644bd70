"""
An external memory: past observations in a BM25 store. In each turn, the best matches are put back into the context.

It is a baseline that replaces A-MEM (arXiv 2502.12110) in MEM1's tables. The idea is the same, notes that are retrieved when
they match the current step, but A-MEM's own language model calls, which write and link the notes, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..retrieval import Bm25Index
from ..words import words_of_passage


@dataclass(frozen=True, slots=True)
class Note:
    """
    One past observation.

    Attributes:
        query (`str`):
            Input of the action that caused it.
        text (`str`):
            The observation as the agent read it, without tags and hint.
        ids (`tuple[int, ...]`):
            Token ids of the observation, as in the context.
    """

    query: str
    text: str
    ids: tuple[int, ...]


@dataclass(slots=True)
class ExternalMemory:
    """
    The past observations of one episode.

    Attributes:
        notes (`list[Note]`):
            Notes in the order they were made, without repeats.
    """

    notes: list[Note] = field(default_factory=list)

    def add(self, note: Note) -> None:
        """Store an observation. A repeated observation moves to the end; one that contains no word is not stored."""
        if words_of_passage(note.text):
            self.notes = [*(old for old in self.notes if old.text != note.text), note]

    def recall(self, query: str, top_k: int) -> list[Note]:
        """
        The notes that match a query best, by BM25 over each observation and the query that caused it.

        Args:
            query (`str`):
                Text to match, for instance the task and the last query.
            top_k (`int`):
                Maximum number of notes.

        Returns:
            `list[Note]`: Best first, earlier notes first among equals. Notes that share no word with the query are left out.
        """
        if not self.notes:
            return []
        # An episode has tens of notes: building the index again takes less than a millisecond
        index = Bm25Index([(note.query, note.text) for note in self.notes])
        (found,) = index.search([query], top_k)
        by_text = {note.text: note for note in self.notes}
        return [by_text[passage.text] for passage in found]
