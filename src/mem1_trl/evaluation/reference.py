"""
The numbers of MEM1's own evaluation script on its own result files, and corrected ones.

For comparing an agent of this package with results of the reference implementation: run [`reference_metrics`] on its files, and set
the corrected numbers beside those of [`evaluate_agent`].

The reference implementation (github.com/MIT-MI/MEM1, `Mem1/inference`, commit 6f22061) writes one JSON line for each task: the task
prompt `q`; for turn `i` (from 0) the state `t<i>`, the whole response `r<i>`, state included, and the observation `i<i>`;
`Golden_answer`; `Exact_match`, a loose count of right answers; `Model_estimated_match`; for A-MEM also `memories`. A row whose run
raised holds `error` instead of turns.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..json_lines import read_json_lines
from ..optional_packages import require
from ..protocol.protocol import Mem1Protocol
from ..protocol.tagged_text import all_tagged
from ..rewards import are_answers, score_answer

if TYPE_CHECKING:
    import os

CountTokens = Callable[[str], int]

MODES = ("reference", "corrected")
_CONTEXTS = ("mem1", "full")
_REFERENCE_TURNS = 10
_REFERENCE_ENCODING = "gpt-4o-mini"

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))

# The text of one turn: state, response, observation; None where the row has no such key
_Turn = tuple[str | None, str | None, str | None]


def reference_metrics(
    path: str | os.PathLike[str],
    mode: str = "reference",
    context: str = "mem1",
    count_tokens: CountTokens | None = None,
) -> dict[str, float | None]:
    """
    Evaluate a result file of the reference implementation.

    `mode="reference"` gives the numbers its `eval.py` prints: `f1`, `em`, `mbe`, `compression_ratio`, and for contexts that
    are compressed (MEM1) and that are not, `peak_token_compression`, `dependency_compression`, `peak_token_non_compression`,
    `dependency_non_compression`. They are kept as they are, with what is wrong with them:

    - turns after the tenth are not read;
    - the state counts twice, since the response holds it already;
    - an observation that nothing was written after counts for the peak;
    - peaks are means over those rows only whose `Exact_match` is not 0, and neither they nor dependencies count the task prompt;
    - an answer is looked for in all the text of a row, retrieved passages included, and articles are not dropped from it;
    - `mbe`, the estimate of a language model, is 1 for every row that did not raise: the call is commented out;
    - no time is recorded, and a row that raised ends the script.

    `mode="corrected"` gives the means that [`mem1_trl.evaluation.evaluate_agent`] gives, as far as the file allows:
    `exact_match`, `f1`, both `_per_objective`, `success`, `turns`, `generated_tokens`, `peak_tokens`, `peak_tokens_without_prompt`,
    `dependency_length`, `seconds` (if rows have `time_taken`), `errors` and `count`. All turns and all rows count; those that raised
    count 0 in the scores of success and are left out of the costs.

    Args:
        path (`str` or `os.PathLike`):
            The `.jsonl` file.
        mode (`str`, *optional*, defaults to `"reference"`):
            `"reference"` or `"corrected"`.
        context (`str`, *optional*, defaults to `"mem1"`):
            With `"corrected"`, what the agent read behind the prompt: the last turn (`"mem1"`) or all turns (`"full"`). The file
            does not say it.
        count_tokens (`Callable[[str], int]`, *optional*):
            Number of tokens of a text, such as `lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])`. `None`
            counts as the reference does, with the package `tiktoken` and the vocabulary of gpt-4o-mini.

    Returns:
        `dict[str, float | None]`: means; `None` where no row has the number.

    Raises:
        `ValueError`: if the file holds no rows of that schema or, with `"reference"`, a row that raised.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown: use one of {', '.join(map(repr, MODES))}.")
    if context not in _CONTEXTS:
        raise ValueError(f"context={context!r} is unknown: use one of {', '.join(map(repr, _CONTEXTS))}.")
    rows = _read(Path(path), mode)
    count = count_tokens or _reference_counter()
    if mode == "reference":
        failed = next((number for number, row in enumerate(rows, 1) if "error" in row), None)
        if failed is not None:
            raise ValueError(
                f"Row {failed} of {path} raised, which ends the reference's script: use mode='corrected', where it counts 0, or "
                "take it out."
            )
        return _means([_as_reference(row, count) for row in rows])
    means = _means([_corrected(row, context, count) for row in rows])
    return means | {"errors": sum("error" in row for row in rows) / len(rows), "count": float(len(rows))}


def _read(path: Path, mode: str) -> list[dict[str, Any]]:
    rows = []
    for number, row in read_json_lines(path, "pass a .jsonl file."):
        if not isinstance(row, dict) or ("error" not in row and not {"q", "Golden_answer", "Exact_match"} <= set(row)):
            raise ValueError(
                f"Line {number} of {path} has no 'q', 'Golden_answer' and 'Exact_match': pass a file that the reference's "
                "generate_rollout.py wrote; for files of this package use Evaluation.load."
            )
        if "error" not in row:
            _check(row, f"Line {number} of {path}", mode)
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty: pass a file with one JSON object per line.")
    return rows


def _check(row: Mapping[str, Any], where: str, mode: str) -> None:
    """Refuse a row of which the answers, or the estimate that the mode needs, cannot be read."""
    golden = row["Golden_answer"]
    if not isinstance(golden, str) and not are_answers(golden):
        raise ValueError(
            f"{where} has Golden_answer={golden!r:.60}: it must be an answer, a list of accepted ones, or one such list for each objective."
        )
    if mode == "reference" and "Model_estimated_match" not in row:
        raise ValueError(
            f"{where} has no 'Model_estimated_match', which mode='reference' gives the mean of: use mode='corrected'."
        )


def _reference_counter() -> CountTokens:
    tiktoken = require("tiktoken", None, "Counting tokens as the reference does (without `count_tokens=`)")
    encoding = tiktoken.encoding_for_model(_REFERENCE_ENCODING)
    return lambda text: len(encoding.encode(text))


def _means(records: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean of every key over the records that have it."""
    columns: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.items():
            column = columns.setdefault(key, [])
            if value is not None:
                column.append(float(value))
    return {key: sum(column) / len(column) if column else None for key, column in columns.items()}


def _turns(row: Mapping[str, Any], most: int | None = None) -> Iterator[_Turn]:
    number = 0
    while number != most:
        turn = (row.get(f"t{number}"), row.get(f"r{number}"), row.get(f"i{number}"))
        if turn == (None, None, None):
            return
        yield turn
        number += 1


def _references(row: Mapping[str, Any]) -> list[list[str]]:
    golden = row["Golden_answer"]
    if isinstance(golden, str):
        return [[golden]]
    return [golden] if isinstance(golden[0], str) else golden


# What the script prints


def _as_reference(row: Mapping[str, Any], count: CountTokens) -> dict[str, float | None]:
    turns = list(_turns(row, _REFERENCE_TURNS))
    text = "".join(part for turn in turns for part in turn if part is not None)
    partly_right = row["Exact_match"] != 0
    memory = max((count(memory) for memory in row.get("memories", ())), default=0)
    compressed, appended = _reference_costs(turns, count, True), _reference_costs(turns, count, False)
    whole = count(text) + memory  # what the script takes for the peak of a context that is not compressed
    return {
        "f1": _reference_score(text, _references(row), exact=False),
        "em": _reference_score(text, _references(row), exact=True),
        "mbe": float(row["Model_estimated_match"]),
        "compression_ratio": compressed["ratio"],
        "peak_token_compression": compressed["peak"] + memory if partly_right and compressed["peak"] else None,
        "dependency_compression": compressed["dependency"],
        "peak_token_non_compression": whole if partly_right else None,
        "dependency_non_compression": appended["dependency"],
    }


def _reference_costs(turns: Sequence[_Turn], count: CountTokens, compress: bool) -> dict[str, Any]:
    """
    Peak, dependency and compression ratio with the state counted as a block of its own before the response that holds it.

    A block of `l` tokens behind `C` costs `(C + floor(l / 2)) * l`. With `compress` the next turn starts from this one.
    """
    carried, peak, dependency, generated, total, last = "", 0, 0, 0, 0, 0
    for state, response, observation in turns:
        written = ""
        for block in (state, response):
            if block is None:
                continue
            length = count(block)
            dependency += (count(carried) + length // 2) * length
            generated += length
            carried += block
            written += block
        total += (0 if state is None else count(state)) + (0 if response is None else count(response))
        total += 0 if observation is None else count(observation)
        peak = max(peak, count(carried))
        if response is not None:
            last = count(carried)
        carried = (written if compress else carried) + (observation or "")
    if len(turns) < _REFERENCE_TURNS:  # its loop looks once more, when the last observation has joined the last turn
        peak = max(peak, count(carried))
    return {
        "peak": peak,
        "dependency": dependency if generated else None,
        "ratio": last / total if total else None,
    }


def _reference_score(text: str, references: list[list[str]], exact: bool) -> float:
    text = text.lower().split("<|im_start|>assistant")[-1]
    found = [tagged.inner for tagged in all_tagged(text, "answer")]
    if not found or not _balanced(text):
        return 0.0
    given = [_reference_normal(part) for part in found[-1].strip().split(";")]
    if len(given) != len(references):
        return 0.0
    score = 0.0
    for answer, aliases in zip(given, references):
        normal = [_reference_normal(alias) for alias in aliases]
        if exact:
            score += answer in normal
        else:
            score += max((_overlap(set(answer.split()), set(alias.split())) for alias in normal), default=0.0)
    return score


def _reference_normal(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def _overlap(answer: set[str], reference: set[str]) -> float:
    total = len(answer) + len(reference)
    return 2 * len(answer & reference) / total if answer and reference else 0.0


def _balanced(text: str) -> bool:
    """As many opening as closing answer tags, and a closing one behind every opening one."""
    if text.count("<answer>") != text.count("</answer>"):
        return False
    position = -1
    while (opening := text.find("<answer>", position + 1)) != -1:
        position = text.find("</answer>", opening)
        if position == -1:
            return False
    return True


# What they should have been


def _corrected(row: Mapping[str, Any], context: str, count: CountTokens) -> dict[str, float | None]:
    if "error" in row:
        return dict.fromkeys(score_answer(None, [""]), 0.0)
    references = _references(row)
    turns = list(_turns(row))
    scores: dict[str, float | None] = {**score_answer(_answer(turns), references)}
    if row.get("time_taken") is not None:
        scores["seconds"] = float(row["time_taken"])
    if not turns:
        return scores
    memories = row.get("memories", ())
    prompt, history = count(row["q"]), ""
    peak, dependency, generated = 0, 0.0, 0
    for number, (state, response, observation) in enumerate(turns):
        # Of a response without an action the file has the state only
        written = response if response is not None else state or ""
        recalled = count(memories[number]) if number < len(memories) else 0
        length = count(written)
        peak = max(peak, recalled + count(history + written))
        dependency += (prompt + recalled + count(history) + length / 2) * length
        generated += length
        past = written + (observation or "")
        history = past if context == "mem1" else history + past
    return scores | {
        "turns": float(len(turns)),
        "generated_tokens": float(generated),
        "peak_tokens": float(prompt + peak),
        "peak_tokens_without_prompt": float(peak),
        "dependency_length": dependency,
    }


def _answer(turns: list[_Turn]) -> str | None:
    """The answer of the last response, if answering is what it did."""
    response = turns[-1][1] if turns else None
    parsed = Mem1Protocol.reference().parse(response or "", ["search"])
    return parsed.action_input if parsed.action == "answer" else None
