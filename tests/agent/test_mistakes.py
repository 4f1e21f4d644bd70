"""What an agent cannot be given is refused in one sentence, before anything is played."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.helpers import ARCHITECTURES, tiny_tokenizer
from support.trainer_helpers import SHORT, LookupEnvironment, chat_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from mem1_trl import Mem1Agent
from mem1_trl.rollout.play import EpisodePlayer, check_prompt
from mem1_trl.rollout.settings import AgentSettings


@pytest.fixture
def agent(actor):
    return Mem1Agent(actor, tiny_tokenizer(), SHORT, max_turns=2, max_completion_length=8)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"prompt": "Buy two."}, "A task must be a text or a list of messages, got a dict"),
        (7, "got a int: a message is"),
        (["Buy two."], "got a list"),
        ([], "got no message"),
        (
            [{"role": "user", "text": "Who?"}],
            r"Message 1 of a task must have a text as its 'content', got \{'role': 'user', 'text': 'Who\?'\}",
        ),
        (
            [{"role": "system", "content": None}, {"role": "user", "content": "Who?"}],
            "Message 1 of a task must have a text as its 'content'",
        ),
        (
            [{"role": "user", "content": "Who?"}, {"role": "system", "content": "Be brief."}],
            "must be the user's, got one of the role 'system'",
        ),
        ([{"role": "user", "content": "Buy two."}], "need a chat template, and this tokenizer has none"),
    ],
)
def test_a_task_of_another_kind(agent, task, words):
    for play in (agent.run, agent.start):
        with pytest.raises(ValueError, match=words):
            play(task, LookupEnvironment())


def test_a_row_of_one_completion_has_a_prompt():
    """Its last message may be of anyone."""
    for prompt, words in (
        (None, "got a NoneType"),
        ([{"role": "user"}], "Message 1 of a task must have a text as its 'content'"),
    ):
        with pytest.raises(ValueError, match=words):
            EpisodePlayer(SimpleNamespace()).start([{"prompt": prompt}], None)
    check_prompt([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is"}])


def test_a_message_of_untyped_blocks(actor):
    agent = Mem1Agent(actor, chat_tokenizer(), SHORT, max_completion_length=8)
    with pytest.raises(
        ValueError, match=r"must be a text or a list of typed blocks, such as .* got 'Buy two.' in the list"
    ):
        agent.run([{"role": "user", "content": ["Buy two."]}], LookupEnvironment())


def test_a_class_in_place_of_an_environment(agent):
    words = r"must be an instance, got the class LookupEnvironment: pass LookupEnvironment\(\)"
    for play in (agent.run, agent.start):
        with pytest.raises(TypeError, match=words):
            play("q0?", LookupEnvironment)


def test_a_budget_of_observations_without_room_is_refused_before_a_turn(actor):
    environment = LookupEnvironment()
    agent = Mem1Agent(actor, tiny_tokenizer(), SHORT, max_turns=3, max_completion_length=40, max_observation_length=11)
    passes = []
    actor.register_forward_pre_hook(lambda *_: passes.append(1))
    words = r"max_observation_length=11 is less than .* need \(12 tokens\): raise it"
    for play in (agent.run, agent.start):
        with pytest.raises(ValueError, match=words):
            play("q0?", environment)
    assert not passes and not hasattr(environment, "queries")
    agent.start("q0?", environment, options={"max_observation_length": 12}).close()


@pytest.mark.parametrize(("architecture", "table"), [("gpt2", "n_positions"), ("opt", "max_position_embeddings")])
def test_contexts_beyond_the_positions_that_a_model_has_learned(architecture, table):
    """A model that computes its positions goes on; one that looks them up would fail in the middle of an episode."""
    own = {
        "model_type": "opt",
        "vocab_size": 320,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    config = {**ARCHITECTURES.get(architecture, own), table: 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    words = "max_context_length and max_completion_length must add up to at most 64, the positions that this model has embeddings for, got 65"
    with pytest.raises(ValueError, match=words):
        Mem1Agent(model, tiny_tokenizer(), SHORT, max_context_length=57, max_completion_length=8)
    agent = Mem1Agent(model, tiny_tokenizer(), SHORT, max_context_length=56, max_completion_length=8)
    with pytest.raises(ValueError, match=words):
        agent.start("q0?", LookupEnvironment(), options={"max_completion_length": 9})
    assert len(agent.generate([[5] * 56], [[]])[0].ids) <= 8


def test_contexts_beyond_the_positions_that_a_model_computes(actor):
    settings = AgentSettings(max_context_length=4000, max_completion_length=100)
    assert actor.config.max_position_embeddings < 4100 and settings.with_context_limit(actor) == settings


def test_texts_and_messages_in_place_of_rows(actor):
    agent = Mem1Agent(actor, chat_tokenizer(), SHORT, max_turns=1, max_completion_length=8)
    rows = ["q0?", [{"role": "user", "content": "q0?"}], {"prompt": "q0?", "secret": "5"}]
    environments = [LookupEnvironment() for _ in rows]
    played = agent.run_batch(rows, environments)
    assert len(played) == 3 and len({one.turns[0].prompt_ids for one in played}) == 1
    assert [one.secret for one in environments] == ["7", "7", "5"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("q0?", "rows must be a list with a row for each episode, got a str: put it into a list"),
        ({"prompt": "q0?"}, "rows must be a list with a row for each episode, got a dict"),
        (7, "rows must be a list with a row for each episode, got a int"),
        (["q0?", 7], "A row must be a mapping with a 'prompt', a text or a list of messages, got a int in row 1"),
        ([("prompt", "q0?")], "got a tuple in row 0"),
        ([["q0?"]], "got a list in row 0"),
    ],
)
def test_rows_of_another_kind(agent, rows, words):
    with pytest.raises(TypeError, match=words):
        agent.run_batch(rows, [LookupEnvironment()])


@pytest.mark.parametrize(
    "factory", [lambda: LookupEnvironment(), functools.partial(LookupEnvironment), LookupEnvironment().search]
)
def test_a_factory_in_place_of_an_environment(agent, factory):
    words = r"An environment must be an instance, got (the function (<lambda>|search)|a functools.partial): a factory makes environments, so call it, `factory\(\)`"
    for play in (agent.run, agent.start, lambda task, environment: agent.run_batch([task], [environment])):
        with pytest.raises(TypeError, match=words):
            play("q0?", factory)


@pytest.mark.parametrize("protocol", [None, "default"])
def test_a_model_that_is_nowhere(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("empty").mkdir()
    for name, words in (
        ("./nope", r"There is no model at './nope': check the path \(an id on the Hub is 'owner/name'\)\."),
        ("a/b/c", "There is no model at 'a/b/c': check the path"),
        ("file", "A model must be a folder, got the file 'file': check the path"),
        (
            "empty",
            r"The folder 'empty' holds no model \(it has no config.json or adapter_config.json\): check the path",
        ),
        ("no such name", "There is no folder 'no such name' here, and no model of that name on the Hub"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            Mem1Agent.from_pretrained(name, protocol)


@pytest.mark.parametrize("protocol", [None, "default"])
@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_the_hub_cannot_be_asked_for(tmp_path, monkeypatch, protocol, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("hf_hub_download", "get_hf_file_metadata"):
        monkeypatch.setattr(f"huggingface_hub.{name}", _no_network)
    monkeypatch.setattr("mem1_trl.agent.agent.load_model", _no_network)
    words = r"There is no folder 'nope' here, and the Hub cannot be asked for a model of that name \(.*: no network\): check the path, or the connection"
    with pytest.raises(ConnectionError, match=words):
        Mem1Agent.from_pretrained("nope", protocol)


def _no_network(*args, **kwargs):
    raise OSError("no network")


@pytest.mark.parametrize("given", [[LookupEnvironment.search], {"a": LookupEnvironment}, "shop", 3])
def test_what_is_no_environment(agent, given):
    """An agent with such a one had no actions, and nothing said so."""
    for play in (agent.run, agent.start):
        with pytest.raises(
            TypeError,
            match=r"must be an instance of a class whose methods are actions, got a .*: functions are passed as `tools",
        ):
            play("q0?", given)


def look(query: str) -> str:
    """
    Look something up.

    Args:
        query: What to look for.
    """
    return query


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"temperature": 2.0}, r"temperature=2.0 is a column of the task here, .* pass `options={'temperature': ...}` to `start`"),
        ({"max_turns": 1}, r"pass `options={'max_turns': ...}` to `start`"),
        ({"schemas": [{}]}, r"schemas=.* is a column of the task here, .*: pass it to `start`, and play by `start\(schemas=...\).run\(\)`"),
        ({"environment_factory": LookupEnvironment}, r"start\(environment_factory=...\).run\(\)`"),
        ({"options": {"temperature": 2.0}}, r"start\(options=...\).run\(\)`"),
        ({"seed": 3}, r"use `run_batch\(seeds=\[...\]\)`"),
    ],
)  # fmt: skip
def test_a_setting_that_no_reset_is_given(agent, row, words):
    """They were taken for columns of the task, which nothing read."""
    for given in ({}, {"tools": [look]}):
        with pytest.raises(TypeError, match=words):
            agent.run("q0?", **given, **row)
        with pytest.raises(TypeError, match=words):
            next(iter(agent.stream("q0?", **given, **row)))
        with pytest.raises(TypeError, match=words):
            asyncio.run(agent.arun("q0?", **given, **row))
    if not row.keys() & {"schemas", "options", "environment_factory"}:
        with pytest.raises(TypeError, match=words):
            agent.start("q0?", **row)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"max_turn": 1}, r"max_turn=1 is a column .*: did you mean 'max_turns'\? Then pass `options={'max_turns': ...}` to `start`\."),
        ({"protocol": "paper"}, "protocol='paper' is a column .*: pass it to `Mem1Agent`"),
        ({"on_text": print}, r": pass it to the episode, `start\(...\).run\(on_text=...\)`"),
        ({"tool": [look]}, r": did you mean 'tools'\? Then pass it by that name"),
        ({"enviroment": LookupEnvironment()}, r": did you mean 'environment'\? Then pass it by that name"),
        ({"keep_failures": True}, r": use `run_batch\(keep_failures=...\)`"),
        ({"answers": [["Oslo"]]}, "answers=.* would be given it: leave it out, or pass an environment whose `reset` takes it"),
        ({"secret": 1, "questions": 2}, "leave it out"),
    ],
)  # fmt: skip
def test_a_column_that_nothing_reads(agent, row, words):
    """A word that is misspelt, or belongs elsewhere, was taken for a column of the task in silence."""

    class Shop:
        """Has no `reset`."""

        def look(self, query: str) -> str:
            """Look something up."""
            return query

    for given in ({}, {"tools": [look]}):
        for play in (agent.run, agent.start):
            with pytest.raises(TypeError, match=words):
                play("q0?", **given, **row)
    for given in ({"environment": Shop()}, {"environment_factory": Shop}):
        if "leave it out" in words:  # its rows may be those of other environments, too
            agent.start("q0?", **given, **row).close()
        else:
            with pytest.raises(TypeError, match=words):
                agent.start("q0?", **given, **row)
    agent.start("q0?", LookupEnvironment(), **row).close()
    agent.start("q0?", environment_factory=LookupEnvironment, **row).close()
