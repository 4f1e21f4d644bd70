"""
An external memory: past observations in a BM25 store, of which the best are put back into the context each turn.

It is a baseline, the stand-in for A-MEM (arXiv 2502.12110) in MEM1's tables: the same idea, notes that are retrieved when
they match what is being done, without A-MEM's own language model calls that write and link the notes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..retrieval import WORD, Bm25Index


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
            Its token ids, as they stood in the context.
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
            In the order they were made, none twice.
    """

    notes: list[Note] = field(default_factory=list)

    def add(self, note: Note) -> None:
        """Keep an observation. One that was seen before moves to the end; one without a word is not kept."""
        if WORD.search(note.text):
            self.notes = [*(old for old in self.notes if old.text != note.text), note]

    def recall(self, query: str, top_k: int) -> list[Note]:
        """
        The notes that match a query best, by BM25 over what was observed and the query it was observed for.

        Args:
            query (`str`):
                What is being done, for instance the task and the last query.
            top_k (`int`):
                Most notes.

        Returns:
            `list[Note]`: Best first, earlier ones first among equals. Notes that share no word with the query are left out.
        """
        if not self.notes:
            return []
        # An episode has tens of notes: building the index anew takes less than a millisecond
        index = Bm25Index([(note.query, note.text) for note in self.notes])
        (found,) = index.search([query], top_k)
        by_text = {note.text: note for note in self.notes}
        return [by_text[passage.text] for passage in found]
