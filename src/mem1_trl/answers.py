"""The accepted answers of a question, in whatever form a data set has them."""

from __future__ import annotations

import ast
import io
import itertools
import math
import re
import tokenize
from collections.abc import Mapping
from typing import Any

from .json_text import read_json

_TRUTH = {True: ("yes", "true"), False: ("no", "false")}
_NAMES = {"None": None, "nan": None, "null": None, "True": True, "False": False}
"""Words in a list that Python or NumPy has written."""
_MAPPING = re.compile(r"""\{\s{0,4}['"](?:value|aliases|text)['"]\s{0,4}:""")
"""How a mapping begins that was written into a text."""
_ADVICE = "an answer must be a text, a number, true or false, or a list of these."


def read_answers(accepted: Any, column: str) -> list[str]:
    """
    The accepted answers of one question as texts without repeats; empty if there are none.

    | in the data set | answers |
    |---|---|
    | `"Paris"`, `["Paris", "Lutetia"]` | as they are |
    | `26`, `26.0`, `3.5` | `26`, `26` and `3.5` |
    | `true`, `false` | `yes` or `true`, `no` or `false` |
    | `'["Paris", "Lutetia"]'`, `"['Paris' 'Lutetia']"`, `"['Paris', None]"`, as a list is in a CSV cell | `Paris` and `Lutetia`; `Paris` |
    | `{"value": ..., "aliases": [...]}` (TriviaQA), `{"text": [...]}` (SQuAD), also as JSON or Python writes them in a CSV cell | their texts |
    | `None`, `NaN`, `""` | none |

    Args:
        accepted (`Any`):
            The cell.
        column (`str`):
            Name of its column, for the message.

    Raises:
        `ValueError`: If the cell holds something else.
    """
    if isinstance(accepted, str) and _MAPPING.match(accepted.lstrip()):
        accepted = _mapping(accepted, column)
    if isinstance(accepted, Mapping):
        if not accepted.keys() & {"value", "aliases", "text"}:
            raise ValueError(
                f"Column {column!r} has mappings with the keys {', '.join(map(repr, accepted))}: expected 'value' and "
                "'aliases', or 'text'."
            )
        # TriviaQA names its main answer `value`; SQuAD lists its answers as `text`
        cells = [accepted.get(key) for key in ("value", "aliases", "text")]
        accepted = [one for cell in cells for one in (cell if isinstance(cell, (list, tuple)) else [cell])]
    elif isinstance(accepted, str):
        accepted = _listed(accepted)
    elif not isinstance(accepted, (list, tuple)):
        accepted = [accepted]
    texts = [text.strip() for one in accepted for text in _texts(one, column)]
    return list(dict.fromkeys(text for text in texts if text))


def _texts(one: Any, column: str) -> tuple[str, ...]:
    if one is None or (isinstance(one, float) and math.isnan(one)):
        return ()
    if isinstance(one, bool):
        return _TRUTH[one]
    if isinstance(one, float) and one.is_integer():
        one = int(one)
    if isinstance(one, (str, int, float)):
        return (str(one),)
    raise ValueError(f"Column {column!r} has {one!r:.60}: {_ADVICE}")


def _mapping(cell: str, column: str) -> Any:
    """A mapping that was written into a text, as JSON or Python writes it."""
    for read in (read_json, ast.literal_eval):
        try:
            return read(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(
        f"Column {column!r} must have answers, got a mapping that was written as text, {cell!r:.60}: keep the data set as JSON lines or Parquet."
    )


def _listed(cell: str) -> list[Any]:
    """The entries of a list that was written into a text, as JSON, Python or NumPy writes it; else the text."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [cell]
    try:
        found = read_json(text)
        plain = isinstance(found, list) and all(one is None or isinstance(one, (str, int, float)) for one in found)
        return found if plain else [cell]
    except ValueError:  # not as JSON writes it
        pass
    try:
        found = _entries(list(tokenize.generate_tokens(io.StringIO(" ".join(text.splitlines())).readline)))
    except (tokenize.TokenError, SyntaxError, ValueError):
        return [cell]
    return [cell] if found is None else found


def _entries(tokens: list[tokenize.TokenInfo]) -> list[Any] | None:
    """
    The entries of a flat list that Python or NumPy has written. Each text by itself: Python would join two that no comma parts, which is
    how NumPy writes them.
    """
    texts = [token.string for token in tokens if token.string.strip()]
    numbers = [token for token in tokens if token.type == tokenize.NUMBER]
    adjoin = any(one.end == other.start for one, other in itertools.pairwise(numbers))  # 007 is read as 00 and 7
    if adjoin or texts.count("[") != 1 or texts.count("]") != 1:
        return None
    entries: list[Any] = []
    place = 0
    while place < len(texts):
        text = texts[place]
        if texts[place : place + 2] == ["np", "."] and texts[place + 3 : place + 6 : 2] == ["(", ")"]:
            place += 4  # `np.str_('Paris')`
            text = texts[place]
            place += 1
        elif text == "-":
            place += 1
            text = f"-{texts[place]}"
        if text in _NAMES:
            entries.append(_NAMES[text])
        elif text not in ("[", "]", ","):
            entries.append(ast.literal_eval(text))
        place += 1
    return entries
