"""Rewards and evaluations in the forms that TRL takes them: models, several functions normalised one by one, several data sets."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    NoReward,
    lookup_dataset,
    tiny_classifier,
    trainer_arguments,
)

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer

BOTH = [(Mem1GRPOConfig, Mem1GRPOTrainer), (Mem1PPOConfig, Mem1PPOTrainer)]


def make(config, trainer, tmp_path, path, tokenizer, environment=LookupEnvironment, arguments=None, **settings):
    if trainer is Mem1GRPOTrainer:
        settings = {"num_generations": 4, **settings}
    settings = {"max_turns": 3, "max_observation_length": 40, "max_steps": 1, **settings}
    return trainer(
        path,
        args=config(**trainer_arguments(tmp_path, **settings)),
        environment_factory=environment,
        protocol=SHORT,
        processing_class=tokenizer,
        **{"train_dataset": lookup_dataset(), **(arguments or {})},
    )


def watch(trainer):
    """Each batch with its trajectories and rewards."""
    seen, extend = [], trainer.extend_batch

    def spy(batch, trajectories, rewards):
        extend(batch, trajectories, rewards)
        seen.append((batch, trajectories, rewards))

    trainer.extend_batch = spy
    return seen


# Rewards


@pytest.mark.parametrize(("config", "trainer"), BOTH)
def test_a_reward_model_reads_the_task_and_all_turns(tmp_path, tokenizer, actor_path, config, trainer):
    classifier = tiny_classifier()
    arguments = {"reward_funcs": classifier, "reward_processing_classes": tokenizer}
    run = make(config, trainer, tmp_path, actor_path, tokenizer, NoReward, arguments)
    seen = watch(run)
    run.train()
    ((_, trajectories, rewards),) = seen
    assert any(len(t.turns) > 1 for t in trajectories) and len(set(rewards.tolist())) > 1
    for trajectory, reward in zip(trajectories, rewards.tolist()):
        text = tokenizer.decode(trajectory.turns[0].prompt_ids, skip_special_tokens=True)
        prompt = len(trajectory.turns[0].prompt_ids)
        for number, turn in enumerate(trajectory.turns):
            carried = len(turn.prompt_ids) - prompt
            if number:  # what followed the completion before: its observation
                before = trajectory.turns[number - 1].completion_ids
                text += tokenizer.decode(turn.prompt_ids[prompt + len(before) :])
                assert turn.prompt_ids[prompt : prompt + len(before)] == before and carried >= len(before)
            text += tokenizer.decode(turn.completion_ids, skip_special_tokens=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            expected = float(classifier(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits[0, 0])
        if trajectory.stop_reason in ("answer", "done"):
            assert reward == pytest.approx(expected, abs=1e-5)


def turns(trajectories, **kwargs) -> list[float]:
    return [float(len(t.turns)) for t in trajectories]


async def parity(trajectories, **kwargs) -> list[float]:
    return [100.0 * (sum(t.turns[0].completion_ids) % 5) for t in trajectories]


def test_several_rewards_are_normalised_one_by_one(tmp_path, tokenizer, actor_path):
    """GDPO (arXiv 2601.05242): each reward in standard deviations of its group, their weighted sum in those of the batch."""
    run = make(
        *BOTH[0], tmp_path, actor_path, tokenizer, NoReward, {"reward_funcs": [turns, parity]},
        per_device_train_batch_size=8, multi_objective_aggregation="normalize_then_sum", reward_weights=[1.0, 0.5],
    )  # fmt: skip
    seen = watch(run)
    run.train()
    ((batch, trajectories, _),) = seen
    total = torch.zeros(8)
    for weight, column in (
        (1.0, turns(trajectories)),
        (0.5, [100.0 * (sum(t.turns[0].completion_ids) % 5) for t in trajectories]),
    ):
        groups = torch.tensor(column).view(2, 4)
        total += weight * ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    expected = (total - total.mean()) / (total.std() + 1e-4)
    assert expected.abs().max() > 0.5
    assert torch.allclose(batch["advantages"].flatten(), expected, atol=1e-5)


# Evaluations


@pytest.mark.parametrize(("config", "trainer"), BOTH)
def test_each_of_several_evaluation_data_sets_is_its_own_evaluation(tmp_path, tokenizer, actor_path, config, trainer):
    datasets = {"one": lookup_dataset(2), "two": lookup_dataset(3)}
    run = make(
        config, trainer, tmp_path, actor_path, tokenizer, LookupEnvironment, {"eval_dataset": datasets},
        eval_strategy="steps", eval_steps=1, learning_rate=0.0,
    )  # fmt: skip
    run.train()
    for name, dataset in datasets.items():
        (logged,) = [entry for entry in run.state.log_history if f"eval_{name}_loss" in entry]
        alone = run.evaluate(dataset)  # greedy, by the same weights
        for key in ("reward", "episode/turns", "episode/generated_tokens"):
            assert logged[f"eval_{name}_{key}"] == pytest.approx(alone[f"eval_{key}"]), key
        assert "eval_reward" not in logged, "which of them it is would not be said"


def unscored() -> Dataset:
    return Dataset.from_dict({"prompt": ["q1?", "q2?"], "secret": ["1", "2"]})


def nothing(completions, **kwargs) -> list[None]:
    return [None] * len(completions)


@pytest.mark.parametrize(("config", "trainer"), BOTH)
def test_an_evaluation_before_training_may_have_no_score(tmp_path, tokenizer, actor_path, config, trainer):
    """That nothing was scored is an error of the first batch of a training, and of no evaluation."""
    arguments = {"reward_funcs": nothing, "eval_dataset": unscored()}
    run = make(
        config, trainer, tmp_path, actor_path, tokenizer, NoReward, arguments, eval_on_start=True, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    metrics = run.evaluate()
    assert metrics["eval_episode/turns"] >= 1
    with pytest.raises(ValueError, match="Nothing scored any trajectory of the first batch"):
        run.train()
    first = run.state.log_history[0]
    assert first["step"] == 0 and first["eval_episode/turns"] == metrics["eval_episode/turns"]


@pytest.mark.parametrize(("config", "trainer"), BOTH)
def test_eval_on_start_is_the_first_entry_of_the_log(tmp_path, tokenizer, actor_path, config, trainer):
    run = make(
        config, trainer, tmp_path, actor_path, tokenizer, LookupEnvironment, {"eval_dataset": lookup_dataset(3)},
        eval_on_start=True, eval_strategy="steps", eval_steps=1, learning_rate=0.0,
    )  # fmt: skip
    run.train()
    first, *_, last = [entry for entry in run.state.log_history if "eval_reward" in entry]
    assert (first["step"], last["step"]) == (0, 1)
    assert first["eval_reward"] == last["eval_reward"]  # weights that do not move
