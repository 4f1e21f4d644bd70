"""What an evaluation is called in what it returns, logs and shows, and what does not count as one."""

from __future__ import annotations

import glob
import re

import pandas
import pytest
from datasets import Dataset
from support.ppo_helpers import make
from support.trainer_helpers import NoReward, record

from mem1_trl import StepLines
from mem1_trl.hub.logged_evaluations import with_weight_steps
from mem1_trl.trainers import episode_log

TASKS = Dataset.from_dict({"prompt": [f"q{i}?" for i in range(4)], "secret": ["1"] * 4})


def asks(trajectories, log_metric, **kwargs):
    """A reward function with a metric whose name ends as that of the reward does."""
    log_metric("my_reward", 1.0)
    return [0.5] * len(trajectories)


def trainer_with_lines(tmp_path, actor_path, tokenizer, **settings):
    lines = []
    trainer = make(
        tmp_path, actor_path, tokenizer, environment=NoReward, reward_funcs=asks, callbacks=[StepLines(lines.append)],
        eval_dataset=TASKS, **settings,
    )  # fmt: skip
    return trainer, lines


def test_a_line_is_shown_for_each_evaluation_that_was_made(tmp_path, actor_path, tokenizer):
    trainer, lines = trainer_with_lines(tmp_path, actor_path, tokenizer)
    assert trainer.evaluate()["eval_my_reward"] == 1.0
    assert len(lines) == 1 and lines[0].startswith("evaluation after step 0: reward 0.500  turns ")
    lines.clear()
    trainer.evaluate({"my": TASKS, "other_reward": TASKS})
    assert [line.partition(":")[0] for line in lines] == [
        "evaluation after step 0 on my",
        "evaluation after step 0 on other_reward",
    ]
    lines.clear()
    trainer.log({"eval_mine_reward": 1.0})
    assert lines == []


def test_an_evaluation_with_a_prefix_of_its_own_has_no_other(tmp_path, actor_path, tokenizer):
    trainer, lines = trainer_with_lines(tmp_path, actor_path, tokenizer, save_eval_trajectories=True)
    logged = record(trainer).logs
    metrics = trainer.evaluate(TASKS, metric_key_prefix="test")
    assert {"test_loss", "test_runtime", "test_reward", "test_rewards/asks/mean", "test_episode/turns"} <= set(metrics)
    assert {key for key in metrics if not key.startswith("test_")} == {"epoch"} & set(metrics)
    (entry,) = logged
    assert {key for key in entry if not key.startswith("test_")} <= {"epoch", "step"}
    assert entry["test_reward"] == 0.5 and trainer.state.log_history[-1]["test_reward"] == 0.5
    predicted = trainer.predict(TASKS).metrics
    same = {key for key in metrics if key not in ("epoch", "test_model_preparation_time")}
    assert same == set(predicted) - {"test_model_preparation_time"}
    assert len(lines) == 1 and lines[0].startswith("evaluation after step 0 on test: reward 0.500")
    assert (tmp_path / "evaluation" / "test-0.json").is_file()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert re.search(r"\| metric +\| test", card) and re.search(r"\| reward +\| 0\.5", card)


def test_the_names_of_data_sets_stay(tmp_path, actor_path, tokenizer):
    trainer, _ = trainer_with_lines(tmp_path, actor_path, tokenizer)
    parts = {"easy": TASKS.select([0, 1])}
    assert {"eval_easy_reward", "eval_easy_loss"} <= set(trainer.evaluate(parts))
    of_test = trainer.evaluate(parts, metric_key_prefix="test")
    assert {"test_easy_reward", "test_easy_loss"} <= set(of_test)
    assert not [key for key in of_test if key.startswith("eval")]
    # Begins with the same letters, and is another word
    assert {"evaluation_reward", "evaluation_loss"} <= set(trainer.evaluate(metric_key_prefix="evaluation"))


def test_only_evaluations_are_taken_for_those_of_a_data_set():
    log = [
        {"loss": 1.0, "reward": 0.5, "episode/turns": 2.0, "my_episode/turns": 1.0, "step": 1},
        {"eval_reward": 0.5, "eval_episode/turns": 2.0, "eval_runtime": 1.0, "step": 1},
        {"eval_my_reward": 0.5, "eval_my_episode/turns": 2.0, "eval_my_runtime": 1.0, "step": 1},
        {"train_runtime": 1.0, "train_loss": 1.0, "my_episode/turns": 1.0, "step": 1},
    ]
    assert with_weight_steps(log) == log
    of_test = {"test_reward": 0.5, "test_episode/turns": 2.0, "test_runtime": 1.0, "testing": 1.0, "step": 1}
    renamed = {
        "eval_test_reward": 0.5,
        "eval_test_episode/turns": 2.0,
        "eval_test_runtime": 1.0,
        "testing": 1.0,
        "step": 1,
    }
    assert with_weight_steps([of_test]) == [renamed]


def test_a_metric_without_a_number_is_there_whatever_the_prefix(tmp_path, actor_path, tokenizer):
    def nothing(trajectories, **kwargs):
        return [None] * len(trajectories)

    trainer = make(tmp_path, actor_path, tokenizer, environment=NoReward, reward_funcs=[asks, nothing])
    for metrics, prefix in (
        (trainer.evaluate(TASKS), "eval"),
        (trainer.evaluate(TASKS, metric_key_prefix="test"), "test"),
        (trainer.predict(TASKS).metrics, "test"),
    ):
        assert metrics[f"{prefix}_rewards/nothing/mean"] is None


def test_the_episodes_of_a_prediction_are_not_shown_as_those_of_an_evaluation(
    tmp_path, actor_path, tokenizer, monkeypatch
):
    shown = []
    monkeypatch.setattr(
        episode_log,
        "print_trajectories",
        lambda sample, title, *rest: shown.append(
            (title, [tokenizer.decode(one.turns[0].prompt_ids) for one in sample])
        ),
    )
    monkeypatch.setattr(episode_log, "log_trajectories", lambda kept, *args, **kwargs: shown.append(len(list(kept))))
    others = Dataset.from_dict({"prompt": ["other?"] * 2, "secret": ["1"] * 2})
    trainer = make(tmp_path, actor_path, tokenizer, log_completions=True, eval_dataset=TASKS.select([0, 1]))
    trainer.predict(others)
    assert shown == []
    trainer.evaluate()
    (title, texts), count = shown
    assert (title, len(texts), count) == ("eval step 0", 2, 2) and not any("other?" in text for text in texts)
    (path,) = glob.glob(f"{tmp_path}/completions/*.parquet")
    assert not any("other?" in str(prompt) for prompt in pandas.read_parquet(path)["prompt"])


def test_the_episodes_of_an_evaluation_that_was_interrupted_are_not_shown_by_the_next(
    tmp_path, actor_path, tokenizer, monkeypatch
):
    shown = []
    monkeypatch.setattr(episode_log, "print_trajectories", lambda sample, *rest: shown.append(len(list(sample))))
    trainer = make(
        tmp_path, actor_path, tokenizer, log_completions=True, eval_dataset=TASKS.select([0, 1]), num_completions_to_print=9
    )  # fmt: skip
    rewarded = trainer.rewarded

    def interrupted(trajectories):
        rewarded(trajectories)
        raise KeyboardInterrupt

    trainer.rewarded = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate()
    trainer.rewarded = rewarded
    trainer.evaluate()
    assert shown == [2]


@pytest.mark.parametrize("play", ["evaluate", "predict"])
def test_samples_of_a_row_that_do_not_fit_into_a_batch_are_refused_before_anything_is_played(
    tmp_path, actor_path, tokenizer, play
):
    trainer = make(
        tmp_path, actor_path, tokenizer, eval_temperature=None, num_generations_eval=3, per_device_eval_batch_size=8
    )  # fmt: skip
    trainer.run_episodes = lambda rows: pytest.fail("played")
    words = (
        "The global eval batch size (8 * 1) must be divisible by the number of generations used for evaluation (3)."
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        getattr(trainer, play)(TASKS)
