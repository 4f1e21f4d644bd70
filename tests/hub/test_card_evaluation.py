"""The evaluation on a card: that of the weights that are saved, of each data set under its own name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.trainer_helpers import SHORT, NoReward, lookup_dataset, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.evaluation.result import Evaluation
from mem1_trl.hub.card_evaluation import card_evaluations, evaluation_results, evaluation_section
from mem1_trl.hub.logged_evaluations import LOADED_STEP
from mem1_trl.hub.training_curves import curve_panels, draw_curves

OWN = "evaluation tasks of the run"
"""What the one data set of a run is called: `dataset_name` is that of training."""


def shown(log: list[dict[str, Any]], given: Any = None) -> list[tuple[str, str, float]]:
    """Data set, metric and value of each result in the metadata of a card."""
    results = evaluation_results(card_evaluations(given, log))
    return [(result.dataset_name, result.metric_type, result.metric_value) for result in results]


ONE = [
    {"step": 1, "eval_reward": 0.9, "eval_episode/peak_tokens": 90.0},
    {"step": 2, "reward": 0.9},
    {
        "step": 2, "eval_reward": 0.5, "eval_episode/peak_tokens": 80.0, "eval_episode/turns": float("nan"),
        "eval_episode/valid_action_rate": None, "eval_kl": 3.0, "eval_rewards/f1/mean": 0.3,
    },
    {"step": 3, "reward": 0.9},
]  # fmt: skip
"""The log of a run with one data set."""

TWO = [
    {"step": step, f"eval_{name}_reward": reward, f"eval_{name}_episode/success": reward, f"eval_{name}_episode/turns": 2.0}
    for step, rewards in ((1, (0.9, 0.2)), (2, (0.8, 0.1)))
    for name, reward in zip(("easy", "very_hard"), rewards)
]  # fmt: skip
"""The log of a run with two."""


def test_the_results_are_those_of_the_last_evaluation():
    assert shown(ONE) == [(OWN, "reward", 0.5), (OWN, "peak_tokens", 80.0)]
    section = evaluation_section(card_evaluations(None, ONE), ONE)
    assert "The last evaluation of the run, after optimizer step 2." in section and "| reward | 0.5 |" in section
    assert shown([{"step": 1, "reward": 1.0}]) == [] and evaluation_section([], []) == ""


def test_metrics_that_are_passed_come_before_those_of_the_log():
    assert shown(ONE, {"exact_match": 1.25, "kl": 3.0}) == [(OWN, "exact_match", 1.25)]
    assert "optimizer step" not in evaluation_section(card_evaluations({"exact_match": 1.25}, ONE), ONE)


@pytest.mark.parametrize("prefix", ["eval_", "test_", "eval_hard_", "test_very_hard_", "mine_"])
def test_metrics_may_have_the_names_that_a_trainer_gives_them(prefix):
    """They were dropped, and the card said nothing of an evaluation."""
    given = {f"{prefix}{name}": value for name, value in (("reward", 0.5), ("episode/success", 0.25), ("kl", 3.0))}
    data = {"eval_hard_": "hard", "test_very_hard_": "very_hard", "mine_": "mine"}.get(prefix, OWN)
    assert shown(ONE, given) == [(data, "reward", 0.5), (data, "success", 0.25)]
    section = evaluation_section(card_evaluations(given, ONE), ONE)
    assert "| reward | 0.5 |\n| share of tasks solved | 0.25 |" in section and "optimizer step" not in section


def test_metrics_of_several_data_sets_may_be_passed_at_once():
    given = {**TWO[0], **TWO[1], "eval_third_reward": 0.3, "eval_rewards/my_reward": 9.0}
    found = shown(ONE, given)
    assert [(data, value) for data, metric, value in found if metric == "reward"] == [
        ("easy", 0.9),
        ("very_hard", 0.2),
        ("third", 0.3),
    ]
    assert [(data, value) for data, metric, value in found if metric == "success"] == [
        ("easy", 0.9),
        ("very_hard", 0.2),
    ]


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ({"accuracy": 0.5, "kl": 3.0}, "accuracy, kl"),
        ({"eval_loss": 0.5}, "eval_loss"),
        ({"eval_reward": float("nan")}, "eval_reward"),
        ({}, "no metric"),
    ],
)
def test_metrics_of_which_the_card_shows_none_are_refused(given, got):
    words = rf"^The evaluation of a model card must have a finite number for at least one of reward, exact_match, .*, got {got}\.$"
    with pytest.raises(ValueError, match=words):
        card_evaluations(given, ONE)


@pytest.mark.parametrize("later", [False, True])
def test_the_results_are_those_of_the_checkpoint_that_was_loaded(later):
    log = [*ONE, {"step": 3, LOADED_STEP: 1}]
    if later:  # what is evaluated now are the weights of step 1, whatever the step of the run
        log.append({"step": 3, "eval_reward": 0.7, "eval_episode/peak_tokens": 91.0})
    reward, peak = (0.7, 91.0) if later else (0.9, 90.0)
    assert [value for _, _, value in shown(log)] == [reward, peak]
    section = evaluation_section(card_evaluations(None, log), log)
    assert "Of the best checkpoint, after optimizer step 1, whose weights these are." in section
    assert f"| reward | {reward} |" in section
    assert shown([*ONE, {"step": 3, LOADED_STEP: 7}]) == []  # these weights were never evaluated


def test_each_data_set_has_results_of_its_own():
    expected = [("easy", 0.8), ("very_hard", 0.1)]
    found = shown(TWO)
    assert [(data, value) for data, metric, value in found if metric == "success"] == expected
    assert {data for data, _, _ in found} == {"easy", "very_hard"}
    best = [*TWO, {"step": 2, LOADED_STEP: 1}]
    assert [(data, value) for data, metric, value in shown(best) if metric == "reward"] == [
        ("easy", 0.9),
        ("very_hard", 0.2),
    ]
    section = evaluation_section(card_evaluations(None, TWO), TWO)
    assert "| metric | easy | very_hard |\n|---|---|---|\n| reward | 0.8 | 0.1 |" in section


def test_the_metadata_keeps_data_sets_apart(tmp_path):
    card = ModelCard("---\nmodel_name: me\n---\n")
    card.data.eval_results = evaluation_results(card_evaluations(None, TWO))
    card.save(tmp_path / "README.md")
    (block,) = ModelCard.load(tmp_path / "README.md").data.to_dict()["model-index"]
    found = {one["dataset"]["name"]: {m["type"]: m["value"] for m in one["metrics"]} for one in block["results"]}
    assert found == {
        "easy": {"reward": 0.8, "success": 0.8, "turns": 2.0},
        "very_hard": {"reward": 0.1, "success": 0.1, "turns": 2.0},
    }


def test_curves_need_two_points(tmp_path):
    assert not draw_curves([{"step": 1, "reward": 0.5}, {"step": 1, "loss": 0.5}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    history = [
        {"step": s, "reward": s / 9, "episode/peak_tokens": 50.0 - s, "entropy": None if s > 4 else float("nan")}
        for s in range(1, 9)
    ]
    assert draw_curves(
        [*history, {"step": 8, "eval_a$b$c_reward": 0.7, "eval_a$b$c_episode/turns": 2.0}], tmp_path / "curves.png"
    )
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_the_curves_have_a_line_for_each_data_set_at_the_steps_of_its_weights():
    training = [{"step": step, "reward": 0.5} for step in (1, 2)]
    (panel,) = curve_panels([*training, *TWO])
    assert panel.train == [(1, 0.5), (2, 0.5)]
    assert panel.evaluated == {"easy": [(1, 0.9), (2, 0.8)], "very_hard": [(1, 0.2), (2, 0.1)]}
    again = {"step": 3, "eval_reward": 0.7}
    (panel,) = curve_panels([*training, *ONE, {"step": 3, LOADED_STEP: 1}, again])
    assert panel.evaluated == {"evaluation": [(1, 0.7), (2, 0.5)]}


# A run that loads its best checkpoint


def falling(completions: list[Any], trainer_state: Any, **row: Any) -> list[float]:
    """A reward function: the best step is the first."""
    return [1.0 / trainer_state.global_step if trainer_state.global_step else 0.0] * len(completions)


@pytest.fixture(scope="module")
def best_loaded(tmp_path_factory, tokenizer, actor_path):
    """A trainer at the end of a run of two steps, of which the first was better."""
    place = tmp_path_factory.mktemp("run")
    settings = trainer_arguments(
        place, num_generations=2, per_device_eval_batch_size=2, beta=0.1, max_turns=2, learning_rate=1e-2, save_strategy="steps", save_steps=1,
        eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_reward", greater_is_better=True,
        save_eval_trajectories=True,
    )  # fmt: skip
    trainer = Mem1GRPOTrainer(
        model=actor_path, args=Mem1GRPOConfig(**settings), reward_funcs=[falling], train_dataset=lookup_dataset(4),
        eval_dataset=lookup_dataset(2), processing_class=tokenizer, environment_factory=NoReward, protocol=SHORT,
    )  # fmt: skip
    trainer.train()
    return trainer, place


def test_the_card_shows_the_evaluation_of_the_weights_that_are_saved(best_loaded):
    trainer, place = best_loaded
    trainer.save_model(str(place / "model"))
    trainer.create_model_card()
    saved, best, last = (
        load_file(place / one / "model.safetensors") for one in ("model", "checkpoint-1", "checkpoint-2")
    )
    assert all(torch.equal(saved[name], best[name]) for name in saved)
    assert not all(torch.equal(saved[name], last[name]) for name in saved)
    card = ModelCard.load(place / "README.md")
    (reward,) = [one.metric_value for one in card.data.eval_results if one.metric_type == "reward"]
    assert reward == 1.0 and card.data.model_name == place.name
    assert "Of the best checkpoint, after optimizer step 1, whose weights these are." in card.text
    assert re.search(r"^\| reward \| 1 \|$", card.text, re.MULTILINE)


def test_what_the_trainer_returns_can_be_given_to_its_card(best_loaded):
    trainer, _ = best_loaded
    for metrics in (trainer.evaluate(), trainer.predict(lookup_dataset(2)).metrics):
        found = shown([], metrics)
        assert {"reward", "turns", "peak_tokens"} <= {metric for _, metric, _ in found}
        assert {data for data, _, _ in found} == {OWN}


def test_metrics_that_a_card_does_not_show_are_refused_before_it_is_written(best_loaded):
    trainer, _ = best_loaded
    card = Path(trainer.args.output_dir) / "README.md"
    before = card.read_bytes() if card.is_file() else None
    with pytest.raises(
        ValueError, match="The evaluation of a model card must have a finite number for at least one of"
    ):
        trainer.create_model_card(evaluation={"epoch": 1.0})
    assert (card.read_bytes() if card.is_file() else None) == before
    trainer.create_model_card()
    assert "model-index" in card.read_text()


def test_the_best_weights_are_not_evaluated_under_the_name_of_the_last_step(best_loaded):
    trainer, place = best_loaded
    kept = (place / "evaluation" / "eval-2.json").read_text()
    trainer.evaluate()
    assert (place / "evaluation" / "eval-2.json").read_text() == kept
    found = Evaluation.load(place / "evaluation", "eval-best-1")
    assert (found.agent, found.settings["step"]) == ("best checkpoint, step 1", 1)
