"""Tests of finding and calling the actions of an environment."""

from __future__ import annotations

import asyncio
import threading

import pytest
from support.meeting import Meeting

from mem1_trl import Mem1Protocol
from mem1_trl.environment_runtime.actions import ActionResult, ActionSet, action_methods, run_calls


class Shop:
    """An environment with every kind of member."""

    looked_at = 0

    def reset(self, **row):
        return None

    def get_reward(self):
        return 0.0

    def search(self, query: str) -> str:
        """Search the
        catalogue.

        Args:
            query: What to look for.
        """
        return f"found {query}"

    async def browse(self, page: int):
        """Open a page."""
        return f"page {page}"

    def weigh(self, grams: float):
        """Weigh."""
        return grams * 2

    def tag_all(self, names: list[str]):
        """Tag."""
        return ",".join(names)

    def buy(self, item: str, count: int = 1):
        """Buy some."""
        return f"{count} x {item}"

    def leave(self):
        """Go home."""

    def _private(self):
        return "secret"

    @property
    def total(self):
        """Must never be evaluated."""
        type(self).looked_at += 1
        raise RuntimeError("evaluated")

    @staticmethod
    def helper():
        """Not a method."""

    @classmethod
    def build(cls):
        """Not a plain function either."""


def test_methods_are_found_by_the_rule_of_trl():
    """The rule: plain functions of the class, none private, `reset` and `get_reward` left out, nothing evaluated."""
    import inspect

    shop = Shop()
    trl_rule = {
        name
        for name, _ in inspect.getmembers(type(shop), predicate=inspect.isfunction)
        if name not in ("reset", "get_reward") and not name.startswith("_")
    }
    assert set(action_methods(shop)) == trl_rule
    assert {"search", "browse", "weigh", "tag_all", "buy", "leave"} <= trl_rule
    assert not {"reset", "get_reward", "_private", "total", "build"} & set(action_methods(shop))
    assert Shop.looked_at == 0


def actions(**kwargs) -> ActionSet:
    return ActionSet(Shop(), Mem1Protocol(**kwargs))


def test_every_action_has_a_tag_of_its_own_name_unless_told_otherwise():
    assert actions().tags["search"] == "search"
    assert actions(action_tags={"find": "search"}).tags == {"find": "search"}


def test_an_answer_method_is_called_by_the_answer_tag_and_is_no_action():
    shop = actions(answer_tag="buy")
    assert shop.answer_method == "buy" and "buy" not in shop.tags
    assert actions().answer_method is None


def test_descriptions_show_tag_arguments_and_first_paragraph():
    lines = actions(action_tags={"find": "search", "buy": "buy", "leave": "leave"}).describe()
    assert lines == [
        "<find>query</find>: Search the catalogue.",
        '<buy>{"item": ..., "count": ...}</buy>: Buy some.',
        "<leave></leave>: Go home.",
    ]


@pytest.mark.parametrize(
    ("method", "text", "expected"),
    [
        ("search", "red shoes", {"query": "red shoes"}),
        ("search", '{"query": "x"}', {"query": '{"query": "x"}'}),
        ("browse", " 12 ", {"page": 12}),
        ("weigh", "1.5", {"grams": 1.5}),
        ("tag_all", '["a", "b"]', {"names": ["a", "b"]}),
        ("buy", '{"item": "shoe", "count": 2}', {"item": "shoe", "count": 2}),
        ("buy", '{"item": "shoe"}', {"item": "shoe"}),
        ("leave", "whatever", {}),
    ],
)
def test_arguments(method, text, expected):
    arguments = actions().arguments(method, text)
    assert arguments == expected
    assert [type(value) for value in arguments.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("method", "text", "sentence"),
    [
        ("browse", "two", "'two' is not a number."),
        ("weigh", "", "'' is not a number."),
        ("buy", "shoe", "not valid JSON"),
        ("buy", '["shoe"]', "Give the arguments as a JSON object with item, count."),
        ("buy", '{"item": "shoe", "size": 3}', "There is no argument 'size'; there are item, count."),
        ("tag_all", "a, b", "not valid JSON"),
        ("tag_all", "[" * 1000, "not valid JSON: it is nested more than 64 deep."),
        ("buy", "[" * 1000, "not valid JSON: it is nested more than 64 deep."),
        ("buy", '{"item": "shoe", "count": ' + "1" * 5000 + "}", "not valid JSON: a number has too many digits."),
        ("buy", '{"item": "shoe", "count": NaN}', "NaN is not a number of JSON"),
        ("weigh", "nan", "'nan' is not a number."),
        ("weigh", "-inf", "'-inf' is not a number."),
        ("weigh", "1e999", "'1e999' is not a number."),
        ("browse", "1e999", "'1e999' is not a number."),
    ],
)
def test_bad_arguments_are_one_sentence_for_the_agent(method, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        actions().arguments(method, text)


@pytest.mark.parametrize("text", ["[[1]]", '[{"a": 1}]', "[1, []]"])
def test_what_cannot_be_in_a_set_is_a_refusal(text):
    class Basket:
        def reset(self, **row): ...

        def put(self, names: set[str]):
            """Put them in."""

    basket = ActionSet(Basket(), Mem1Protocol())
    assert basket.arguments("put", '["a", 1, "a"]') == {"names": {"a", "1"}}
    with pytest.raises(ValueError, match="is not a set: its entries must be texts or numbers"):
        basket.arguments("put", text)


def test_a_truth_value_is_not_passed_as_text():
    class Lamp:
        def reset(self, **row): ...

        def switch(self, on: bool):
            """Switch the lamp."""

    assert ActionSet(Lamp(), Mem1Protocol()).arguments("switch", "false") == {"on": False}


# Calling


def test_results_come_back_in_order_as_text():
    shop = Shop()
    results = run_calls(
        [
            (shop.search, {"query": "a"}),
            (shop.browse, {"page": 2}),
            (shop.weigh, {"grams": 1.5}),
            (shop.leave, {}),
        ]
    )
    assert results == [ActionResult("found a"), ActionResult("page 2"), ActionResult("3.0"), ActionResult("")]
    assert run_calls([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"type": "text", "text": "green "}, {"type": "text", "text": "tea"}], "green tea"),
        ([{"type": "text", "text": "a picture:"}, {"type": "image", "image": "x.png"}], "Error: TypeError: A message may hold text only, got a block of type 'image'"),
        # Lists of something else
        ([], "[]"),
        (["green", "tea"], "['green', 'tea']"),
        ([{"type": "shirt", "text": "blue"}], "[{'type': 'shirt', 'text': 'blue'}]"),
        ([{"type": "text"}], "[{'type': 'text'}]"),
    ],
)  # fmt: skip
def test_blocks_of_text_are_read_as_their_text(value, text):
    """As TRL hands them to the chat template; what is no block is shown as it is."""

    def pages():
        return value

    async def later():
        return value

    for result in run_calls([(pages, {}), (later, {})]):
        assert result.text.startswith(text) and result.failed is text.startswith("Error")


def test_slow_actions_run_at_the_same_time():
    threads, meeting = set(), Meeting(8)

    def blocking():
        threads.add(threading.get_ident())
        meeting.wait()
        return "sync"

    async def waiting():
        await meeting.wait_async()
        return "async"

    results = run_calls([(blocking, {}), (waiting, {})] * 4)
    assert [result.text for result in results] == ["sync", "async"] * 4
    assert len(threads) == 4


def test_an_exception_becomes_text_and_spares_the_others():
    """Pitfall 10 of the reference: a search error crashed the training run."""

    def broken():
        raise TimeoutError("the index is away")

    async def broken_too():
        raise KeyError("x")

    results = run_calls([(broken, {}), (Shop().search, {"query": "a"}), (broken_too, {})])
    assert results[0] == ActionResult("Error: TimeoutError: the index is away", failed=True)
    assert results[1] == ActionResult("found a", failed=False)
    assert results[2] == ActionResult("Error: KeyError: 'x'", failed=True)


def test_a_missing_argument_is_an_error_for_the_agent():
    (result,) = run_calls([(Shop().buy, {"count": 2})])
    assert result.failed and "item" in result.text


def test_an_interrupt_is_for_the_user():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_calls([(interrupted, {})])


def test_calls_from_inside_a_running_event_loop():
    async def notebook():
        return run_calls([(Shop().browse, {"page": 1}), (Shop().search, {"query": "b"})])

    assert [result.text for result in asyncio.run(notebook())] == ["page 1", "found b"]


# Bad environments


def test_an_environment_needs_reset():
    class NoReset:
        def go(self):
            """Go."""

    with pytest.raises(ValueError, match="NoReset has no `reset` method"):
        ActionSet(NoReset(), Mem1Protocol())


def test_an_action_needs_a_docstring():
    class Silent:
        def reset(self, **row): ...

        def go(self):
            return 1

    with pytest.raises(ValueError, match="The action 'go' of Silent has no docstring"):
        ActionSet(Silent(), Mem1Protocol())


def test_a_tag_for_a_method_that_is_not_there():
    words = r"The tag 'find' calls 'lookup', but Shop has no such action .*search.*: correct `action_tags`, which may have been saved with "
    with pytest.raises(ValueError, match=rf'{words}the model, or pass `protocol="default"`'):
        actions(action_tags={"find": "lookup"})


def test_actions_that_a_protocol_does_not_call_are_named_once(caplog):
    class Kiosk:
        def reset(self, **row): ...

        def search(self, query: str):
            """Search."""

        def buy(self, item: str):
            """Buy."""

        def answer(self, text: str):
            """Answer."""

    some = Mem1Protocol(action_tags={"find": "search"})
    for _ in range(2):
        assert ActionSet(Kiosk(), some).tags == {"find": "search"}
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "The protocol does not call 'buy' of Kiosk, since its `action_tags` names 'search' only: `protocol=\"default\"` calls every action "
        "by its own name."
    )
    ActionSet(Kiosk(), Mem1Protocol(action_tags={"find": "search", "buy": "buy"}))
    ActionSet(Kiosk(), Mem1Protocol())
    assert len(caplog.records) == 1
    ActionSet(Kiosk(), Mem1Protocol(action_tags={"buy": "buy"}))
    assert "does not call 'search' of Kiosk" in caplog.records[1].getMessage()


def test_an_action_named_like_a_tag_of_the_protocol():
    with pytest.raises(ValueError, match="Shop has an action named 'search', which is a tag of the protocol"):
        actions(observation_tag="search")


class Variadic:
    """Actions with arguments that have no name of their own."""

    def reset(self, **row): ...

    def look(self, place: str, *more: str, **options: int) -> str:
        """
        Look somewhere.

        Args:
            place: Where.
        """
        return f"{place} {more} {options}"

    def wait(self, *minutes: int) -> str:
        """Wait."""
        return f"waited {minutes}"


def test_arguments_without_a_name_of_their_own_are_left_out():
    """`*args` and `**kwargs` cannot be given by name, so nothing tells the agent of them, and the method gets none."""
    actions = ActionSet(Variadic(), Mem1Protocol())
    assert actions.describe() == ["<look>place</look>: Look somewhere.", "<wait></wait>: Wait."]
    assert actions.arguments("look", "kitchen") == {"place": "kitchen"}
    assert actions.arguments("wait", "5") == {}
    with pytest.raises(ValueError, match=r"There is no argument .more.; there is place\."):
        actions.typed_arguments("look", {"place": "kitchen", "more": "hall"})
    room = Variadic()
    results = run_calls(
        [(room.look, actions.arguments("look", "kitchen")), (room.wait, actions.arguments("wait", ""))]
    )
    assert [result.text for result in results] == ["kitchen () {}", "waited ()"]


def test_a_tool_has_no_arguments_without_a_name_of_their_own():
    tools = ActionSet(Variadic(), Mem1Protocol.tool_calls())
    parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools.schemas}
    assert parameters["look"]["properties"] == {"place": {"type": "string", "description": "Where."}}
    assert parameters["look"]["required"] == ["place"]
    assert parameters["wait"]["properties"] == {}
    assert tools.describe()[0] == "look(place): Look somewhere."


def test_an_argument_that_has_no_name_to_be_given_by_is_refused():
    class Positional:
        def reset(self, **row): ...

        def go(self, where: str, /):
            """Go."""

    with pytest.raises(
        ValueError,
        match="The action 'go' of Positional must take its arguments by name, got the positional-only 'where'",
    ):
        ActionSet(Positional(), Mem1Protocol())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_action_that_yields_is_refused(asynchronous):
    class Stream:
        def reset(self, **row): ...

        if asynchronous:

            async def read(self):
                """Read."""
                yield "a"
        else:

            def read(self):
                """Read."""
                yield "a"

    with pytest.raises(ValueError, match="The action 'read' of Stream must return its result, but it yields"):
        ActionSet(Stream(), Mem1Protocol())
