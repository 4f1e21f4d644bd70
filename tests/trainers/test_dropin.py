"""Environments and scripts that were written for `GRPOTrainer` run here as they are, with tags, brackets and tool calls."""

from __future__ import annotations

import dataclasses
import difflib
import json
import runpy
import sys
import warnings
from pathlib import Path

import pytest
from datasets import Dataset
from support.dropin_environments import CASES, PROMPT
from support.tool_helpers import Library, Scripted, call, said, template_tokenizer, tool_policy
from support.trainer_helpers import record, trainer_arguments, trl_arguments
from trl import GRPOConfig, GRPOTrainer

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer, Mem1Protocol, StopReason
from mem1_trl.configs import from_grpo_config
from mem1_trl.environment_runtime.actions import ActionSet

SCRIPTS = Path(__file__).parents[1] / "scripts"
PROTOCOLS = {
    "tags": Mem1Protocol(instructions="{prompt}", on_invalid_action="observe"),
    "brackets": Mem1Protocol(instructions="{prompt}", action_syntax="brackets", on_invalid_action="observe"),
    "tool_calls": dataclasses.replace(Mem1Protocol.tool_calls(), instructions="{prompt}"),
}


def written(syntax: str, environment, name: str, arguments: dict) -> str:
    """A turn that calls an action, as a policy would write it."""
    if syntax == "tool_calls":
        return said("s", call(name, json.dumps(arguments)))
    parameters = ActionSet(environment, PROTOCOLS[syntax])._parameters[name]
    inner = json.dumps(arguments)
    if len(parameters) < 2:
        inner = "".join(value if isinstance(value, str) else json.dumps(value) for value in arguments.values())
    if syntax == "tags":
        return f"<think>s</think><{name}>{inner}</{name}>"
    return f"<think>s</think><answer>{name}[{inner}]</answer>"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A tiny model with Qwen's chat template, as a directory."""
    directory = tmp_path_factory.mktemp("models") / "tiny-qwen"
    tokenizer = template_tokenizer()
    tool_policy(tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("syntax", PROTOCOLS)
def test_environments_written_for_trl_train_unchanged(tmp_path, syntax):
    """All of them in one run, chosen by the column `environment`: what each call is answered, and the state it leaves."""
    tokenizer = template_tokenizer()
    names = list(CASES)
    columns = {key for _, row, _, _ in CASES.values() for key in row}
    rows = [
        {"prompt": PROMPT, "environment": name, **{key: CASES[name][1].get(key) for key in columns}} for name in names
    ]
    for row in rows:  # a dataset has every column in every row
        row["word"], row["key"] = row["word"] or "crane", row["key"] or "k"
    trainer = Mem1GRPOTrainer(
        model=tool_policy(tokenizer),
        args=Mem1GRPOConfig(
            **trainer_arguments(
                tmp_path,
                max_steps=1,
                per_device_train_batch_size=2 * len(names),
                num_generations=2,
                max_turns=5,
                max_observation_length=120,
                max_completion_length=64,
                shuffle_dataset=False,
            )
        ),
        processing_class=tokenizer,
        environment_factory={name: CASES[name][0] for name in names},
        reward_funcs=lambda environments, **kwargs: [float(len(vars(e))) for e in environments],
        protocol=PROTOCOLS[syntax],
        train_dataset=Dataset.from_list(rows),
    )
    seen = []
    run = trainer.run_episodes

    def script(turn, index, running):
        name = names[running[index] // 2]
        calls = CASES[name][2]
        if turn > len(calls):
            return said("s", "the end") if syntax == "tool_calls" else "<think>s</think>the end<|im_end|>"
        return written(syntax, CASES[name][0](), calls[turn - 1][0], calls[turn - 1][1])

    class Policy(Scripted):
        """Knows which episodes still run: a context belongs to the task prompt that it begins with."""

        def __call__(self, prompts, stops, draws=None):
            self.running = [i for i, e in enumerate(trainer.episodes) if e.stop_reason is None]
            return super().__call__(prompts, stops)

    policy = Policy(tokenizer, lambda turn, index: script(turn, index, policy.running))
    trainer.rollout.mode = "lockstep"  # the script counts calls of all episodes
    trainer.rollout.generate = lambda prompts, stops, draws=None: [
        dataclasses.replace(one, ended=True) for one in policy(prompts, stops)
    ]

    def run_and_keep(rows):
        trajectories = run(rows)
        seen.extend(
            zip(
                [row["environment"] for row in rows],
                [e.prompt_ids for e in trainer.episodes],
                trajectories,
                trainer.episodes,
            )
        )
        return trajectories

    trainer.run_episodes = run_and_keep
    recorder = record(trainer)
    trainer.train()
    assert recorder.losses[0].isfinite()
    assert [name for name, *_ in seen] == [name for name in names for _ in range(2)]
    for name, prompt_ids, trajectory, episode in seen:
        _, _, calls, state = CASES[name]
        for turn, (_, _, answer) in zip(trajectory.turns, calls):
            if turn.observation is None:  # the game was over
                assert trajectory.stop_reason == StopReason.DONE
            else:
                assert answer in turn.observation, (name, turn.observation)
        for key, value in state.items():
            assert getattr(episode.environment, key) == value, name
        prompt = tokenizer.decode(prompt_ids)
        assert "Be brief." in prompt and "Do it." in prompt
    by_name = {name: tokenizer.decode(ids) for name, ids, *_ in seen}
    assert "Do it.Guess a word of five letters." in by_name["word_game"]
    assert "Do it. (task of 6 characters)" in by_name["messages"]


def test_trl_itself_takes_these_environments(tmp_path):
    tokenizer = template_tokenizer()
    trainer = GRPOTrainer(
        model=tool_policy(tokenizer),
        args=GRPOConfig(**trl_arguments(tmp_path, num_generations=2)),
        processing_class=tokenizer,
        environment_factory={name: case[0] for name, case in CASES.items()},
        reward_funcs=lambda environments, **kwargs: [0.0 for _ in environments],
        train_dataset=Dataset.from_dict({"prompt": [PROMPT], "environment": ["echo"]}),
    )
    for name, (kind, _, calls, _) in CASES.items():
        tools = {tool.__name__ for tool in trainer._env_tools[name]}
        assert tools == set(ActionSet(kind(), Mem1Protocol.tool_calls()).tags)
        assert {tool for tool, _, _ in calls} <= tools


# One changed line


def test_the_scripts_differ_in_one_line_and_the_import():
    one, other = ((SCRIPTS / name).read_text().splitlines() for name in ("trl_script.py", "mem1_script.py"))
    changes = [line for line in difflib.ndiff(one, other) if line[0] in "+-" and line[2:].strip()]
    assert changes == [
        "- from trl import GRPOConfig, GRPOTrainer",
        "+ from trl import GRPOConfig",
        "+ from mem1_trl import Mem1GRPOTrainer",
        "- trainer = GRPOTrainer(",
        "+ trainer = Mem1GRPOTrainer(",
    ]


@pytest.mark.parametrize("script", ["trl_script.py", "mem1_script.py"])
def test_both_scripts_train(tmp_path, monkeypatch, model_path, script):
    monkeypatch.setattr(sys, "argv", [script, model_path, str(tmp_path)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    assert names["trainer"].state.global_step == 1
    told = [str(one.message) for one in caught if "A GRPOConfig is run as" in str(one.message)]
    if script == "mem1_script.py":
        assert names["trainer"].settings.max_turns == 4
        (message,) = told
        assert "max_turns=4 (one more than max_tool_calling_iterations)" in message
        assert "max_completion_length=16 tokens for each turn" in message
    else:
        assert told == []


def test_a_grpo_config_is_converted(tmp_path):
    args = GRPOConfig(
        output_dir=str(tmp_path), learning_rate=3e-5, num_generations=4, generation_batch_size=16, max_completion_length=99,
        temperature=0.7, beta=0.1, use_cpu=True, bf16=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="max_turns=6, max_completion_length=99 tokens for each turn"):
        config = from_grpo_config(args)
    assert isinstance(config, Mem1GRPOConfig) and not isinstance(args, Mem1GRPOConfig)
    changed = {"logging_nan_inf_filter": (False, True), "num_generations_eval": (1, None)}
    for field in dataclasses.fields(GRPOConfig):
        pair = (getattr(config, field.name), getattr(args, field.name))
        assert pair[0] == pair[1] or pair == changed[field.name], field.name
    plain = Mem1GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    for field in dataclasses.fields(Mem1GRPOConfig):
        if not hasattr(args, field.name):
            assert getattr(config, field.name) == getattr(plain, field.name), field.name
    assert config.to_dict()["max_turns"] == 6


def test_settings_that_cannot_be_converted_are_refused(tmp_path, model_path):
    dataset = Dataset.from_dict({"prompt": ["a"] * 4})
    with pytest.raises(TypeError, match=r"`args` is a dict: pass a Mem1GRPOConfig or a trl\.GRPOConfig"):
        Mem1GRPOTrainer(model_path, args={}, train_dataset=dataset, environment_factory=Library)
    with pytest.raises(TypeError, match="`args` is a GRPOConfig: pass a Mem1PPOConfig"):
        args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
        Mem1PPOTrainer(model_path, args=args, train_dataset=dataset, environment_factory=Library)
    with pytest.raises(ValueError, match="`max_tool_calling_iterations` has no effect here: set `max_turns`"):
        Mem1PPOConfig(output_dir=str(tmp_path), max_tool_calling_iterations=3, use_cpu=True, bf16=False)
