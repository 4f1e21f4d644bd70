"""Tests of sampling from a part of the vocabulary: how far it is from what the update scores, and that it is said."""

from __future__ import annotations

import pytest
import torch
from support.helpers import tiny_model
from support.trainer_helpers import LookupEnvironment, lookup_dataset, trainer_arguments
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from trl import GRPOTrainer

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer

LOGGER = "mem1_trl.trainers.truncated_sampling"
PROBABILITIES = torch.tensor([0.5, 0.4, 0.06, 0.04], dtype=torch.float64)


def build(tmp_path, tokenizer, trainer=Mem1GRPOTrainer, config=Mem1GRPOConfig, **settings):
    return trainer(
        model=tiny_model("llama"),
        reward_funcs=lambda completions, **kwargs: [float(index) for index in range(len(completions))],
        args=config(
            **trainer_arguments(tmp_path, num_generations=2, max_completion_length=6, max_steps=1, **settings)
        ),
        train_dataset=lookup_dataset().remove_columns("secret"),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize(
    ("warper", "kept"),
    [
        (TopPLogitsWarper(0.8), 0.9),  # the number of the warning: .5 is less than .8, .5 + .4 is enough
        (TopKLogitsWarper(3), 0.96),
        (MinPLogitsWarper(0.1), 0.96),  # .06 is more than a tenth of .5
        (TopPLogitsWarper(0.999), 1.0),
    ],
    ids=["top_p", "top_k", "min_p", "all"],
)
def test_the_ratio_to_a_truncating_sampler_averages_the_kept_probability(warper, kept):
    """Full log-probs, as the update takes them, against those of the sampler, whose tokens they are."""
    logits = PROBABILITIES.log()[None]
    sampler = torch.log_softmax(warper(torch.zeros(1, 0, dtype=torch.long), logits), dim=-1)[0]
    drawn = sampler.exp()
    ratio = torch.where(drawn > 0, (torch.log_softmax(logits, dim=-1)[0] - sampler).exp(), 0.0)
    assert float((drawn * ratio).sum()) == pytest.approx(kept, abs=1e-9)
    assert ratio[drawn > 0].tolist() == pytest.approx([kept] * int((drawn > 0).sum())), "the same for every token"


def test_the_ratio_of_a_new_to_an_old_policy_does_not_average_one_either():
    """A step that moves .1 out of the kept tokens: over the whole vocabulary the mean is .8 / .9, over the kept ones it is 1."""
    old, new = PROBABILITIES, torch.tensor([0.5, 0.3, 0.1, 0.1], dtype=torch.float64)
    drawn = torch.tensor([0.5, 0.4, 0.0, 0.0], dtype=torch.float64) / 0.9
    assert float((drawn * new / old).sum()) == pytest.approx(0.8 / 0.9)
    renormalised = new / 0.8 / (old / 0.9)
    assert float((drawn * renormalised).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"top_p": 0.8}, "top_p=0.8 draws"),
        ({"top_k": 5}, "top_k=5 draws"),
        ({"min_p": 0.1}, "min_p=0.1 draws"),
        ({"generation_kwargs": {"top_p": 0.5}, "top_k": 3}, "top_p=0.5, top_k=3 draws"),
        ({"top_p": 0.8, "eval_temperature": 0.0}, "top_p=0.8 draws"),  # an evaluation is greedy, training is not
    ],
)
def test_a_trainer_that_draws_from_a_part_of_the_vocabulary_says_so_once(tmp_path, tokenizer, caplog, settings, given):
    with caplog.at_level("WARNING", logger=LOGGER):
        trainer = build(tmp_path, tokenizer, **settings)
        trainer.train()
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    message = record.getMessage()
    assert given in message and "(at top_p=0.8 about 0.90)" in message and "\n" not in message


@pytest.mark.parametrize(
    ("trainer", "config"), [(Mem1GRPOTrainer, Mem1GRPOConfig), (Mem1PPOTrainer, Mem1PPOConfig)], ids=["grpo", "ppo"]
)
def test_a_trainer_that_draws_from_all_of_it_says_nothing(tmp_path, tokenizer, caplog, trainer, config):
    with caplog.at_level("WARNING", logger=LOGGER):
        build(tmp_path, tokenizer, trainer, config, top_p=1.0, top_k=0, min_p=0.0, temperature=0.7)
    assert not [record for record in caplog.records if record.name == LOGGER]


def test_a_penalty_of_sampling_drops_no_episode_of_the_policy(tmp_path, tokenizer, actor_path, monkeypatch):
    """TRL's mask compares with what a vLLM server has sampled; elsewhere with the policy as it was, which is the same here."""
    seen = []
    plain = GRPOTrainer.get_off_policy_mask

    def watch(**given):
        seen.append((given["sampling_per_token_logps"] - given["per_token_logps"].detach()) * given["mask"])
        return plain(**given)

    monkeypatch.setattr(GRPOTrainer, "get_off_policy_mask", staticmethod(watch))
    settings = {"repetition_penalty": 1.3, "off_policy_mask_threshold": 0.1, "num_generations": 4, "max_turns": 2}
    Mem1GRPOTrainer(
        str(actor_path), reward_funcs=lambda completions, **row: [float(len(str(one)) % 5) for one in completions],
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, max_steps=1, **settings)), train_dataset=lookup_dataset(),
        processing_class=tokenizer, environment_factory=LookupEnvironment,
    ).train()  # fmt: skip
    assert seen and max(gap.abs().max() for gap in seen) < 1e-4
