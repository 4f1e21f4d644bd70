"""What commands share: which questions are asked, what is searched, and how a model is spoken to."""

from __future__ import annotations

from bisect import bisect_left
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..local_rows import has_rows
from ..protocol.presets import PRESETS, named_protocol
from .options import OF_FILES, CommandError, naming_columns, naming_options
from .own_code import imported

if TYPE_CHECKING:
    from datasets import Dataset

    from ..protocol.protocol import Mem1Protocol


BUNDLED = "facts"
"""The name of the corpus that comes with the package."""
OF_PASSAGES = ("corpus_split", "corpus_title", "corpus_text")
"""Options of a corpus that is a file or a data set of passages."""


def listed_objectives(objectives: Any) -> Any:
    """Numbers of objectives; a value of another type is left to the check of types."""
    if objectives == []:
        raise ValueError("objectives must hold a number at least, got an empty list")
    if isinstance(objectives, list) and any(isinstance(n, int) and n < 1 for n in objectives):
        raise ValueError(f"objectives={objectives} must be 1 or more each")
    return objectives


@dataclass
class CorpusArguments:
    """
    Arguments about what an agent searches, and how it is spoken to.

    Parameters:
        protocol (`str`, *optional*):
            `"default"`, `"paper"`, `"reference"`, `"reference_inference"`, `"tool_calls"`, `"webshop"`, or a directory with
            `mem1_protocol.json`. `None` takes the one that was saved with the model.
        corpus (`str`, *optional*):
            File or id of a data set of passages, a folder of text files, a directory that `mem1 index` wrote, or the address of
            a retriever (`http://...`). `None`, or `"facts"`, searches the bundled facts.
        corpus_split (`str`, *optional*, defaults to `"train"`):
            Split of the passages.
        corpus_title, corpus_text (`str`, *optional*, defaults to `"title"` and `"text"`):
            Columns of the passages.
        environment (`str`, *optional*):
            Import path of a class or function without arguments that makes an environment, such as `my_shop.ShopEnvironment`, in place
            of a corpus. The current directory is searched, too.
    """

    protocol: str | None = field(
        default=None,
        metadata={
            "help": f"One of {', '.join(PRESETS)}, or a directory with mem1_protocol.json. `None` takes the one that was "
            "saved with the model."
        },
    )
    corpus: str | None = field(
        default=None,
        metadata={
            "help": "File (.jsonl, .json, .csv, .parquet) or id of a data set of passages, a folder of text files, a directory of "
            "`mem1 index`, or the address of a retriever (http://...). `None`, or `facts`, searches the bundled facts."
        },
    )
    corpus_split: str = field(default="train", metadata={"help": "Split of the passages."})
    corpus_title: str = field(default="title", metadata={"help": "Column of the passages with the title."})
    corpus_text: str = field(default="text", metadata={"help": "Column of the passages with the text."})
    environment: str | None = field(
        default=None,
        metadata={
            "help": "Import path of a class or function without arguments that makes an environment, such as "
            "my_shop.ShopEnvironment, in place of questions and a corpus. The current directory is searched, too."
        },
    )

    def _check_environment(self, *names: str) -> None:
        """Refuse options that an environment replaces: those of the corpus, and further `names`."""
        if self.environment is None:
            self._check_corpus()
            return
        named = ("corpus", *OF_PASSAGES, *names)
        for name in self.differing(*named):
            raise ValueError(
                f"{name} is about questions and their corpus, and environment={self.environment!r} replaces these: leave one out"
            )

    @property
    def _asks_retriever(self) -> bool:
        """Whether the corpus is the address of a retriever."""
        return (self.corpus or "").startswith(("http://", "https://"))

    def _check_corpus(self) -> None:
        """Refuse options about a file or a data set of passages where there is none."""
        if self.corpus not in (None, BUNDLED) and not self._asks_retriever:
            folder = Path(self.corpus)
            if folder.is_dir():
                for name in self.differing(*OF_PASSAGES):
                    raise ValueError(
                        f"{name} is about a file or a data set of passages, and {self.corpus} is a folder: leave it out"
                    )
            self._refuse_split("corpus_split", self.corpus)
            return
        for name in self.differing(*OF_PASSAGES):
            what = "a retriever knows its own" if self._asks_retriever else "there is none"
            raise ValueError(
                f"{name} is about a file of passages, and {what}: give the file as corpus, or leave it out"
            )

    def _refuse_split(self, name: str, source: str | None) -> None:
        """Refuse the split of a file, which has none: its rows are all taken, whatever columns they have."""
        if source is not None and has_rows(source) and self.differing(name):
            raise ValueError(
                f"{name} is about a data set on the Hub, and {source} is a file, which is taken as a whole: leave it out"
            )

    def differing(self, *names: str) -> dict[str, Any]:
        """Those of the named fields that have another value than their default."""
        found = {}
        for one in fields(self):
            default = one.default if one.default_factory is MISSING else one.default_factory()
            if one.name in names and getattr(self, one.name) != default:
                found[one.name] = getattr(self, one.name)
        return found

    def _check_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def environment_factory(self, passages: int) -> Any:
        """
        Makes environments: those of `environment`, or else ones that search the corpus.

        Args:
            passages (`int`):
                Passages of one search.

        Raises:
            `CommandError`: If there is no such file, or `environment` cannot be imported.
            `ValueError`: If it is no corpus.
        """
        if self.environment is not None:
            return imported(self.environment, "environment")
        from ..environments import RetrievalQAEnvironment

        if self.corpus in (None, BUNDLED):
            from ..facts import load_facts

            return RetrievalQAEnvironment.factory(load_facts().corpus, top_k=passages)

        corpus: Any = self.corpus
        if not self._asks_retriever and not Path(corpus).exists():
            if has_rows(corpus):
                raise CommandError(f"there is no file {corpus!r} for the corpus")
            from datasets import load_dataset

            corpus = load_dataset(corpus, split=self.corpus_split)
        with naming_columns("--corpus_title", "--corpus_text"):
            return RetrievalQAEnvironment.factory(corpus, passages, self.corpus_title, self.corpus_text)

    def protocol_source(self, model: str) -> str:
        """Where the protocol comes from, for messages."""
        return f"saved with {model}" if self.protocol is None else f"{self.protocol} (--protocol)"

    def chosen_protocol(self) -> Mem1Protocol | None:
        """
        The protocol that was asked for; `None` stands for the one beside the model.

        Raises:
            `ValueError`: If it is neither a known one nor a directory.
        """
        return None if self.protocol is None else named_protocol(self.protocol)


@dataclass
class TaskArguments(CorpusArguments):
    """
    Arguments about tasks: questions that are answered by searching a corpus. Those of [`CorpusArguments`], and:

    Parameters:
        questions (`str`, *optional*):
            File or id of a data set of questions and answers, see [`mem1_trl.tasks.load_qa_dataset`]. `None` asks about the
            bundled facts.
        split (`str`, *optional*):
            Split of the questions, or of the tasks.
        question_column, answer_column (`str`, *optional*):
            Columns of the questions and answers, if they are not those that are known.
        keywords (`bool`, *optional*, defaults to `False`):
            Whether to ask the bundled questions in search words, such as "capital of France".
        dataset_name (`str`, *optional*):
            File or id of the tasks of `environment`: a column `prompt`, and whatever its `reset` takes.
    """

    questions: str | None = field(
        default=None,
        metadata={
            "help": "File (.jsonl, .json, .csv, .parquet) or id of a data set with questions and answers. `None` asks about "
            "the bundled facts."
        },
    )
    split: str = field(default="test", metadata={"help": "Split of the questions, or of the tasks."})
    question_column: str | None = field(
        default=None, metadata={"help": "Column of the questions, if it is not one that is known."}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of the answers, if it is not one that is known."}
    )
    keywords: bool = field(
        default=False,
        metadata={"help": "Whether to ask the bundled questions in search words, such as `capital of France`."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "File or id of the tasks of the environment: a column `prompt`, and whatever its reset takes."
        },
    )

    def __post_init__(self) -> None:
        if (self.environment is None) != (self.dataset_name is None):
            given, needed = ("environment", "dataset_name") if self.environment else ("dataset_name", "environment")
            raise ValueError(f"{given} needs {needed}: an environment, and the tasks that it is given")
        self._check_environment("questions", "question_column", "answer_column", "keywords")
        if self.keywords and self.questions is not None:
            raise ValueError("keywords belong to the bundled facts: leave it out, or leave out questions")
        self._refuse_split("split", self.dataset_name or self.questions)
        if self.questions is None and self.environment is None and getattr(self, "eval_questions", None) is None:
            for name in self.differing("question_column", "answer_column"):
                raise ValueError(
                    f"{name} is about a file of questions, and the bundled facts have their own: give questions, too"
                )

    def load_questions(self, split: str | None = None) -> Dataset:
        """
        The questions.

        Args:
            split (`str`, *optional*):
                Another split than `self.split`.

        Returns:
            `datasets.Dataset`: columns `question` and `answer`.

        Raises:
            `FileNotFoundError`: If there is no such file.
            `ValueError`: If it holds no questions and answers, or the split is unknown.
        """
        split = split or self.split
        if self.questions is not None:
            from ..tasks import load_qa_dataset

            columns = (self.question_column, self.answer_column)
            with naming_columns("--question_column", "--answer_column", ("question=", "answer=")):
                return load_qa_dataset(self.questions, split, *columns)
        from ..facts import KEYWORDS, load_facts

        questions = load_facts().questions(split)
        if self.keywords:  # only what can be put in search words
            asked = questions.select([i for i, relation in enumerate(questions["relation"]) if relation in KEYWORDS])
            questions = asked.remove_columns("question").rename_column("keywords", "question")
        return questions

    def load_tasks(self, name: str, split: str | None = None) -> Dataset:
        """
        The tasks of an environment.

        Args:
            name (`str`):
                File or id of them.
            split (`str`, *optional*):
                Another split than `self.split`.

        Raises:
            `CommandError`: If they have no column `prompt`, or a column has values of several types.
        """
        from datasets import Dataset

        from ..tasks import load_rows

        with naming_options(OF_FILES):
            rows, columns = load_rows(name, split or self.split, "a task")
        if "prompt" not in columns:
            raise CommandError(f"{name} has the columns {', '.join(columns)}, but tasks need a column 'prompt'")
        return rows if isinstance(rows, Dataset) else _one_type_each(name, list(rows), columns)


def _one_type_each(name: str, rows: list[Any], columns: list[str]) -> Dataset:
    """Rows as a data set, which has one type for each column. A column need not be in each row."""
    from datasets import Dataset

    values = {column: [row.get(column) for row in rows] for column in columns}
    try:
        return Dataset.from_dict(values)
    except (ValueError, TypeError, OverflowError):  # of which PyArrow makes its own
        for column in columns:
            _check_one_type(name, column, values[column])
        raise


def _check_one_type(name: str, column: str, values: list[Any]) -> None:
    """
    Refuse a column whose values are of several types, and name the first row that differs.

    Raises:
        `CommandError`: If there is one.
    """
    from datasets import Dataset

    def fails(count: int) -> bool:
        try:
            Dataset.from_dict({column: values[:count]})
        except (ValueError, TypeError, OverflowError):
            return True
        return False

    count = bisect_left(range(len(values) + 1), True, key=fails)
    if count > len(values):
        return
    before = [f"{value!r:.60} in row {row}" for row, value in enumerate(values[: count - 1], 1) if value is not None]
    raise CommandError(
        f"row {count} of {name} has {column}={values[count - 1]!r:.60}, but all values of a column must be of one type: it is "
        + (before[0] if before else "none that a column can have")
    )


def naming_objectives() -> AbstractContextManager[None]:
    """Errors about tasks that are composed of questions, in the words of the command line."""
    return naming_options(
        {"pass more rows or a smaller `n`": "give more questions, or fewer to a task with --objectives"}
    )
