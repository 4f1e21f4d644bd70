"""Tasks of more and more objectives: what the stages hold, and that trainers see them in their order."""

from __future__ import annotations

import pytest
from datasets import Dataset
from support.trainer_helpers import SHORT, LookupEnvironment, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.curriculum import compose_curriculum

QUESTIONS = Dataset.from_dict({"question": [f"q{i}?" for i in range(12)], "answer": [str(i % 3) for i in range(12)]})
STAGES = [(2, {1: 1.0}), (4, {1: 0.25, 2: 0.75}), (5, {2: 0.5, 3: 0.5})]


def test_stages_hold_what_they_say():
    tasks = compose_curriculum(QUESTIONS, STAGES, seed=1)
    assert tasks["curriculum_stage"] == [0] * 2 + [1] * 4 + [2] * 5
    sizes = [len(questions) for questions in tasks["questions"]]
    assert sizes[:2] == [1, 1] and sorted(sizes[2:6]) == [1, 2, 2, 2]
    assert sorted(sizes[6:]) == [2, 2, 2, 3, 3]  # halves of five: the smaller number has one more
    assert all(len(set(questions)) == len(questions) for questions in tasks["questions"])
    assert [row["prompt"] for row in compose_curriculum(QUESTIONS, STAGES, seed=1)] == tasks["prompt"]
    assert compose_curriculum(QUESTIONS, STAGES, seed=2)["prompt"] != tasks["prompt"]


def test_parts_and_seeds_ask_for_questions_of_their_own():
    """All tasks of one objective asked what tasks of two in their stage began with, and the second stage of seed 0 was the first of seed 1."""
    many = Dataset.from_dict({"question": [f"q{i}?" for i in range(4000)], "answer": ["a"] * 4000})
    (stage,) = [compose_curriculum(many, [(400, {1: 0.25, 2: 0.75})])["questions"]]
    ones, twos = ({q for asked in stage if len(asked) == n for q in asked} for n in (1, 2))
    assert (len(ones), len(twos)) == (100, 600) and len(ones & twos) < 40  # 15 by chance
    first, second = (compose_curriculum(many, [(20, {2: 1.0})] * 2, seed=seed)["questions"] for seed in (0, 1))
    assert not {tuple(q) for q in first[20:]} & {tuple(q) for q in second[:20]}


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "at least one stage, got none"),
        ([(0, {1: 1.0})], "at least one task, got 0 in stage 0"),
        ([(2, {1: 0.5})], r"shares of stage 0 must be above 0 and add up to 1, got \{1: 0.5\}"),
        ([(2, {1: float("nan")})], r"shares of stage 0 must be above 0 and add up to 1, got \{1: nan\}"),
        ([(2, {1: "1"})], r"shares of stage 0 must be above 0 and add up to 1, got \{1: '1'\}"),
        ([(2, {1: 1.0}, 0)], "at least one turn, got 0 in stage 0"),
        ([(2, {1: 1.5, 2: -0.5})], "must be above 0"),
        (
            [(2, {1: 1.0}), (2.0, {1: 1.0})],
            r"Stage 1 must be \(tasks, \{objectives: share, ...\}\) .* got \(2.0, \{1: 1.0\}\)",
        ),
        ([(2, 1)], "Stage 0 must be"),
        ([(2, {"1": 1.0})], "Stage 0 must be"),
        ([(2, {1: 1.0}, 2.5)], "Stage 0 must be"),
        ([(2, {1: 1.0}, True)], "Stage 0 must be"),
        ([(2,)], "Stage 0 must be"),
        ([(3, {1: 1.0}, 3, 4)], "Stage 0 must be"),
        ([5], "Stage 0 must be"),
    ],
)
def test_what_cannot_be_a_stage_is_refused(stages, words):
    with pytest.raises(ValueError, match=words):
        compose_curriculum(QUESTIONS, stages)


def make(tmp_path, path, tokenizer, **settings):
    settings = {"num_generations": 2, "max_turns": 2, "max_observation_length": 40, "save_strategy": "steps", "save_steps": 1,
                "per_device_train_batch_size": 4, "max_steps": 3, **settings}  # fmt: skip
    seen = []

    class Watched(LookupEnvironment):
        def reset(self, prompt="", curriculum_stage=None, **row):
            seen.append((curriculum_stage, prompt))
            return super().reset(prompt, "0")

    trainer = Mem1GRPOTrainer(
        model=path,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
        train_dataset=compose_curriculum(QUESTIONS, [(2, {1: 1.0}), (4, {2: 1.0})]),
        processing_class=tokenizer,
        environment_factory=Watched,
        protocol=SHORT,
    )
    seen.clear()
    return trainer, seen


def test_a_trainer_plays_them_in_order_and_resumes_exactly(tmp_path, tokenizer, actor_path):
    whole, tasks = make(tmp_path / "whole", actor_path, tokenizer, shuffle_dataset=False)
    whole.train()
    assert sorted({stage for stage, _ in tasks[:4]}) == [0] and {stage for stage, _ in tasks[4:]} == {1}
    assert len(tasks) == 12 and len({prompt for _, prompt in tasks}) == 6
    first, before = make(tmp_path / "cut", actor_path, tokenizer, shuffle_dataset=False, max_steps=3)
    first.train()
    second, after = make(tmp_path / "cut", actor_path, tokenizer, shuffle_dataset=False)
    second.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-1"))
    assert sorted(after) == sorted(tasks[4:]) and sorted(before) == sorted(tasks)
    ours, theirs = dict(second.model.named_parameters()), dict(whole.model.named_parameters())
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)


def test_an_order_that_would_be_shuffled_away_is_refused(tmp_path, tokenizer, actor_path):
    with pytest.raises(
        ValueError, match="has a column 'curriculum_stage' of a curriculum, whose order a shuffle would undo"
    ):
        make(tmp_path, actor_path, tokenizer)
