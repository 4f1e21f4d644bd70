"""Tests of the types that actions declare, and of the values that they get."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NewType, TypedDict

import pytest

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.actions import ActionSet, run_calls
from mem1_trl.environment_runtime.arguments import coerce
from mem1_trl.environment_runtime.pool import EnvironmentPool
from mem1_trl.environment_runtime.tools import environment_of

if TYPE_CHECKING:
    from nowhere import Receipt


class Way(Enum):
    UP = "up"
    DOWN = "down"


class Step(Enum):
    RIGHT = (0, 1)
    DOWN = (1, 0)


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


@dataclass
class Point:
    x: int
    y: int


class Address(TypedDict):
    street: str


Number = NewType("Number", int)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("3", int, 3),
        (3.0, int, 3),
        ("3.0", int, 3),
        (3, float, 3.0),
        ("1e3", float, 1000.0),
        (True, bool, True),
        ("False", bool, False),
        (7, str, "7"),
        ("7", str, "7"),
        ([1], str, "[1]"),
        ("[1, 2]", list[int], [1, 2]),
        ([1, 2], tuple, (1, 2)),
        ('{"a": 1}', dict, {"a": 1}),
        (None, int | None, None),
        ("null", int | None, None),
        ("5", int | None, 5),
        ("5", int | str, "5"),
        ("x", str | None, "x"),
        ("left", Literal["left", "right"], "left"),
        ("2", Literal[1, 2], 2),
        ({"x": 1}, object, {"x": 1}),
        ("up", Way, Way.UP),
        ("2", Size, Size.LARGE),
        (2, Size | None, Size.LARGE),
        ("null", Way | None, None),
        (["up", "down"], list[Way], [Way.UP, Way.DOWN]),
        ("3", Number, 3),
        ('["1", 2]', list[int], [1, 2]),
        ([1, "a"], set[str], {"1", "a"}),
        ('["a", "b"]', Sequence[str], ["a", "b"]),
        ("[1]", Iterable[int], [1]),
        ("[1]", frozenset[int], frozenset([1])),
        ("[1]", AbstractSet[int], frozenset([1])),
        (["1", 2], tuple[int, str], (1, "2")),
        (["1", "2"], tuple[int, ...], (1, 2)),
        ({"1": ["2"]}, dict[int, list[float]], {1: [2.0]}),
        ('{"a": "1"}', Mapping[str, int], {"a": 1}),
        ({"street": "x"}, Address, {"street": "x"}),
        ("true", Literal[True, "maybe"], True),
        ("maybe", Literal[True, "maybe"], "maybe"),
        ({"a": [1, "b"]}, dict[str, Any], {"a": [1, "b"]}),
        ([[1, 2], [3, 4]], set[tuple[int, int]], {(1, 2), (3, 4)}),
        ([0, 1], Step, Step.RIGHT),
    ],
)
def test_values_become_what_is_declared(value, kind, expected):
    result = coerce(value, kind)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "sentence"),
    [
        ("three", int, "'three' is not a number."),
        (3.5, int, "3.5 is not a whole number."),
        (True, int, "True is not a number."),
        ("1e999", int, "'1e999' is not a number."),
        ([1], float, "[1] is not a number."),
        ("maybe", bool, "'maybe' is neither true nor false."),
        (1, bool, "1 is neither true nor false."),
        ("[1", list, "'[1' is not valid JSON: Expecting ',' delimiter, at character 3."),
        ("3", list[str], "3 is not a list."),
        ([1], dict, "[1] is not an object."),
        (None, int, "null is not allowed."),
        (None, str, "null is not allowed."),
        ("two", int | None, "'two' is not a number."),
        ((1, 2), tuple, "(1, 2) is not a list."),
        ("left", Way, "'left' is not one of 'up', 'down'."),
        (3, Size, "3 is not one of 1, 2."),
        (None, Way, "None is not one of 'up', 'down'."),
        (None, Sequence[str], "null is not allowed."),
        (["a"], list[int], "'a' is not a number."),
        ([[1], [None]], list[list[int]], "null is not allowed."),
        ({"a": "b"}, dict[str, int], "'b' is not a number."),
        ([1, 2, 3], tuple[int, int], "[1, 2, 3] must have 2 entries."),
        ("a", Sequence[str], "'a' is not valid JSON: Expecting value, at character 1."),
        ([1], Mapping[str, int], "[1] is not an object."),
    ],
)
def test_what_is_not_of_the_declared_type_is_one_sentence(value, kind, sentence):
    with pytest.raises(ValueError) as caught:
        coerce(value, kind)
    assert str(caught.value) == sentence


def taking(kind: Any, default: Any = ...) -> Any:
    """An environment with an action `put` whose argument `thing` has this type."""

    class Shelf:
        def reset(self, **row): ...

        def put(self, thing):
            """Put it there.

            Args:
                thing: What.
            """

    Shelf.put.__annotations__["thing"] = kind
    Shelf.put.__defaults__ = None if default is ... else (default,)
    return Shelf()


@pytest.mark.parametrize("kind", [Point, Path, bytes, list[Point], Point | None, dict[str, Path]])
def test_a_type_that_nothing_is_converted_to_is_refused_before_a_run(kind):
    with pytest.raises(
        ValueError, match=r"The argument 'thing' of the action 'put' of Shelf has the type .*(Point|Path|bytes)"
    ):
        ActionSet(taking(kind), Mem1Protocol())


def test_a_method_that_no_tag_calls_may_take_anything():
    class Shelf:
        def reset(self, **row): ...

        def look(self):
            """Look."""

        def draw(self, canvas: Path):
            """Draw it, for people."""

    assert ActionSet(Shelf(), Mem1Protocol(action_tags={"look": "look"})).describe() == ["<look></look>: Look."]


def test_a_default_of_none_may_be_written():
    """As `size: int = None` is meant, and as TRL passes it."""
    actions = ActionSet(taking(int, None), Mem1Protocol())
    assert actions.arguments("put", "") == {}
    assert actions.typed_arguments("put", {"thing": None}) == {"thing": None}
    assert actions.typed_arguments("put", {"thing": "3"}) == {"thing": 3}
    with pytest.raises(ValueError, match="null is not allowed"):
        ActionSet(taking(int), Mem1Protocol()).typed_arguments("put", {"thing": None})


def buy(item: str, count: int, price: float | None = None) -> Receipt:
    """Buy it.

    Args:
        item: What.
        count: How many.
        price: What for.
    """
    raise NotImplementedError


class Counter:
    """Buys at a counter."""

    __name__ = "order"

    def __call__(self, item: str, count: int) -> Receipt: ...


class Shop:
    buy = staticmethod(buy)

    def reset(self, **row): ...


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        (Shop(), "buy"),
        (environment_of([buy]), "buy"),
        (environment_of([functools.wraps(buy)(lambda **k: None)]), "buy"),
    ]
    + [(environment_of([Counter()]), "order")],
)
def test_a_hint_that_only_a_type_checker_resolves_does_not_hide_the_others(environment, name):
    actions = ActionSet(environment, Mem1Protocol(), needs_reset=False)
    assert actions.arguments(name, '{"item": "tea", "count": "2"}') == {"item": "tea", "count": 2}


def test_such_a_hint_of_the_result_does_not_hinder_a_tool():
    (schema,) = ActionSet(Shop(), Mem1Protocol.tool_calls()).schemas
    parameters = schema["function"]["parameters"]
    assert {name: one["type"] for name, one in parameters["properties"].items()} == {
        "item": "string",
        "count": "integer",
        "price": "number",
    }
    assert parameters["required"] == ["item", "count"]


@pytest.mark.parametrize("default", [..., None])
def test_such_a_hint_of_an_argument_of_a_tag_is_refused_and_not_taken_for_text(default):
    with pytest.raises(
        ValueError,
        match=r"'thing' of the action .* has the type hint Receipt, which cannot be resolved: import its names",
    ):
        ActionSet(taking("Receipt", default), Mem1Protocol())


def test_such_a_hint_of_an_argument_is_named():
    with pytest.raises(ValueError, match="The type hint 'Receipt' of the argument 'thing' cannot be resolved"):
        ActionSet(taking("Receipt"), Mem1Protocol.tool_calls())


@pytest.mark.parametrize("name", ["reset", "get_reward", "get_turn_reward", "close", "done"])
def test_a_tool_may_not_have_the_name_of_another_method(name):
    def tool():
        """Do."""

    tool.__name__ = name
    with pytest.raises(ValueError, match=f"got '{name}'"):
        environment_of([tool])


def test_an_argument_or_a_column_may_have_any_name():
    """Names of this package's own parameters, too: the call of an action, or of `reset`, takes them all."""

    class Kitchen:
        def reset(self, **row):
            return str(row)

        def cook(self, method: str, convert: int, call: str = "", environment: str = "", timeout: int = 0) -> str:
            """Cook."""
            return f"{method} {convert}{call}{environment} {timeout}"

    kitchen = Kitchen()
    arguments = {"method": "fry", "convert": 1, "call": "a", "environment": "b", "timeout": 3}
    assert [result.text for result in run_calls([(kitchen.cook, arguments)])] == ["fry 1ab 3"]
    row = {"method": "fry", "convert": 1, "thread": 2, "caller": 3, "function": 4}
    (started,) = EnvironmentPool(Kitchen, Mem1Protocol()).start([row])
    assert started.observation == str(row) and started.error is None
