"""Tests of the Hub, end to end: train, push, load by id in another process, play; and of the card that goes with it."""

from __future__ import annotations

import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load
from support.fault_environments import Misbehaving
from support.forking import ForkServer
from support.hub_server import hub
from support.trainer_helpers import SHORT, LookupEnvironment

from mem1_trl import AgentSettings, Mem1Agent, Mem1Protocol
from mem1_trl.environment_runtime.actions import ActionSet
from mem1_trl.environments import (
    GymnasiumEnvironment,
    OpenEnvEnvironment,
    ProcessEnvironment,
    RetrievalQAEnvironment,
    WebQAEnvironment,
    WebShopEnvironment,
)
from mem1_trl.facts import load_facts
from mem1_trl.hub.agent_settings import load_agent_settings, save_agent_settings
from mem1_trl.hub.environment_stub import environment_stub
from mem1_trl.hub.model_card import CardFacts, complete_model_card, usage_snippet
from mem1_trl.retrieval import Bm25Index

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "scripts"


@pytest.fixture(scope="module")
def server():
    with hub() as running:
        yield running


@pytest.fixture(scope="module")
def python(server, tmp_path_factory):
    """What a script prints that talks to the server, in a process of its own with a cache that holds nothing of the tests."""
    environment = {
        "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path_factory.mktemp("cache")),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    # These are read when huggingface_hub is imported
    with ForkServer(environment) as processes:

        def run(script: Path, *arguments: str | Path) -> str:
            done = processes.run(script, *arguments)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        yield run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_what_is_pushed_can_be_loaded_by_id_and_played(tmp_path, actor_path, server, python, kind):
    repository = f"me/agent-{kind}"
    python(SCRIPTS / "push_to_hub.py", actor_path, kind, repository, tmp_path / "run")
    files = server.files[repository]
    wanted = {"README.md", "training_curves.png", "mem1_protocol.json", "mem1_agent.json", "model.safetensors"}
    assert wanted | {"config.json", "tokenizer.json"} <= files.keys()
    assert not [name for name in files if "critic" in name or "value_head" in name or "run_state" in name]
    pushed, local = load(files["model.safetensors"]), load((tmp_path / "run" / "model.safetensors").read_bytes())
    assert pushed.keys() == local.keys() and all(torch.equal(pushed[name], local[name]) for name in pushed)
    assert files["training_curves.png"].startswith(b"\x89PNG")

    conversational = "conversational" if kind == "grpo" else "text"
    use = python(SCRIPTS / "use_from_hub.py", repository, conversational)
    played = json.loads(use.splitlines()[-1])
    assert played["prompt"] == ("terse!user:q1?;assistant:" if kind == "grpo" else "q1?")
    assert (played["max_turns"], played["max_observation_length"], played["max_completion_length"]) == (3, 40, 12)
    assert played["protocol"] == json.loads(json.dumps(SHORT.to_dict()))
    agent = Mem1Agent.from_pretrained(str(tmp_path / "run"))
    task = [{"role": "user", "content": "q1?"}] if kind == "grpo" else "q1?"
    here = agent.run(task, LookupEnvironment(), secret="2")
    assert played["tokens"] == [list(turn.completion_ids) for turn in here.turns] and played["reward"] == here.reward

    card = ModelCard(files["README.md"].decode())
    assert {"trl", "mem1", kind} <= set(card.data.tags)
    assert card.data.datasets == "me/lookups" or card.data.datasets == ["me/lookups"]
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    history = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert history and 0.0 <= metrics["reward"] <= 1.0 and metrics["peak_tokens"] > 8 and metrics["turns"] >= 1
    assert {result.dataset_name for result in card.data.eval_results} == {"evaluation tasks of the run"}
    for text in (
        "zhou2025mem1",
        "vonwerra2020trl",
        "![training curves](training_curves.png)",
        "`max_turns` | `3`",
        "| `lr_scheduler_type` | `linear` |",
    ):
        assert text in card.text
    assert ("`value_learning_rate`" in card.text) == (kind == "ppo")
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert f'from_pretrained("{repository}")' in snippet
    (tmp_path / "snippet.py").write_text(snippet)
    assert "peak_tokens" in python(tmp_path / "snippet.py")


@pytest.mark.slow
def test_what_a_run_uploads_as_it_goes_can_be_played(tmp_path, actor_path, server, python):
    """A run that is killed leaves an agent, and not only its weights."""
    python(SCRIPTS / "push_to_hub.py", actor_path, "adapter", "me/going", tmp_path / "run", "as it goes")
    assert {"mem1_protocol.json", "mem1_agent.json", "adapter_model.safetensors"} <= server.files["me/going"].keys()
    played = json.loads(python(SCRIPTS / "use_from_hub.py", "me/going", "text").splitlines()[-1])
    assert played["max_turns"] == 3 and played["protocol"] == json.loads(json.dumps(SHORT.to_dict()))


@pytest.mark.slow
def test_an_adapter_is_pushed_as_one(tmp_path, actor_path, server, python):
    python(SCRIPTS / "push_to_hub.py", actor_path, "adapter", "me/adapter", tmp_path / "run")
    files = server.files["me/adapter"]
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert ModelCard(files["README.md"].decode()).data.library_name == "peft"
    played = json.loads(python(SCRIPTS / "use_from_hub.py", "me/adapter", "text").splitlines()[-1])
    assert played["turns"] >= 1 and played["prompt"] == "q1?"


# The parts of the card


def facts(**kwargs) -> CardFacts:
    return CardFacts(**{
        "trainer_name": "MEM1 PPO", "citation": "@article{a}", "paper": ("MEM1", "2506.15841"), "source": "me/agent",
        "environment": None, "turn": [], "settings": AgentSettings(environment={"top_k": 1}), "training": {}, "log_history": [], **kwargs,
    })  # fmt: skip


class Shop:
    def reset(self, **row):
        return None

    def buy(self, item: str, count: int = 1) -> str:
        """Buy \\ "something"

        At a price.
        """
        return "sold"

    async def look(self) -> str:
        """Look around."""
        return "tea"


def test_the_stub_has_the_actions_of_the_environment():
    scope: dict = {}
    exec(environment_stub(Shop()), scope)
    stub = scope["Environment"]()
    assert stub.reset(prompt="x") is None
    assert stub.buy("tea", 2) == stub.buy("tea") == stub.look() == ""
    assert stub.buy.__doc__ == 'Buy \\ "something"\n\nAt a price.'


class Stall:
    def reset(self, **row):
        return None

    def buy(self, item: dict[str, Any], /, colors: list[Literal["red", "blue"]] | None = None) -> str:
        """Buy."""
        return "sold"


def test_types_inside_types_and_arguments_by_place_are_kept():
    scope: dict = {}
    exec(environment_stub(Stall()), scope)
    assert scope["Environment"]().buy({}) == ""
    hints = [typing.get_type_hints(one.buy) for one in (Stall, scope["Environment"])]
    assert hints[1] == {key: kind for key, kind in hints[0].items() if key != "return"}
    assert [str(one.kind) for one in inspect.signature(scope["Environment"].buy).parameters.values()][:2] == [
        "POSITIONAL_ONLY", "POSITIONAL_ONLY",
    ]  # fmt: skip


class Market:
    def reset(self, **row):
        return None

    async def trade(
        self, item: str, count: int = 2, kind: Literal["buy", "sell"] = "buy", size: int | None = None, **more: Any
    ) -> str:
        """Trade in a market,
        at its price.

        Args:
            item: What to trade.
            count: How much.
            kind: Whether to buy or to sell.
            size: How large.
        """
        return "done"


def test_an_agent_reads_of_the_stub_what_it_read_of_the_environment():
    scope: dict = {}
    exec(environment_stub(Market()), scope)
    stub = scope["Environment"]()
    for protocol in (Mem1Protocol(), Mem1Protocol.tool_calls()):
        own, shown = ActionSet(Market(), protocol), ActionSet(stub, protocol)
        assert shown.describe() == own.describe() and "Trade in a market, at its price." in shown.describe()[0]
        assert shown.arguments("trade", '{"item": "tea"}') == own.arguments("trade", '{"item": "tea"}')
        assert shown.arguments("trade", '{"item": "tea", "count": "3"}') == {"item": "tea", "count": 3}
    (own, shown) = (one.schemas[0]["function"] for one in (own, shown))
    assert (shown["name"], shown["description"]) == (own["name"], own["description"])
    for name in ("item", "count", "kind", "size"):
        assert shown["parameters"]["properties"][name] == own["parameters"]["properties"][name]
    assert shown["parameters"]["required"] == own["parameters"]["required"] == ["item"]


def run_snippet(environment, **kwargs):
    """The environment that a snippet makes, and the snippet; a stand-in takes the place of the agent."""
    snippet = usage_snippet(facts(environment=environment, **kwargs))
    scope: dict = {}
    call = snippet.replace("from mem1_trl import Mem1Agent\n", "").replace(
        'agent = Mem1Agent.from_pretrained("me/agent")', ""
    ).replace('trajectory = agent.run("Your task", ', "made = (").replace(
        "print(trajectory.answer, trajectory.metrics)", ""
    )  # fmt: skip
    exec(call, scope)
    return scope["made"], snippet


def test_the_snippet_makes_the_environment_of_the_run_again(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"title": "Lyon", "text": "A city of bridges."}\n')
    Bm25Index.build(str(corpus), tmp_path / "index")
    for source in (corpus, str(tmp_path / "index")):
        made, snippet = run_snippet(RetrievalQAEnvironment.factory(source, top_k=2)())
        assert (
            made.mem1_settings == {"top_k": 2} and made.search("bridges") == "Doc 1(Title: Lyon) A city of bridges.\n"
        )
        assert "from mem1_trl.environments import RetrievalQAEnvironment\n" in snippet and str(source) in snippet
    for factory in (RetrievalQAEnvironment, RetrievalQAEnvironment.factory(load_facts().corpus)):
        made, _ = run_snippet(factory())
        assert "Paris" in made.search("capital of France") and made.mem1_settings == {"top_k": 3}
    made, _ = run_snippet(WebShopEnvironment(show_attributes=True))
    assert made.mem1_settings == {"show_attributes": True, "show_available_actions": False}
    made, _ = run_snippet(GymnasiumEnvironment("FrozenLake-v1", actions=["l", "d", "r", "u"], render_mode="ansi"))
    assert "Actions: l, d, r, u." in made.reset()


def test_the_snippet_says_what_is_missing():
    class Engine:
        def search(self, query, top_k):
            return []

        def fetch(self, url):
            raise NotImplementedError

    cases = {
        "corpus = ...  # to be filled in; in the run it was a Bm25Index of 1": RetrievalQAEnvironment(
            Bm25Index([("Lyon", "a city")])
        ),
        "search = ...  # to be filled in; in the run it was a Engine": WebQAEnvironment.factory(Engine())(),
        "describe = ...  # to be filled in; in the run it was the function or class repr": GymnasiumEnvironment(
            "FrozenLake-v1", describe=repr
        ),
        "client = ...  # to be filled in; in the run it was": OpenEnvEnvironment(Engine, "message"),
    }
    for line, environment in cases.items():
        snippet = usage_snippet(facts(environment=environment))
        assert line in snippet
        compile(snippet, "snippet", "exec")


def test_the_snippet_of_a_users_own_environment_is_a_stub():
    compile(usage_snippet(facts(environment=Shop())), "snippet", "exec")
    without = usage_snippet(
        facts(source=str(ROOT / "examples" / "assets" / "tiny-mem1"))
    )  # it has read no instructions
    exec(without.replace("return_full_text=False", "return_full_text=False, max_new_tokens=2"), {})
    process = ProcessEnvironment.factory(Misbehaving)
    snippet = usage_snippet(facts(environment=process.__new__(process)))
    assert (
        "class Environment:" in snippet
        and "def search(self, query: str, times: int = 1):" in snippet
        and "import Misbehaving" not in snippet
    )
    compile(snippet, "snippet", "exec")
    several = usage_snippet(facts(environment=RetrievalQAEnvironment(), environment_names=["qa", "shop"]))
    assert "# The run had several environments, 'qa', 'shop': this is the first\n" in several


CARD = """---
base_model: me/base
model_name: agent
---
# agent

Cite TRL as:

```bibtex
@software{trl}
```
"""


@pytest.mark.parametrize(
    ("context", "says"),
    [
        ("mem1", "rewrites one compact internal state"),
        ("full", "reads all turns before"),
        ("truncate", "as many of the last turns as fit"),
        ("external", "the earlier observations that match best"),
        ("compact", "writes a summary"),
        ("on_demand", "decides to rewrite"),
        ("fold", "open a branch"),
        ("my_rules:FirstAndLast", "chosen by the context rule `my_rules:FirstAndLast`"),
    ],
)
def test_the_card_says_what_a_turn_reads(tmp_path, context, says):
    path = tmp_path / "README.md"
    path.write_text(CARD)
    settings = AgentSettings(context=context, max_context_length=100)
    complete_model_card(path, facts(environment=Shop(), settings=settings))
    text = path.read_text()
    introduction = text.partition("## Use")[0]
    assert introduction.count("An agent made from") == 1 and says in introduction
    assert ("forgets everything older" in introduction) == (context == "mem1")
    trained = (
        "Trained with MEM1 PPO, a method of [MEM1]" if context == "mem1" else "Trained with PPO, as implemented by"
    )
    assert trained in text and ("Cite MEM1" in text) == ("arxiv" in text or "papers/2506" in text) == (
        context == "mem1"
    )


def test_the_card_of_a_run_without_environment_is_of_no_agent(tmp_path):
    """It said that it rewrites a state at every turn and forgets what is older."""
    path = tmp_path / "README.md"
    path.write_text(CARD)
    complete_model_card(path, facts(settings=AgentSettings(max_turns=1), evaluation={"eval_reward": 0.5}))
    text = path.read_text()
    assert "A model made from [me/base](https://huggingface.co/me/base) by [TRL]" in text
    assert "It writes one completion of a prompt" in text and "Trained with PPO, as implemented by mem1-trl" in text
    assert not [
        word
        for word in ("agent made", "At every turn", "forgets", "papers/2506", "Cite MEM1", "Agent over several")
        if word in text
    ]
    assert not [
        name for name in ("max_turns", "context", "memory_top_k", "max_observation_length") if f"`{name}`" in text
    ]
    assert "| `max_completion_length` | `1000` |" in text and "mem1_protocol.json" not in text


def test_the_settings_to_run_a_model_with_are_not_called_those_of_training(tmp_path):
    path = tmp_path / "README.md"
    for trained, told in ((1.0, True), (0.5, False)):
        path.write_text(CARD)
        complete_model_card(path, facts(settings=AgentSettings(temperature=0.5), training={"temperature": trained}))
        text = path.read_text()
        assert (
            "Run it with these settings, which are saved with the weights in" in text
            and "it was trained with" not in text
        )
        assert ("The temperature is that of evaluation; training sampled at 1.0." in text) == told


def test_the_snippet_of_a_model_that_reads_messages_gives_it_messages():
    snippet = usage_snippet(facts(settings=AgentSettings(conversational=True)))
    assert """generate([{"role": "user", "content": "Your task"}], return_full_text=False)""" in snippet
    compile(snippet, "snippet", "exec")


def test_the_card_says_how_tokens_are_scored_and_writes_large_numbers_out(tmp_path):
    path = tmp_path / "README.md"
    for layout, exact in (("packed", True), ("paper", False)):
        path.write_text(CARD)
        evaluation = {"peak_tokens": 12345.6, "reward": 0.12345, "turns": 7.0}
        complete_model_card(path, facts(training={"layout": layout}, evaluation=evaluation))
        text = path.read_text()
        assert ("every token is scored in the context it was sampled in" in text) == exact
        assert "| peak context in tokens | 12,346 |" in text and "| reward | 0.1235 |" in text
        assert "| turns per episode | 7 |" in text


def test_settings_of_an_agent_are_kept(tmp_path):
    assert load_agent_settings(tmp_path) is None
    settings = AgentSettings(max_turns=4, chat_template_kwargs={"enable_thinking": False})
    save_agent_settings(tmp_path, settings)
    assert load_agent_settings(str(tmp_path)) == settings
