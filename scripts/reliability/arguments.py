"""Foreign values for every type hint: the argument reader gives a value of the declared type, or one sentence for the agent."""

from __future__ import annotations

import json
import math
import random
from typing import Any, Literal, Optional, Union

from support.hostile_text import PIECES

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.actions import ActionSet
from mem1_trl.environment_runtime.arguments import coerce
from mem1_trl.protocol.syntax import read_request

from .outcome import Outcome, equal, holds

Check = Any
HINTS: dict[str, tuple[Any, Check]] = {
    "bool": (bool, lambda v: type(v) is bool),
    "int": (int, lambda v: type(v) is int),
    "float": (float, lambda v: type(v) is float and math.isfinite(v)),
    "str": (str, lambda v: type(v) is str),
    "list": (list, lambda v: type(v) is list),
    "list[int]": (list[int], lambda v: type(v) is list and all(type(one) is int for one in v)),
    "tuple": (tuple[int, str], lambda v: type(v) is tuple and [type(one) for one in v] == [int, str]),
    "set": (set[str], lambda v: type(v) is set and all(type(one) is str for one in v)),
    "dict": (dict[str, Any], lambda v: type(v) is dict),
    "Literal": (Literal["a", 1, True], lambda v: v in ("a", 1, True)),
    "int or None": (int | None, lambda v: v is None or type(v) is int),
    "Optional[str]": (Optional[str], lambda v: v is None or type(v) is str),  # noqa: UP045
    "Union": (Union[int, list[str], str], lambda v: type(v) in (int, list, str)),  # noqa: UP007
    "Any": (Any, lambda v: True),
}
"""Type hints, and what a value of each is."""

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 3, 3.0, 2.5, 1e308, 10**400, -(10**30), "", " ", "3", "3.0", "-0", "1e999", "NaN", "Infinity", "1_000", "٣",
    "true", "None", "null", "[1, 2]", '{"a": 1}', "[[1]]", "[" * 1000, "9" * 5000, "0x10", "\ud800", "\x00", "[1,", '"a"', "a", "1", "🙂",
)  # fmt: skip


def foreign(luck: random.Random, depth: int = 0) -> Any:
    """A random value, such as a model may write for an argument."""
    kind = luck.random()
    if kind < 0.5 or depth > 3:
        return luck.choice(ODD)
    if kind < 0.65:
        return "".join(luck.choice(PIECES) for _ in range(luck.randint(0, 6)))
    if kind < 0.75:
        return json.dumps([luck.choice(ODD) for _ in range(luck.randint(0, 3))])
    if kind < 0.8:
        return luck.choice("[{") * luck.choice((3, 70, 3000))
    if kind < 0.9:
        return [foreign(luck, depth + 1) for _ in range(luck.randint(0, 3))]
    return {luck.choice(("a", "query", "", "é")): foreign(luck, depth + 1) for _ in range(luck.randint(0, 3))}


def actions_of(kind: Any) -> ActionSet:
    """The actions of an environment whose methods take an argument of this type."""

    class Environment:
        def reset(self, **row: Any) -> None: ...

        def one(self, value: kind) -> str:
            """Take one value."""
            return ""

        def two(self, value: kind, other: int = 1) -> str:
            """Take two values."""
            return ""

    for method in (Environment.one, Environment.two):
        method.__annotations__["value"] = kind
    return ActionSet(Environment(), Mem1Protocol())


def check(kind: Any, fits: Check, actions: ActionSet, value: Any) -> None:
    """A value of the type or a sentence, read by each way that an argument can come."""
    try:
        read = coerce(value, kind)
    except ValueError as error:
        holds(0 < len(str(error)) < 400, f"{value!r:.80}: the sentence has {len(str(error))} characters")
    else:
        holds(fits(read), f"{value!r:.80} is read as {read!r:.80}")
    requests = [read_request("one", "one", lambda: actions.typed_arguments("one", {"value": value}))]
    if isinstance(value, str):
        requests.append(read_request("one", "one", lambda: actions.arguments("one", value)))
    try:
        written = json.dumps({"value": value, "other": 2})
    except ValueError:  # a number of more digits than Python writes
        written = "{}"
    requests.append(read_request("two", "two", lambda: actions.arguments("two", written)))
    for request in requests:
        holds((request.method is None) == (request.problem is not None), f"{value!r:.80} is neither taken nor refused")
        holds("cannot be read (" not in (request.problem or ""), f"{value!r:.80}: {request.problem}")
        holds(len(request.problem or "") < 500, f"{value!r:.80}: the sentence is too long")
        if request.method is not None and "value" in request.arguments:
            holds(fits(request.arguments["value"]), f"{value!r:.80} is read as {request.arguments['value']!r:.80}")


def check_exact(luck: random.Random) -> None:
    """What is written without a mistake is read as it was meant."""
    number, words = luck.randrange(-(10**12), 10**12), [luck.choice(("a", "é", "1")) for _ in range(3)]
    for value, kind, written in (
        (number, int, str(number)), (number, int, float(number)), (number / 7, float, repr(number / 7)), (words, list[str], json.dumps(words)),
        (set(words), set[str], words), (tuple(words), tuple, json.dumps(words)), (None, int | None, "null"), (str(number), str, number),
        (str(number), int | str, str(number)), (True, bool, "true"),
    ):  # fmt: skip
        equal(coerce(written, kind), value, f"{written!r} as {kind}")


def measure(name: str, count: int, seed: int) -> Outcome:
    """`count` foreign values for one type hint."""
    kind, fits = HINTS[name]
    actions = actions_of(kind)
    outcome = Outcome()
    for number in range(count):
        luck = random.Random(f"{name} {seed} {number}")
        with outcome.case(f"value {number}"):
            check(kind, fits, actions, foreign(luck))
            check_exact(luck)
    return outcome
