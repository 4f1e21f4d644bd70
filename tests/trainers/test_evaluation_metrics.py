"""What an evaluation plays, and which metrics of TRL are logged at all."""

from __future__ import annotations

import glob

import pandas
import pytest
import torch
from datasets import Dataset
from support.trainer_helpers import SHORT, LookupEnvironment, NoReward, lookup_dataset, record, trainer_arguments
from trl import GRPOConfig

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.configs import from_grpo_config

KINDS = {"grpo": (Mem1GRPOTrainer, Mem1GRPOConfig), "ppo": (Mem1PPOTrainer, Mem1PPOConfig)}


def make(kind, tmp_path, model, tokenizer, **settings):
    trainer_class, config_class = KINDS[kind]
    own = {"num_generations": 4} if kind == "grpo" else {"beta": 0.0}
    own |= {"max_turns": 4, "max_observation_length": 60, "per_device_eval_batch_size": 8, **settings}
    return trainer_class(
        model=model,
        args=config_class(**trainer_arguments(tmp_path, **own)),
        train_dataset=lookup_dataset(8),
        eval_dataset=lookup_dataset(8),
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )


def played_in(trainer) -> list[str]:
    """The tasks that an evaluation plays, in their order."""
    prompts = []
    start = trainer.prepare_rows

    def prepare_rows(rows):
        prompts.extend(row["prompt"] for row in rows)
        return start(rows)

    trainer.prepare_rows = prepare_rows
    trainer.evaluate()
    return prompts


GREEDY = {"eval_temperature": 0.0}, {"eval_temperature": None, "generation_kwargs": {"do_sample": False}}


@pytest.mark.parametrize(
    ("kind", "settings", "times"),
    [
        ("grpo", GREEDY[0], 1),
        ("grpo", GREEDY[1], 1),
        ("grpo", {"eval_temperature": None}, 4),
        ("grpo", {"eval_temperature": 0.7}, 4),
        ("grpo", {"eval_temperature": 0.0, "num_generations_eval": 2}, 2),
        ("ppo", GREEDY[0], 1),
        ("ppo", {"eval_temperature": 0.0, "num_generations": 4}, 1),
        ("ppo", {"eval_temperature": 0.7, "num_generations": 4}, 4),
    ],
)
def test_a_greedy_evaluation_plays_every_row_once(kind, settings, times, tmp_path, tokenizer, actor):
    prompts = played_in(make(kind, tmp_path, actor, tokenizer, **settings))
    expected = [prompt for prompt in lookup_dataset(8)["prompt"] for _ in range(times)]
    assert sorted(prompts) == sorted(expected)


def test_a_converted_configuration_evaluates_greedily_once(tmp_path):
    theirs = GRPOConfig(
        output_dir=str(tmp_path), num_generations=4, per_device_train_batch_size=4, bf16=False, use_cpu=True
    )
    with pytest.warns(UserWarning, match="A GRPOConfig is run"):
        ours = from_grpo_config(theirs)
    assert (ours.num_generations_eval, ours.logging_nan_inf_filter) == (1, False)
    assert theirs.num_generations_eval is None


CLIPPED = ("low_mean", "high_mean", "region_mean", "low_min", "high_max")


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_that_are_always_the_same_are_not_logged(kind, tmp_path, tokenizer, actor):
    trainer = make(
        kind, tmp_path, actor, tokenizer, eval_strategy="steps", eval_steps=1, learning_rate=1e-2, max_steps=2
    )
    recorder = record(trainer)
    trainer.train()
    steps = [logs for logs in recorder.logs if "loss" in logs]
    evaluations = [logs for logs in recorder.logs if "eval_reward" in logs]
    assert len(steps) == len(evaluations) == 2
    dead = {f"eval_clip_ratio/{name}" for name in CLIPPED} | {"eval_frac_reward_zero_std", "eval_value/clip_ratio"}
    for logs in evaluations:
        assert not dead & set(logs)
        assert {"eval_loss", "eval_reward", "eval_reward_std", "eval_entropy", "eval_episode/turns"} <= set(logs)
    for logs in steps:
        assert {f"clip_ratio/{name}" for name in CLIPPED} <= set(logs)
        assert ("frac_reward_zero_std" in logs) == (kind == "grpo")


def test_a_sampled_evaluation_says_in_how_many_groups_all_are_alike(tmp_path, tokenizer, actor):
    metrics = make("grpo", tmp_path, actor, tokenizer, eval_temperature=1.0).evaluate()
    assert 0.0 <= metrics["eval_frac_reward_zero_std"] < 1.0


def test_the_table_of_completions_shows_the_advantages_that_ppo_trains_on(tmp_path, tokenizer, actor):
    trainer = make("ppo", tmp_path, actor, tokenizer, log_completions=True, max_steps=1, per_device_train_batch_size=8)
    torch.nn.init.normal_(trainer.value_model.head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    recorder = record(trainer)
    trainer.train()
    (batch,) = recorder.batches
    mask = batch["completion_mask"] * batch["tool_mask"]
    expected = (batch["advantages"] * mask).sum(1) / mask.sum(1)
    assert expected.abs().min() > 0
    (path,) = glob.glob(f"{tmp_path}/completions/*.parquet")
    assert pandas.read_parquet(path)["advantage"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def secrets(completions, secret, **kwargs):
    """A reward function: the number that a row holds."""
    return [float(one) for one in secret]


def numbered(tmp_path, path, tokenizer, rows, **settings):
    """A trainer whose evaluation has rows of these rewards."""
    data = Dataset.from_dict({"prompt": [f"q{i}?" for i in range(len(rows))], "secret": [str(one) for one in rows]})
    return Mem1GRPOTrainer(
        model=path,
        args=Mem1GRPOConfig(
            **trainer_arguments(
                tmp_path, num_generations=2, max_turns=2, per_device_eval_batch_size=4, beta=0.0, **settings
            )
        ),
        reward_funcs=secrets,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        environment_factory=NoReward,
        protocol=SHORT,
    )


def test_the_reward_of_an_evaluation_is_the_mean_over_its_rows(tmp_path, tokenizer, actor_path):
    """Not over its batches, of which the last has one row of five; and so is its standard deviation."""
    trainer = numbered(tmp_path, actor_path, tokenizer, [0, 0, 0, 0, 8])
    for _ in range(2):
        metrics = trainer.evaluate()
        assert metrics["eval_reward"] == metrics["eval_rewards/secrets/mean"] == pytest.approx(1.6)
        assert metrics["eval_reward_std"] == metrics["eval_rewards/secrets/std"] == pytest.approx(12.8**0.5)
    assert trainer.predict(trainer.eval_dataset).metrics["test_reward_std"] == pytest.approx(12.8**0.5)


def test_the_lengths_of_an_evaluation_are_those_of_its_rows(tmp_path, tokenizer, actor_path):
    """Of five, in batches of four: means over rows, and extremes of all of them."""
    trainer = numbered(tmp_path, actor_path, tokenizer, [0] * 5, max_completion_length=6)
    lengths = []
    play = trainer.run_episodes

    def run_episodes(rows):
        played = play(rows)
        lengths.extend((one.num_generated_tokens, one.stop_reason == "truncated") for one in played)
        return played

    trainer.run_episodes = run_episodes
    for _ in range(2):
        lengths.clear()
        metrics = trainer.evaluate()
        counted = [length for length, _ in lengths[:5]]
        assert len(lengths) > 5 or len(counted) == 5
        assert metrics["eval_completions/mean_length"] == pytest.approx(sum(counted) / 5)
        assert metrics["eval_completions/mean_length"] == pytest.approx(metrics["eval_episode/generated_tokens"])
        assert metrics["eval_completions/min_length"] == min(counted)
        assert metrics["eval_completions/max_length"] == max(counted)
        assert metrics["eval_completions/clipped_ratio"] == pytest.approx(sum(cut for _, cut in lengths[:5]) / 5)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"advantage_level": "turn"}, "turn_groups/alone"), ({"loss_type": "vespo"}, "vespo/phi_seq_mean")],
)
def test_what_has_one_value_in_an_evaluation_is_not_logged_there(tmp_path, tokenizer, actor_path, settings, name):
    trainer = numbered(tmp_path, actor_path, tokenizer, [0, 8, 0, 8], max_steps=1, **settings)
    logged = record(trainer).logs
    trainer.train()
    assert any(name in entry for entry in logged)
    assert f"eval_{name}" not in trainer.evaluate()


def test_a_prediction_has_metrics_and_leaves_none_to_the_next_evaluation(tmp_path, tokenizer, actor_path):
    trainer = numbered(tmp_path, actor_path, tokenizer, [0, 0, 0, 0], save_eval_trajectories=True)
    logged = record(trainer).logs
    output = trainer.predict(
        trainer.eval_dataset.map(lambda row: {"secret": "8"}).select(range(3)), metric_key_prefix="last"
    )
    assert output.metrics["last_reward"] == 8.0 and output.metrics["last_episode/turns"] >= 1.0
    assert not logged
    assert (tmp_path / "evaluation" / "last-0.json").is_file()
    assert trainer.evaluate()["eval_reward"] == 0.0

    play = trainer.run_episodes

    def broken(rows):
        play(rows)
        raise KeyboardInterrupt

    trainer.run_episodes = broken
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate(trainer.eval_dataset.map(lambda row: {"secret": "8"}))
    trainer.run_episodes = play
    metrics = trainer.evaluate()
    assert metrics["eval_reward"] == 0.0
    assert metrics["eval_episode/turns"] == pytest.approx(trainer.evaluate()["eval_episode/turns"])


@pytest.mark.parametrize(
    ("kind", "settings"), [("ppo", {}), ("grpo", {"advantage_level": "turn", "num_generations": 2})]
)
def test_an_evaluation_may_play_more_at_once_than_a_training_batch(kind, settings, tmp_path, tokenizer, actor):
    size = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 8, "gradient_accumulation_steps": 1}
    trainer = make(kind, tmp_path, actor, tokenizer, log_completions=True, **size, **settings)
    assert trainer.evaluate()["eval_episode/turns"] >= 1.0
