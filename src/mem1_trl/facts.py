"""The bundled corpus: real facts about countries and chemical elements, with questions. Works offline."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from datasets import Dataset

from .json_text import read_json

# Relation -> question in search words; a relation that is not listed here keeps the question itself
KEYWORDS = {
    "capital": "capital of {}",
    "currency": "currency code of {}",
    "calling_code": "calling code of {}",
    "alpha2": "two-letter code of {}",
    "alpha3": "three-letter code of {}",
    "demonym": "native of {}",
    "region": "world region of {}",
    "subregion": "subregion of {}",
    "symbol": "chemical symbol of {}",
    "atomic_number": "atomic number of {}",
    "period": "period of {}",
    "group": "group of {}",
    "block": "block of {}",
    "series": "series of {}",
    "discovery_year": "discovery year of {}",
    "discovery_place": "discovery place of {}",
}


@dataclass(frozen=True)
class Facts:
    """
    A small corpus and the questions it answers.

    The passage of an entity contains every answer about it literally, in at most five words. `scripts/build_facts.py` builds it
    from the packages countryinfo and mendeleev (both MIT, see `data/NOTICE`).

    Attributes:
        corpus (`datasets.Dataset`):
            One row per entity, columns `title` and `text` (2 to 5 sentences of plain ASCII English). It covers the
            entities of both splits, so that the passages an agent can search do not depend on the split of its questions.
        train_questions (`datasets.Dataset`):
            Questions about the entities of the train split; columns as in [`~Facts.questions`].
        test_questions (`datasets.Dataset`):
            Questions about the entities of the test split.
    """

    corpus: Dataset
    train_questions: Dataset
    test_questions: Dataset

    def questions(self, split: str) -> Dataset:
        """
        The questions of one split. The split is by entity: no question of `"train"` is about an entity of `"test"`.

        Args:
            split (`str`):
                `"train"` or `"test"`.

        Returns:
            `datasets.Dataset`: columns `question`, `keywords` (the same in search words), `answer`, `entity` (title of the passage that holds the answer),
            `relation` (such as `"capital"`) and `kind` (`"country"` or `"element"`), all strings, in the order of the
            corpus.

        Raises:
            `ValueError`: if `split` is neither of the two.
        """
        if split == "train":
            return self.train_questions
        if split == "test":
            return self.test_questions
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")


@cache
def load_facts() -> Facts:
    """
    The bundled corpus. The file is read once per process; later calls return the same object.

    Example:

    ```python
    >>> from mem1_trl.facts import load_facts

    >>> facts = load_facts()
    >>> facts.questions("train")[0]["question"]
    'Which city is the capital of Afghanistan?'
    ```

    Returns:
        [`Facts`]: the corpus and its questions.
    """
    content = gzip.decompress((files("mem1_trl") / "data" / "facts.jsonl.gz").read_bytes())
    records = [read_json(line) for line in content.decode("ascii").splitlines()]
    columns = ("question", "keywords", "answer", "entity", "relation", "kind")
    questions = {
        split: [
            {
                **question,
                "keywords": KEYWORDS.get(question["relation"], question["question"]).format(record["title"]),
                "entity": record["title"],
                "kind": record["kind"],
            }
            for record in records
            if record["split"] == split
            for question in record["questions"]
        ]
        for split in ("train", "test")
    }
    return Facts(
        corpus=Dataset.from_list([{"title": record["title"], "text": record["text"]} for record in records]),
        train_questions=Dataset.from_list(questions["train"]).select_columns(list(columns)),
        test_questions=Dataset.from_list(questions["test"]).select_columns(list(columns)),
    )
