"""A model is run as it was trained: what a trainer decides is saved, and agent, evaluation and command line read it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from datasets import Dataset
from support.chat_server import serve
from support.ppo_helpers import LORA
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    ScriptedGenerator,
    lookup_dataset,
    planned,
    record,
    trainer_arguments,
)

from mem1_trl import AgentSettings, Mem1Agent, Mem1GRPOConfig, Mem1GRPOTrainer, Mem1Protocol
from mem1_trl.cli.evaluate import EvalArguments
from mem1_trl.hub.agent_settings import load_agent_settings, save_agent_settings


def make(directory, model, tokenizer, protocol=SHORT, dataset=None, environment=LookupEnvironment, **kwargs):
    settings = {"max_turns": 4, "max_observation_length": 40, "num_generations": 2, **kwargs}
    return Mem1GRPOTrainer(
        model=model,
        args=Mem1GRPOConfig(**trainer_arguments(directory, **settings)),
        train_dataset=lookup_dataset() if dataset is None else dataset,
        processing_class=tokenizer,
        environment_factory=environment,
        protocol=protocol,
    )


def saved(directory, model, tokenizer, **kwargs) -> str:
    """A model as a trainer saves it."""
    trainer = make(directory, model, tokenizer, **kwargs)
    trainer.save_model(str(directory / "model"))
    tokenizer.save_pretrained(directory / "model")
    return str(directory / "model")


@pytest.mark.parametrize("place", [None, "elsewhere"])
def test_an_adapter_is_saved_with_the_card_of_the_run(tmp_path, actor_path, tokenizer, place):
    """PEFT writes one with nothing in it."""
    trainer = Mem1GRPOTrainer(
        model=actor_path, args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2, max_turns=4)),
        train_dataset=lookup_dataset(), processing_class=tokenizer, environment_factory=LookupEnvironment, protocol=SHORT,
        peft_config=LORA,
    )  # fmt: skip
    trainer.save_model(place and str(tmp_path / place))
    card = (tmp_path / (place or "") / "README.md").read_text()
    assert "More Information Needed" not in card and "zhou2025mem1" in card and "generated_from_trainer" in card


# Budgets, context rule, environment


def test_the_saved_agent_has_every_setting_of_the_run(tmp_path, actor, tokenizer):
    path = saved(
        tmp_path, actor, tokenizer, max_turns=5, max_completion_length=48, max_observation_length=200,
        context="external", memory_top_k=7, max_context_length=900, top_p=0.9, eval_temperature=0.3,
    )  # fmt: skip
    settings = Mem1Agent.from_pretrained(path).settings
    assert settings == AgentSettings(
        max_turns=5, max_completion_length=48, max_observation_length=200, context="external", memory_top_k=7,
        max_context_length=900, top_p=0.9, temperature=0.3, conversational=False,
    )  # fmt: skip
    assert Mem1Agent.from_pretrained(path, memory_top_k=2, temperature=0.0).settings == dataclasses.replace(
        settings, memory_top_k=2, temperature=0.0
    )


def test_a_server_plays_a_model_as_it_was_trained(tmp_path, actor, tokenizer, caplog):
    """The agent of a client spoke to it by the default protocol, with the default settings, and nothing said so."""
    path = saved(tmp_path, actor, tokenizer, max_turns=5, max_completion_length=48, context="full")
    with serve(lambda messages: "<think>a</think><answer>7</answer>") as server:
        agent = Mem1Agent.from_pretrained(path, client=server.url, backend="chat", max_turns=3)
        local = Mem1Agent.from_pretrained(path, max_turns=3)
        assert agent.run("q?").answer == "7" and agent.endpoint.chat.model == path
        known = dataclasses.replace(local.settings, max_context_length=None)  # a server knows its own
        assert (agent.protocol, agent.settings) == (local.protocol, known) and agent.protocol == SHORT
        assert "protocol and settings of its own" not in caplog.text
        named = Mem1Agent.from_pretrained(path, model="served", client=server.url, backend="chat")
        assert named.endpoint.chat.model == "served"
        with pytest.raises(TypeError, match="about a model that is loaded here, and it is not: leave 'dtype' out"):
            Mem1Agent.from_pretrained(path, client=server.url, model_init_kwargs={"dtype": "bfloat16"})
        Mem1Agent(path, tokenizer, client=server.url, backend="chat")
    assert f"`Mem1Agent.from_pretrained({path!r}, client=...)`" in caplog.text
    assert Mem1Agent.from_pretrained(path, model=actor).model is actor


def test_an_argument_that_does_not_exist_is_refused(actor, tokenizer):
    with pytest.raises(TypeError, match="An agent has no setting 'max_turn': did you mean 'max_turns'"):
        Mem1Agent(actor, tokenizer, SHORT, max_turn=3)


def test_settings_survive_their_file_and_unknown_ones_are_refused(tmp_path):
    settings = AgentSettings(context="full", generation_kwargs={"no_repeat_ngram_size": 2}, environment={"top_k": 1})
    save_agent_settings(tmp_path, settings)
    assert load_agent_settings(tmp_path) == settings
    (tmp_path / "mem1_agent.json").write_text('{"max_turns": 3, "horizon": 9}')
    with pytest.raises(ValueError, match="has 'horizon', which this version of mem1-trl does not know"):
        load_agent_settings(tmp_path)
    (tmp_path / "mem1_agent.json").write_text('{"max_turns": 3}')
    assert load_agent_settings(tmp_path) == AgentSettings(max_turns=3)
    assert load_agent_settings(tmp_path / "nothing") is None


def test_the_environment_says_what_it_was_made_with(tmp_path, actor, tokenizer):
    from mem1_trl.environments import RetrievalQAEnvironment
    from mem1_trl.facts import load_facts

    factory = RetrievalQAEnvironment.factory(load_facts().corpus.select(range(5)), top_k=1)
    rows = Dataset.from_dict({"prompt": ["q0?"] * 4, "answers": [[["1"]]] * 4})
    trainer = make(tmp_path, actor, tokenizer, dataset=rows, environment=factory)
    assert trainer.agent_settings().environment == {"top_k": 1}
    trainer.create_model_card()
    assert "RetrievalQAEnvironment.factory(corpus=corpus, top_k=1)()" in (tmp_path / "README.md").read_text()


def test_mem1_eval_takes_what_was_saved(tmp_path, actor, tokenizer, monkeypatch):
    made = []
    from mem1_trl.cli import evaluate as command

    path = saved(tmp_path, actor, tokenizer, max_completion_length=48, max_observation_length=200)
    record = json.loads((tmp_path / "model" / "mem1_agent.json").read_text())
    record["environment"] = {"top_k": 1}
    (tmp_path / "model" / "mem1_agent.json").write_text(json.dumps(record))
    arguments = ["--model_name_or_path", path, "--objectives", "1", "--tasks", "2"]
    factory = EvalArguments.environment_factory
    for more, lengths, top_k in (([], (48, 200), 1), (["--max_completion_length", "9", "--top_k", "2"], (9, 200), 2)):
        out = tmp_path / str(top_k)
        with monkeypatch.context() as patch:
            patch.setattr(
                EvalArguments,
                "environment_factory",
                lambda options, top_k: made.append(top_k) or factory(options, top_k),
            )
            command.run([*arguments, *more, "--output_dir", str(out)])
        assert made.pop() == top_k
        (file,) = (out / "evaluation").glob("*.json")
        settings = json.loads(file.read_text())["settings"]
        assert (settings["max_completion_length"], settings["max_observation_length"]) == lengths
        assert settings["conversational"] is False
    assert EvalArguments(model_name_or_path="x", memory_top_k=7).given() == {"memory_top_k": 7}


def test_mem1_eval_searches_as_many_passages_as_in_training(tmp_path):
    assert EvalArguments(model_name_or_path="x").environment_factory(1)().mem1_settings == {"top_k": 1}


# The protocol


PATIENT = dataclasses.replace(SHORT, state_tag="summary")


def test_a_trainer_takes_the_protocol_saved_with_its_model(tmp_path, actor, tokenizer):
    path = saved(tmp_path / "one", actor, tokenizer, protocol=PATIENT)
    trainer = make(tmp_path / "two", path, tokenizer, protocol=None)
    assert trainer.protocol == PATIENT
    trainer.save_model(str(tmp_path / "two" / "model"))
    assert Mem1Protocol.from_pretrained(tmp_path / "two" / "model") == PATIENT
    assert make(tmp_path / "three", path, tokenizer, protocol=SHORT).protocol == SHORT
    four = make(tmp_path / "four", actor, tokenizer, protocol=None, max_observation_length=200)
    assert four.protocol == Mem1Protocol()


def test_its_first_batch_is_rewarded_as_it_was(tmp_path, actor, tokenizer):
    """The tiny actor speaks SHORT's tags under SHORT's instructions only."""
    path = saved(tmp_path / "one", actor, tokenizer, max_turns=4)
    rewards = {}
    for name, protocol in (("saved", None), ("passed", SHORT)):
        trainer = make(tmp_path / name, path, tokenizer, protocol=protocol, max_steps=1, seed=5)
        recorder = record(trainer)
        trainer.train()
        rewards[name] = recorder.logs[0]["reward"]
    assert rewards["saved"] == rewards["passed"] > 0


def test_resuming_under_other_settings_is_refused(tmp_path, actor, tokenizer):
    arguments = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    make(tmp_path, actor, tokenizer, **arguments).train()
    for changes, sentence in (
        ({"max_turns": 5}, r"another max_turns \(4 there, 5 here\)"),
        ({"context": "full"}, r"another context \('mem1' there, 'full' here\)"),
        ({"protocol": PATIENT}, "another protocol.state_tag"),
    ):
        trainer = make(tmp_path, actor, tokenizer, **{**arguments, "max_steps": 2, **changes})
        with pytest.raises(ValueError, match=sentence):
            trainer.train(resume_from_checkpoint=True)
    trainer = make(tmp_path, actor, tokenizer, **{**arguments, "max_steps": 2})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


# Tasks as chat or as text


def first_contexts(trainer) -> list[tuple[int, ...]]:
    trainer.rollout.generate = ScriptedGenerator(trainer.tokenizer, planned(lambda i: (1, 0)))
    recorder = record(trainer)
    trainer.train()
    batch = recorder.batches[0]
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"])]


@pytest.mark.parametrize("kind", ["text", "messages", "blocks"])
@pytest.mark.parametrize("choice", [None, False])
def test_trainer_and_agent_read_the_same_task(tmp_path, actor, tokenizer, kind, choice):
    """A tokenizer with a chat template speaks tasks as chat, unless the user says otherwise; messages always are."""
    task = {
        "text": "q1?",
        "messages": [{"role": "user", "content": "q1?"}],
        "blocks": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "1?"}]}],
    }[kind]
    rows = Dataset.from_dict({"prompt": [task] * 4, "secret": ["1"] * 4})
    trainer = make(tmp_path, actor, tokenizer, dataset=rows, conversational=choice, max_steps=1)
    chat = kind != "text" or choice is None
    expected = "user:q1?;assistant:" if chat else "q1?"
    trained = {tokenizer.decode(list(ids)) for ids in first_contexts(trainer)}
    assert trained == {expected}
    trainer.save_model(str(tmp_path / "model"))
    tokenizer.save_pretrained(tmp_path / "model")
    agent = Mem1Agent.from_pretrained(str(tmp_path / "model"))
    assert agent.settings.conversational is (choice is None)
    for spoken in (task, "q1?"):
        if not (choice is False and kind != "text" and spoken == "q1?"):
            read = agent.run(spoken, LookupEnvironment(), secret="1").prompt_ids
            assert tokenizer.decode(list(read)) == expected


def test_without_a_chat_template_texts_stay_texts(tmp_path, actor, tokenizer):
    bare = type(tokenizer).from_pretrained(_save(tokenizer, tmp_path))
    bare.chat_template = None
    assert Mem1Agent(actor, bare, SHORT).settings.conversational is False
    assert make(tmp_path, actor, bare, conversational=None).settings.conversational is False
    with pytest.raises(ValueError, match="need a chat template, and this tokenizer has none"):
        Mem1Agent(actor, bare, SHORT, conversational=True)


def _save(tokenizer, directory) -> str:
    tokenizer.save_pretrained(directory / "tokenizer")
    return str(directory / "tokenizer")


# Decoding


def test_generation_config_of_a_model_changes_neither_trainer_nor_agent(tmp_path, actor, tokenizer, caplog):
    """Both decode by their own settings; the model's file used to leak into one of them."""
    prompts = [{"prompt": f"q{i}?", "secret": "1"} for i in range(4)]

    def played(model, **kwargs):
        agent = Mem1Agent(
            model, tokenizer, SHORT, max_turns=3, max_completion_length=20, conversational=False, **kwargs
        )
        episodes = agent.run_batch(prompts, [LookupEnvironment() for _ in prompts])
        return [[turn.completion_ids for turn in episode.turns] for episode in episodes]

    plain = played(actor)
    penalized = played(actor, repetition_penalty=1.9)
    assert penalized != plain, "the penalty matters for this model"
    actor.generation_config.repetition_penalty = 1.9
    actor.generation_config.no_repeat_ngram_size = 2
    actor.generation_config.min_p = 0.9
    with caplog.at_level("WARNING", logger="mem1_trl.rollout.decoding"):
        assert played(actor) == plain
    assert "asks for repetition_penalty=1.9, no_repeat_ngram_size=2, min_p=0.9, which is not used" in caplog.text
    assert played(actor, repetition_penalty=1.9) == penalized
    assert actor.generation_config.repetition_penalty == 1.9, "the file of the model is left as it was"


@pytest.mark.parametrize("penalty", [1.0, 1.9])
def test_a_greedy_evaluation_says_what_the_saved_agent_says(tmp_path, actor, tokenizer, penalty):
    actor.generation_config.no_repeat_ngram_size = 2
    trainer = make(tmp_path, actor, tokenizer, repetition_penalty=penalty, max_completion_length=20)
    said: list[tuple[int, ...]] = []
    generate = trainer.rollout.generate

    def spy(contexts, stops):
        completions = generate(contexts, stops)
        said.extend(completion.ids for completion in completions)
        return completions

    trainer.rollout.generate = spy
    trainer.evaluate(lookup_dataset(2))
    trainer.save_model(str(tmp_path / "model"))
    tokenizer.save_pretrained(tmp_path / "model")
    agent = Mem1Agent.from_pretrained(str(tmp_path / "model"))
    assert agent.settings.repetition_penalty == penalty
    rows = [dict(row) for row in lookup_dataset(2)]
    episodes = agent.run_batch(rows, [LookupEnvironment() for _ in rows])
    assert {turn.completion_ids for episode in episodes for turn in episode.turns} == set(said)


@pytest.mark.parametrize(
    ("decoding", "truncated"),
    [
        ({"temperature": 1.0}, False),
        ({"temperature": 0.7}, False),
        ({"temperature": 0.0}, True),
        ({"temperature": 1.0, "top_k": 5}, True),
        ({"temperature": 1.0, "top_p": 0.5}, True),
        ({"temperature": 1.0, "min_p": 0.1}, True),
        ({"temperature": 1.0, "repetition_penalty": 1.2}, True),
        ({"temperature": 1.0, "generation_kwargs": {"no_repeat_ngram_size": 3}}, True),
    ],
)
def test_a_turn_says_whether_its_sampling_was_truncated(actor, tokenizer, decoding, truncated):
    torch.manual_seed(0)
    agent = Mem1Agent(actor, tokenizer, SHORT, max_completion_length=8, conversational=False, **decoding)
    trajectory = agent.run("q1?", LookupEnvironment(), secret="1")
    assert {turn.truncated_sampling for turn in trajectory.turns} == {truncated}
    assert type(trajectory).from_dict(trajectory.to_dict()) == trajectory


@pytest.mark.parametrize(("settings", "truncated"), [({}, False), ({"top_k": 5}, True)])
def test_so_do_those_of_a_trainer(tmp_path, actor, tokenizer, settings, truncated):
    trainer = make(tmp_path, actor, tokenizer, max_steps=1, **settings)
    seen = []
    rewarded = trainer.rewarded
    trainer.rewarded = lambda trajectories: (seen.extend(trajectories), rewarded(trajectories))
    trainer.train()
    assert {turn.truncated_sampling for t in seen for turn in t.turns} == {truncated}
    seen.clear()
    trainer.evaluate(lookup_dataset(2))
    assert {turn.truncated_sampling for t in seen for turn in t.turns} == {True}, "evaluation is greedy"


def test_an_adapter_that_is_saved_has_a_card_of_its_run(tmp_path, actor_path, tokenizer):
    """PEFT writes one with nothing in it, which would be what the Hub shows."""
    trainer = make_ppo(tmp_path / "run", actor_path, tokenizer, peft_config=LORA)
    trainer.save_model(str(tmp_path / "final"))
    card = (tmp_path / "final" / "README.md").read_text()
    assert "More Information Needed" not in card and "MEM1" in card and "max_turns" in card
    assert trainer.args.output_dir == str(tmp_path / "run")
