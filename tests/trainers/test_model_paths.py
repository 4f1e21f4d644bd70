"""Paths as objects: one that is the teacher is taken as its text, one that is the policy is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer


def make(tmp_path, tokenizer, model, settings=None, **arguments):
    args = Mem1GRPOConfig(**trainer_arguments(tmp_path, **{"num_generations": 2, "max_turns": 2, **(settings or {})}))
    return Mem1GRPOTrainer(
        model=model, args=args, train_dataset=lookup_dataset(4), processing_class=tokenizer, environment_factory=LookupEnvironment,
        protocol=SHORT, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (Path("models/mine"), r"a PosixPath: pass `str\(...\)` of the path"),
        (3, "a int"),
        (None, "None"),
        ({"name": "mine"}, "a dict"),
    ],
)
def test_a_policy_that_is_no_text_and_no_model_is_refused(tmp_path, tokenizer, model, got):
    """It was an AttributeError about `parameters`."""
    with pytest.raises(TypeError, match=rf"^`model` must be an id, a path or a model, got {got}\.$"):
        make(tmp_path, tokenizer, model)


@pytest.mark.parametrize("where", ["argument", "configuration"])
def test_the_path_of_a_teacher_is_taken_as_its_text(tmp_path, tokenizer, actor_path, where):
    of_config = {"teacher_model_name_or_path": Path(actor_path)} if where == "configuration" else {}
    settings = {"distillation_weight": 0.5, "teacher_model_init_kwargs": {"dtype": "float32"}, **of_config}
    arguments = {"teacher_model": Path(actor_path)} if where == "argument" else {}
    trainer = make(tmp_path, tokenizer, actor_path, settings, **arguments)
    teacher = trainer.distillation.teacher
    assert teacher is not trainer.model and teacher.config._name_or_path == actor_path


@pytest.mark.parametrize(
    ("teacher", "kind", "words"),
    [
        (3, TypeError, r"^`teacher_model` must be an id, a path or a model, got a int\.$"),
        (Path("/nowhere/teacher"), FileNotFoundError, "^There is no teacher at '/nowhere/teacher'"),
    ],
)
def test_a_teacher_that_cannot_be_one_is_refused(tmp_path, tokenizer, actor_path, teacher, kind, words):
    with pytest.raises(kind, match=words):
        make(tmp_path, tokenizer, actor_path, {"distillation_weight": 0.5}, teacher_model=teacher)
