"""Evaluations of trainers: in the order of the data set, shown as what they are, and of metrics that may be missing."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from datasets import Dataset
from support.ppo_helpers import make
from support.trainer_helpers import NoReward

from mem1_trl import Mem1GRPOConfig, Mem1PPOConfig
from mem1_trl.evaluation import Evaluation, compare
from mem1_trl.trainers import episode_log
from mem1_trl.trainers.episode_log import EpisodeLog

TASKS = Dataset.from_dict({"prompt": [f"q{i}?" for i in range(6)], "secret": ["1"] * 6})


def test_runs_of_two_seeds_are_evaluated_on_the_same_tasks_in_the_order_of_the_data_set(
    tmp_path, tokenizer, actor_path
):
    found = []
    for seed in (0, 1):
        trainer = make(
            tmp_path / str(seed), actor_path, tokenizer, eval_dataset=TASKS, save_eval_trajectories=True, seed=seed,
            per_device_eval_batch_size=4,
        )  # fmt: skip
        trainer.evaluate()
        found.append(Evaluation.load(tmp_path / str(seed) / "evaluation", "eval-0"))
    for one in found:
        assert [(task.index, task.task["prompt"]) for task in one.tasks] == list(enumerate(TASKS["prompt"]))
    assert compare(*found).count == 6


def test_training_episodes_are_not_shown_as_those_of_an_evaluation(monkeypatch):
    shown = []
    monkeypatch.setattr(
        episode_log, "print_trajectories", lambda sample, title, *rest: shown.append((title, list(sample)))
    )
    monkeypatch.setattr(episode_log, "log_trajectories", lambda *args, **kwargs: None)
    trainer = SimpleNamespace(
        args=SimpleNamespace(generation_batch_size=4, report_to=[]), mode="train", log_completions=True, num_completions_to_print=None,
        gather_records=list, accelerator=SimpleNamespace(is_main_process=True), state=SimpleNamespace(global_step=1),
        tokenizer=None, callback_handler=SimpleNamespace(callbacks=[]),
    )  # fmt: skip
    log = EpisodeLog(trainer, SimpleNamespace())
    log.keep(["train 1", "train 2"])
    trainer.mode = "eval"
    log.keep(["eval 1"])
    log.show()
    trainer.mode = "train"
    log.keep(["train 3"])
    log.show()
    assert shown == [("eval step 1", ["eval 1"]), ("step 1", ["train 1", "train 2", "train 3"])]


def test_an_evaluation_without_the_metric_of_the_best_model_is_no_better(tmp_path, tokenizer, actor_path, caplog):
    """A reward function that says nothing about the rows of the evaluation."""

    def of_training(trajectories, secret, **kwargs):
        return [None if one == "none" else 1.0 for one in secret]

    def always(trajectories, **kwargs):
        return [1.0] * len(trajectories)

    trainer = make(
        tmp_path, actor_path, tokenizer, environment=NoReward, reward_funcs=(of_training, always), max_steps=2,
        eval_dataset=Dataset.from_dict({"prompt": ["q?"] * 2, "secret": ["none"] * 2}), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, metric_for_best_model="eval_rewards/of_training/mean",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.state.best_model_checkpoint is None
    assert "metric_for_best_model='eval_rewards/of_training/mean' is None in this evaluation" in caplog.text


@pytest.mark.parametrize("kind", [list, tuple])
def test_reward_functions_may_be_a_list_or_a_tuple(tmp_path, tokenizer, actor_path, kind):
    functions = kind([lambda trajectories, **kwargs: [1.0] * len(trajectories)] * 2)
    trainer = make(tmp_path, actor_path, tokenizer, environment=NoReward, reward_funcs=functions)
    assert len(trainer.reward_funcs) == 2


@pytest.mark.parametrize("kind", [Mem1GRPOConfig, Mem1PPOConfig])
def test_the_best_model_is_that_of_the_best_reward_unless_another_metric_is_named(tmp_path, kind):
    """By the loss, which is 0 in every greedy evaluation of GRPO, it would be the first."""
    steps = dict(
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, report_to="none", use_cpu=True
    )
    chosen = kind(str(tmp_path), load_best_model_at_end=True, **steps)
    assert (chosen.metric_for_best_model, chosen.greater_is_better) == ("reward", True)
    named = kind(str(tmp_path), load_best_model_at_end=True, metric_for_best_model="loss", **steps)
    assert (named.metric_for_best_model, named.greater_is_better) == ("loss", False)
    assert kind(str(tmp_path), **steps).metric_for_best_model is None


@pytest.mark.parametrize(
    ("settings", "got"),
    [({"load_best_model_at_end": True}, "reward"), ({"metric_for_best_model": "eval_reward"}, "eval_reward")],
)
def test_the_best_model_is_by_a_metric_of_one_of_several_data_sets(tmp_path, tokenizer, actor_path, settings, got):
    """The first evaluation ended the run, by a `KeyError`."""
    steps = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=1)
    parts = {name: Dataset.from_dict({"prompt": ["q?"] * 2, "secret": ["1"] * 2}) for name in ("easy", "hard")}
    words = f"metric_for_best_model must be that of one of the eval datasets, such as 'eval_easy_reward', got '{got}'."
    with pytest.raises(ValueError, match=re.escape(words)):
        make(tmp_path, actor_path, tokenizer, eval_dataset=parts, **steps, **settings)
    settings = {**settings, "metric_for_best_model": "eval_hard_reward"}
    trainer = make(tmp_path, actor_path, tokenizer, eval_dataset=parts, **steps, **settings)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")


@pytest.mark.parametrize(("mode", "counted"), [("eval", "count as reward 0"), ("train", "are left out of the update")])
def test_a_warning_says_what_failed_episodes_count(mode, counted, monkeypatch):
    said = []
    monkeypatch.setattr(episode_log, "logger", SimpleNamespace(warning=said.append))
    trainer = SimpleNamespace(mode=mode, args=SimpleNamespace(generation_batch_size=4, report_to=[]))
    log = EpisodeLog(trainer, SimpleNamespace())
    log._check_faults([("it is down", False), (None, True)])
    assert len(said) == 1 and "failed in 1 of 2 episodes" in said[0] and counted in said[0]
