"""Datasets: load single-question data, and compose several questions into one multi-objective task."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, load_dataset
from numpy.random import SeedSequence

from .answers import read_answers
from .local_rows import FILES, has_rows, read_rows
from .rewards import ANSWER_SEPARATOR
from .typed_fields import check_seed, check_whole

logger = logging.getLogger(__name__)

QUESTION_SEPARATOR = "; "

# Give up after this many shuffles without a new task
_MAX_FRUITLESS_SHUFFLES = 50

Row = tuple[str, list[str]]  # a question and its accepted answers

# The order matters: FlashRAG has `golden_answers` and, in some data sets, also a different `answer`.
ANSWER_COLUMNS = ("golden_answers", "answer", "answers", "possible_answers")
ALIASES_COLUMN = "answer_aliases"  # MuSiQue, besides `answer`


def compose_objectives(
    dataset: Dataset,
    n: int,
    question: str = "question",
    answer: str = "answer",
    seed: int | None = None,
) -> Dataset:
    """
    Tasks of `n` objectives, grouped from single-question rows (MEM1, arXiv 2506.15841: "multi-objective task").

    Rows (Q1, A1), (Q2, A2), (Q3, A3), (Q4, A4), (Q5, A5) with `n=2` become the tasks "Q1; Q2" and "Q3; Q4"; the
    remainder, Q5, is dropped. A question that its group already contains moves to a later group: with Q2 = Q1 the tasks
    are "Q1; Q3" and "Q2; Q4".

    Agents separate the answers of a task by semicolons, so an accepted answer that contains a semicolon is left out, and a row
    without any other answer is skipped, with a warning.

    Args:
        dataset (`datasets.Dataset`):
            One question per row.
        n (`int`):
            Number of objectives per task, at least 1.
        question (`str`, *optional*, defaults to `"question"`):
            Column with the question, a string.
        answer (`str`, *optional*, defaults to `"answer"`):
            Column with the answer, or a list of accepted answers, in any form that [`mem1_trl.answers.read_answers`] reads.
        seed (`int`, *optional*):
            Seed for shuffling the rows first. `None` groups consecutive rows, as the reference code does.

    Returns:
        `datasets.Dataset`: columns `prompt` (`str`, the questions joined by `"; "`), `questions` (`list[str]`), `answers`
        (`list[list[str]]`, the accepted answers of every objective) and `num_objectives` (`int`).

    Raises:
        `ValueError`: if `n` is below 1, a column is missing or does not contain text, or there are not enough rows for one
            task.
        `TypeError`: if `dataset` is not a `datasets.Dataset`.

    Example:

    ```python
    >>> from mem1_trl import compose_objectives
    >>> from mem1_trl.facts import load_facts

    >>> compose_objectives(load_facts().questions("train"), n=2)[0]["answers"]
    [['Kabul'], ['Afghanistan']]
    ```
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"`dataset` must be a datasets.Dataset, got a {type(dataset).__name__}: pass one split, for example "
            "load_dataset(..., split='train')."
        )
    n = check_whole("n", n, least=1)
    for column in (question, answer):
        if column not in dataset.column_names:
            raise ValueError(
                f"The dataset has no column {column!r} (it has {', '.join(map(repr, dataset.column_names))}): name the "
                "columns with `question=` and `answer=`."
            )
    if seed is not None:
        dataset = dataset.shuffle(seed=check_seed(seed))

    rows = []
    for position, (text, accepted) in enumerate(zip(dataset[question], dataset[answer])):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"Row {position} has the question {text!r}: column {question!r} must contain non-empty text."
            )
        aliases = [alias for alias in read_answers(accepted, answer) if ANSWER_SEPARATOR not in alias]
        if aliases:
            rows.append((text.strip(), aliases))
    if len(rows) < len(dataset):
        logger.warning(
            "Skipped %d of %d questions: they have no accepted answer without a semicolon, which separates answers.",
            len(dataset) - len(rows),
            len(dataset),
        )

    tasks = list(_groups_without_repeats(rows, n))
    if not tasks:
        raise ValueError(
            f"{len(rows)} usable rows do not make one task of {n} different questions: pass more rows or a smaller `n`."
        )
    features = Features(
        {
            "prompt": Value("string"),
            "questions": List(Value("string")),
            "answers": List(List(Value("string"))),
            "num_objectives": Value("int64"),
        }
    )
    records = [
        {
            "prompt": QUESTION_SEPARATOR.join(text for text, _ in task),
            "questions": [text for text, _ in task],
            "answers": [aliases for _, aliases in task],
            "num_objectives": n,
        }
        for task in tasks
    ]
    return Dataset.from_list(records, features=features)


def sample_objectives(
    dataset: Dataset,
    n: int,
    count: int,
    question: str = "question",
    answer: str = "answer",
    seed: int = 0,
) -> Dataset:
    """
    Exactly `count` tasks of `n` objectives, for instance for an evaluation, even if there are few questions.

    [`compose_objectives`] groups the questions repeatedly, each time in another order, until there are enough different
    tasks. If there are not enough (one objective and fewer questions than tasks), tasks repeat, with a warning.

    Args:
        dataset (`datasets.Dataset`):
            One question per row.
        n (`int`):
            Number of objectives per task, at least 1.
        count (`int`):
            Number of tasks.
        question, answer (`str`, *optional*):
            Columns, as in [`compose_objectives`].
        seed (`int`, *optional*, defaults to `0`):
            Seed for the orders. Different seeds have no order in common.

    Returns:
        `datasets.Dataset`: `count` rows with the columns of [`compose_objectives`].
    """
    count = check_whole("count", count, least=1)
    different: dict[tuple[str, ...], dict[str, Any]] = {}
    features, fruitless = None, 0
    for order in SeedSequence(check_seed(seed)).generate_state(_MAX_FRUITLESS_SHUFFLES * count):
        tasks = compose_objectives(dataset, n, question, answer, seed=int(order))
        features, before = tasks.features, len(different)
        for task in tasks:
            different.setdefault(tuple(task["questions"]), task)
        fruitless = 0 if len(different) > before else fruitless + 1
        if len(different) >= count or n == 1 or fruitless == _MAX_FRUITLESS_SHUFFLES:
            break
    rows = list(different.values())
    if len(rows) < count:
        logger.warning(
            "Only %d different tasks of %d objectives were found in %d questions, so that %d of %d tasks repeat, each of "
            "which counts as one in intervals.",
            len(rows),
            n,
            len(dataset),
            count - len(rows),
            count,
        )
    return Dataset.from_list([rows[index % len(rows)] for index in range(count)], features=features)


def load_qa_dataset(
    path_or_name: str | Path,
    split: str = "train",
    question: str | None = None,
    answer: str | None = None,
    **kwargs: Any,
) -> Dataset:
    """
    Questions with accepted answers, loaded from any of the common schemas.

    Supported are FlashRAG (`question`, `golden_answers`), HotpotQA (`question`, `answer`), MuSiQue (`answer` and
    `answer_aliases`), NQ-open (`question`, a list `answer`), TriviaQA (`answer` with `value` and `aliases`), SQuAD (`answers` with
    `text`) and PopQA (`possible_answers`). In a file every answer is read as it was written: "NA" and "None" are answers, 26 is the
    answer "26", `true` is "yes" or "true".

    Args:
        path_or_name (`str` or `Path`):
            A local `.jsonl` (also `.gz`), `.json`, `.parquet`, `.csv` or `.tsv` file, or the name of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset on the Hub. A local file is a single split, regardless of its name.
        question, answer (`str`, *optional*):
            Columns with the question and the answer, if their names are others than those above.
        **kwargs:
            For a local file `field="data"`, for rows under a key of a JSON file, and `delimiter` of a CSV file. For a dataset on the
            Hub, passed to `datasets.load_dataset`, such as `name="distractor"` for a configuration.

    Returns:
        `datasets.Dataset`: columns `question` (`str`) and `answer` (`list[str]`), rows in the order of the source. Rows without
        an answer are left out, with a warning. [`compose_objectives`] accepts it.

    Raises:
        `FileNotFoundError`: if a path to a file does not exist.
        `ValueError`: if the schema is unknown, or no row has an answer.
    """
    rows, columns = load_rows(path_or_name, split, "a question and an answer", **kwargs)
    asked = question or "question"
    known = ANSWER_COLUMNS if answer is None else (answer,)
    column = next((name for name in known if name in columns), None)
    if asked not in columns or column is None:
        raise ValueError(
            f"{path_or_name} has the columns {', '.join(map(repr, columns))}, but needs {asked!r} and one of "
            f"{', '.join(map(repr, known))}: name its columns with `question=` and `answer=`."
        )
    records = []
    for row in rows:
        accepted = read_answers(row.get(column), column)
        if column == "answer":
            accepted += read_answers(row.get(ALIASES_COLUMN), ALIASES_COLUMN)
        records.append({"question": str(row.get(asked) or "").strip(), "answer": list(dict.fromkeys(accepted))})
    answered = [record for record in records if record["question"] and record["answer"]]
    if not answered:
        raise ValueError(
            f"No row of {path_or_name} has an answer in {column!r}: pass a split whose answers are public."
        )
    if len(answered) < len(records):
        logger.warning(
            "Left out %d of %d rows without a question or an answer.", len(records) - len(answered), len(records)
        )
    features = Features({"question": Value("string"), "answer": List(Value("string"))})
    return Dataset.from_list(answered, features=features)


_OF_LOADING = (
    "cache_dir",
    "token",
    "num_proc",
    "keep_in_memory",
    "download_config",
    "download_mode",
    "verification_mode",
)
"""Options of [`~datasets.load_dataset`] that change nothing about the rows: a file has no use for them."""


def load_rows(path_or_name: str | Path, split: str, holding: str, **kwargs: Any) -> tuple[Iterable[Any], list[str]]:
    """
    Rows of a file or of a dataset on the Hub, and the names of their columns.

    Args:
        path_or_name (`str` or `Path`):
            The file, or the name of the dataset.
        split (`str`):
            Split of the dataset.
        holding (`str`):
            What a row must hold, for the messages.
        **kwargs:
            Passed to [`~datasets.load_dataset`]. Of those that decide the rows, a file of JSON takes `field` and one of CSV or TSV `delimiter`.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If the file is of another kind or has no rows, a row is no object, or an option is none of a file.
    """
    path = Path(path_or_name)
    if path.is_file() and not has_rows(path):
        raise ValueError(f"{path.name} is not a {', '.join(FILES)} file: convert it to one of these.")
    if not path.is_file() and has_rows(path):
        raise FileNotFoundError(f"There is no file {path_or_name}: check the path.")
    if not path.is_file():
        dataset = load_dataset(str(path_or_name), split=split, **kwargs)
        return dataset, dataset.column_names
    own = {key: value for key, value in kwargs.items() if value is not None and key not in _OF_LOADING}
    taken = {".json": ["field"], ".csv": ["delimiter"], ".tsv": ["delimiter"]}.get(path.suffix.lower(), [])
    for key in own:
        if key not in taken:
            raise ValueError(
                f"{key!r} is no option for the file {path.name}, which takes {' and '.join(taken) or 'none'}: leave it out."
            )
    rows = list(read_rows(path, f"pass a file of rows that each hold {holding}.", **own))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise ValueError(f"Row {number} of {path} is {row!r:.60}: it must be an object with {holding}.")
    if not rows:
        raise ValueError(f"{path} has no rows: pass a file of rows that each hold {holding}.")
    return rows, list(dict.fromkeys(column for row in rows for column in row))


def _groups_without_repeats(rows: Iterable[Row], n: int) -> Iterator[list[Row]]:
    """Groups of `n` rows with `n` different questions, in order; a repeated question moves to the next group."""
    waiting: dict[str, deque[Row]] = {}  # by question, in the order of their first occurrence
    group: dict[str, Row] = {}
    for row in rows:
        if row[0] in group:
            waiting.setdefault(row[0], deque()).append(row)
        else:
            group[row[0]] = row
        while len(group) == n:
            yield list(group.values())
            group = {}
            for text in list(waiting)[:n]:
                group[text] = waiting[text].popleft()
                if not waiting[text]:
                    del waiting[text]
