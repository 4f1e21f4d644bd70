"""Functions as tools, environments without `reset`, and protocols by name."""

from __future__ import annotations

import functools
import shutil

import pytest
from support.scripted_agent import scripted
from support.trainer_helpers import SHORT

from mem1_trl import Mem1Agent, Mem1Protocol, StopReason
from mem1_trl.environment_runtime.tools import environment_of
from mem1_trl.hub.agent_settings import find_protocol, saved_protocol

RELEASED = "Mem-Lab/Qwen2.5-7B-RL-RAG-Q2-EM-Release"
TURNS = [
    "<think>a</think><search>tea</search>",
    "<think>b</think><read>3</read>",
    "<think>c</think><answer>7</answer>",
]


def search(query: str) -> str:
    """
    Search.

    Args:
        query: What to look for.
    """
    return f"found {query}"


async def read(page: int) -> str:
    """
    Read a page.

    Args:
        page: Its number.
    """
    return f"page {page + 1}"


class Shelf:
    """Has no `reset`."""

    def __init__(self):
        self.asked = []

    def search(self, query: str) -> str:
        """Search."""
        self.asked.append(query)
        return "shelf"

    def get_reward(self) -> float:
        return float(len(self.asked))


@pytest.fixture
def agent(actor, tokenizer):
    return Mem1Agent(actor, tokenizer, SHORT, max_observation_length=60, conversational=False, max_turns=4)


def test_functions_are_tools(agent, tokenizer):
    trajectory = scripted(agent, tokenizer, TURNS).run("q?", tools=[search, read])
    assert [turn.observation for turn in trajectory.turns] == [
        "<information>3;found tea</information>",
        "<information>2;page 4</information>",
        None,
    ]
    assert (trajectory.answer, trajectory.stop_reason, trajectory.reward) == ("7", StopReason.ANSWER, None)


def test_the_task_lists_tools_with_their_docstrings(agent, tokenizer):
    agent.protocol = Mem1Protocol(instructions="{prompt}\n{actions}")
    trajectory = scripted(agent, tokenizer, TURNS[2:]).run("q?", tools=[search, read])
    wanted = "q?\n<read>page</read>: Read a page.\n<search>query</search>: Search."
    assert tokenizer.decode(trajectory.prompt_ids) == wanted


def test_methods_and_partials_are_tools(agent, tokenizer):
    shelf = Shelf()
    named = functools.partial(read)
    named.__name__, named.__doc__ = "read", "Read a page."
    trajectory = scripted(agent, tokenizer, TURNS).run("q?", tools=[shelf.search, named])
    assert shelf.asked == ["tea"]
    assert trajectory.turns[0].observation == "<information>3;shelf</information>"
    assert trajectory.turns[1].observation == "<information>2;page 4</information>"


def test_an_environment_needs_no_reset(agent, tokenizer):
    shelf = Shelf()
    trajectory = scripted(agent, tokenizer, [TURNS[0], TURNS[2]]).run("q?", shelf)
    assert trajectory.turns[0].observation == "<information>3;shelf</information>"
    assert (shelf.asked, trajectory.reward) == (["tea"], 1.0)


def test_without_tools_an_agent_can_only_answer(agent, tokenizer):
    agent.protocol = Mem1Protocol(instructions="{prompt}\n{actions}")
    trajectory = scripted(agent, tokenizer, ["<think>a</think><answer>4</answer>"]).run("q?")
    assert tokenizer.decode(trajectory.prompt_ids) == "q?\n<answer>text</answer>: Answer."
    assert trajectory.answer == "4"


def undocumented(query: str) -> str:
    return query


@pytest.mark.parametrize(
    ("tools", "error", "words"),
    [
        ([undocumented], ValueError, "'undocumented' of Tools has no docstring"),
        ([search, search], ValueError, "got two named 'search'"),
        ([lambda query: query], ValueError, "got '<lambda>'"),
        (["search"], TypeError, "must be a function, got 'search'"),
        (search, TypeError, "must be a list of functions, got the function 'search'"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(agent, tools, error, words):
    with pytest.raises(error, match=words):
        agent.run("q?", tools=tools)


def test_tools_and_an_environment_are_one_too_many(agent):
    with pytest.raises(TypeError, match="`environment`, `tools` or `schemas`, not two of them"):
        agent.run("q?", Shelf(), tools=[search])


def test_an_environment_of_tools_has_their_names():
    environment = environment_of([search, read])
    assert environment.search("x") == "found x"
    assert type(environment).__name__ == "Tools"


# Protocols by name


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("default", Mem1Protocol()),
        ("paper", Mem1Protocol.paper()),
        ("reference", Mem1Protocol.reference()),
        ("reference_inference", Mem1Protocol.reference(inference=True)),
        ("webshop", Mem1Protocol.webshop()),
    ],
)
def test_a_protocol_has_a_name(actor, tokenizer, name, protocol):
    assert Mem1Agent(actor, tokenizer, name).protocol == protocol


def test_a_model_without_a_protocol_is_loaded_with_one_by_name(actor_path, tokenizer, tmp_path):
    model = shutil.copytree(actor_path, tmp_path / "model")
    tokenizer.save_pretrained(model)
    with pytest.raises(FileNotFoundError, match=r"mem1_protocol\.json"):
        Mem1Agent.from_pretrained(str(model))
    assert Mem1Agent.from_pretrained(str(model), "reference").protocol == Mem1Protocol.reference()
    with pytest.raises(ValueError, match="protocol is 'reference2', but must be one of default, paper, reference"):
        Mem1Agent.from_pretrained(str(model), "reference2")


def test_the_released_checkpoint_has_the_protocol_that_it_was_trained_with(actor, tokenizer, monkeypatch):
    assert find_protocol(RELEASED) == saved_protocol(RELEASED) == Mem1Protocol.reference()
    monkeypatch.setattr("mem1_trl.agent.agent.load_agent_settings", lambda source: None)
    monkeypatch.setattr("mem1_trl.agent.agent.load_model", lambda source, **kwargs: actor)
    monkeypatch.setattr("mem1_trl.agent.agent.AutoTokenizer.from_pretrained", lambda source: tokenizer)
    assert Mem1Agent.from_pretrained(RELEASED).protocol == Mem1Protocol.reference()


def test_the_name_of_a_tokenizer_is_not_a_tokenizer():
    with pytest.raises(TypeError, match=r"`tokenizer` must be a loaded one, got 'some/model': pass `AutoTokenizer"):
        Mem1Agent("some/model", "some/model", client="http://127.0.0.1:1/v1")
