"""Tests of checkpoints: a run that is killed anywhere and resumed is the run that was not killed, bit for bit."""

from __future__ import annotations

import copy
import json
import logging
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from support.forking import ForkServer
from support.helpers import VOCAB, tiny_model
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import SHORT, LookupEnvironment, copy_parameters, lookup_dataset, trainer_arguments
from transformers import TrainerCallback

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.trainers.checkpoints import (
    checkpoint_algorithm,
    checkpoint_to_resume,
    is_complete,
    last_complete_checkpoint,
    mark_complete,
    mark_incomplete,
)
from mem1_trl.trainers.console import StepLines
from mem1_trl.update.critic.head import HEAD_FILE

SCRIPT = Path(__file__).parents[1] / "scripts" / "killed_run.py"
RESUMED_FROM = {
    "in_the_first_rollout": None,
    "in_the_optimizer_file": "checkpoint-1",
    "before_the_mark": "checkpoint-2",
    "in_a_rollout": "checkpoint-2",
    "between_steps": "checkpoint-4",
}


def play(server: ForkServer, tmp_path: Path, actor_path: str, kind: str, *places: str) -> dict:
    output = tmp_path / "report.json"
    done = server.run(SCRIPT, actor_path, kind, output, *places)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(output.read_text())
    assert report["whole"]["statuses"] == [0], done.stderr[-3000:]
    return report


def check(report: dict, places: list[str]) -> None:
    """Compare each killed and resumed run with the one that was not interrupted."""
    whole = report.pop("whole")
    assert whole["statuses"] == [0]
    *records, end = whole["records"][0]
    by_key = {("log", r["step"]) if "log" in r else ("rollout", r["rollout"]): r for r in records}
    rollouts = [record for record in records if "rollout" in record]
    assert len(by_key) == len(records) and len(rollouts) >= 3
    assert len({json.dumps(record["tokens"]) for record in rollouts}) == len(rollouts)
    # The second epoch has another order than the first, so that repeating the first would show
    prompts = [json.dumps(record["prompts"]) for record in rollouts]
    assert len(set(prompts[:3])) == 3
    assert set(report) == set(places)
    for place in places:
        statuses, (first, second) = report[place]["statuses"], report[place]["records"]
        assert statuses == [-9, 0], place
        *resumed, resumed_end = second
        assert resumed_end["resumed_from"] == RESUMED_FROM[place], place
        for record in [*first, *resumed]:
            key = ("log", record["step"]) if "log" in record else ("rollout", record["rollout"])
            assert record == by_key[key], (place, key)
        assert resumed and resumed_end["weights"] == end["weights"], place
        assert resumed_end["checkpoints"] == end["checkpoints"] == ["checkpoint-5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("ppo", list(RESUMED_FROM)),
        ("grpo", ["in_the_optimizer_file", "in_a_rollout"]),
        ("adapter", ["before_the_mark", "between_steps"]),
        ("shared", ["in_a_rollout"]),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, actor_path, fork_server, kind, places):
    """Every logged number, every sampled token, the order of the data over epochs, and all weights at the end, exactly."""
    check(play(fork_server, tmp_path, actor_path, kind, *places), places)


def play_together(
    server: ForkServer, directory: Path, actor_path: str, name: str, place: str = "-", rank: int = 0
) -> tuple[int, list]:
    """Exit status of a run of two processes, and the diary of each."""
    script = SCRIPT.with_name("killed_processes.py")
    done = server.run(script, actor_path, directory, name, place, str(rank), ranks=2)
    if place == "-":
        assert done.returncode == 0, done.stderr[-3000:]
    diaries = [directory / f"{name}-{process}.jsonl" for process in range(2)]
    return done.returncode, [[json.loads(line) for line in path.read_text().splitlines()] for path in diaries]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, actor_path, fork_server) -> list:
    """The diaries of two processes that run to their end."""
    return play_together(fork_server, tmp_path_factory.mktemp("whole"), actor_path, "first")[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "rank", "resumed_from"),
    [("in_a_rollout", 1, "checkpoint-2"), ("before_the_mark", 0, "checkpoint-2")],
)
def test_two_processes_of_which_one_is_killed_go_on_exactly(
    tmp_path, actor_path, fork_server, uninterrupted, place, rank, resumed_from
):
    """Each process finds its own rows, samples and random states again."""
    whole = copy.deepcopy(uninterrupted)
    status, first = play_together(fork_server, tmp_path, actor_path, "first", place, rank)
    assert status != 0
    _, second = play_together(fork_server, tmp_path, actor_path, "second")
    assert whole[0][-1]["weights"] == whole[1][-1]["weights"]
    assert whole[0][-1]["random"] != whole[1][-1]["random"], "each process has random numbers of its own"
    for process in range(2):
        *records, end = whole[process]
        by_key = {("log", r["step"]) if "log" in r else ("rollout", r["rollout"]): r for r in records}
        assert sum("rollout" in record for record in records) >= 3 and end["processes"] == 2
        *resumed, resumed_end = second[process]
        assert resumed and resumed_end.pop("resumed_from") == resumed_from
        for record in [*first[process], *resumed]:
            key = ("log", record["step"]) if "log" in record else ("rollout", record["rollout"])
            assert record == by_key[key], (process, key)
        end.pop("resumed_from")
        assert resumed_end == end
    rollouts = [[r["tokens"] for r in records if "rollout" in r] for records in whole]
    assert rollouts[0] != rollouts[1]


def test_only_complete_checkpoints_are_found(tmp_path):
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    mark_complete(tmp_path / "checkpoint-best", 99)
    with pytest.raises(ValueError, match=r"no complete checkpoint in .*: call train\(\) without"):
        checkpoint_to_resume(True, str(tmp_path))
    mark_complete(tmp_path / "checkpoint-2", 2)
    mark_complete(tmp_path / "checkpoint-10", 10)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert checkpoint_to_resume(True, str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert checkpoint_to_resume(str(tmp_path / "checkpoint-2"), str(tmp_path)) == str(tmp_path / "checkpoint-2")
    assert checkpoint_to_resume(None, str(tmp_path)) is checkpoint_to_resume(False, str(tmp_path)) is None
    with pytest.raises(
        ValueError, match=r"checkpoint-12 was not written to its end.*resume from .*checkpoint-10 instead"
    ):
        checkpoint_to_resume(str(tmp_path / "checkpoint-12"), str(tmp_path))
    with pytest.raises(ValueError, match=r"There is no checkpoint .*checkpoint-7: the latest is .*checkpoint-10"):
        checkpoint_to_resume(str(tmp_path / "checkpoint-7"), str(tmp_path))
    mark_incomplete(tmp_path / "checkpoint-10")
    assert not is_complete(tmp_path / "checkpoint-10")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_a_checkpoint_is_resumed_with_the_algorithm_that_wrote_it(tmp_path):
    """The mark does not name it: a checkpoint of PPO holds the critic's head, which is so in those of earlier versions, too."""
    for name in ("checkpoint-1", "checkpoint-2"):
        (tmp_path / name / "critic").mkdir(parents=True)
        mark_complete(tmp_path / name, int(name[-1]))
    (tmp_path / "checkpoint-2" / "critic" / HEAD_FILE).write_text("")
    first, second = (str(tmp_path / name) for name in ("checkpoint-1", "checkpoint-2"))
    assert (checkpoint_algorithm(first), checkpoint_algorithm(second)) == ("grpo", "ppo")
    assert checkpoint_to_resume(True, str(tmp_path), "ppo") == checkpoint_to_resume(True, str(tmp_path)) == second
    assert checkpoint_to_resume(first, str(tmp_path), "grpo") == first
    with pytest.raises(
        ValueError, match=r"checkpoint-2 is of a run with ppo, which grpo cannot continue: resume with ppo, or start"
    ):
        checkpoint_to_resume(True, str(tmp_path), "grpo")


def test_a_trainer_refuses_a_checkpoint_of_the_other_algorithm(tmp_path, tokenizer, actor_path):
    make_ppo(tmp_path, actor_path, tokenizer, save_strategy="steps", save_steps=1, max_steps=1).train()
    with pytest.raises(ValueError, match="checkpoint-1 is of a run with ppo, which grpo cannot continue"):
        Mem1GRPOTrainer(
            actor_path,
            args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2)),
            train_dataset=lookup_dataset(),
            processing_class=tokenizer,
            environment_factory=LookupEnvironment,
        ).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("length", [{"max_steps": 2}, {"max_steps": -1, "num_train_epochs": 2}])
def test_a_finished_run_that_is_resumed_makes_no_step(tmp_path, tokenizer, actor_path, length):
    """A job script that always resumes leaves what it has made; with more steps to go it goes on."""
    saved = {"save_strategy": "steps", "save_steps": 1, **length}
    first = make_ppo(tmp_path, actor_path, tokenizer, **saved)
    first.train()
    assert checkpoint_algorithm(tmp_path / "checkpoint-2") == "ppo"
    weights = copy_parameters(first.model)
    lines = []
    again = make_ppo(tmp_path, actor_path, tokenizer, callbacks=[StepLines(lines.append)], **saved)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2 and lines == ["is finished: step 2 of 2"]
    assert all(torch.equal(weights[name], parameter) for name, parameter in again.model.named_parameters())
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    more = make_ppo(tmp_path, actor_path, tokenizer, **{**saved, **dict.fromkeys(length, 3)})
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == 3


@pytest.mark.parametrize("only_model", [True, False])
def test_a_checkpoint_of_weights_alone_says_what_begins_anew(tmp_path, tokenizer, actor_path, caplog, only_model):
    saved = {"save_strategy": "steps", "save_steps": 1, "save_only_model": only_model}
    make_ppo(tmp_path, actor_path, tokenizer, **saved, max_steps=1).train()
    caplog.clear()
    again = make_ppo(tmp_path, actor_path, tokenizer, **saved, max_steps=2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2
    said = "checkpoint-1 was saved with save_only_model=True, without optimizer, learning-rate schedule and random numbers"
    assert (said in caplog.text) is only_model


def whole_batches(trainer) -> list[bool]:
    """Of each optimizer step, whether it begins with a new generation batch where one has ended."""
    found = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            each = args.steps_per_generation * args.num_iterations
            found.append(trainer._step % each in range(0, each, args.gradient_accumulation_steps))

    trainer.add_callback(Watch())
    return found


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, "gradient_accumulation_steps=1"),
        ({}, {"per_device_train_batch_size": 8}, "some tasks of this pass are left out or played twice"),
        ({"steps_per_generation": 2}, {"steps_per_generation": 4}, "steps_per_generation=2, and this one has steps_per_generation=4"),
        ({"steps_per_generation": 4}, {"steps_per_generation": 2}, "steps_per_generation=4, and this one has steps_per_generation=2"),
        ({"num_iterations": 2, "beta": 0.0}, {"num_iterations": 2, "beta": 0.1}, "beta=0.0, and this one has beta=0.1"),
        ({"num_iterations": 2}, {"num_iterations": 2, "max_tokens_per_micro_batch": 60}, "max_tokens_per_micro_batch=None"),
        ({"num_iterations": 2}, {"num_iterations": 2}, None),
    ],
    ids=["accumulation", "more tasks", "longer", "shorter", "reference", "budget", "same"],
)  # fmt: skip
def test_a_run_that_goes_on_with_other_batches_plays_a_new_one(
    tmp_path, tokenizer, actor_path, caplog, before, after, said
):
    def trainer(**settings):
        given = {
            "num_generations": 2,
            "max_turns": 3,
            "max_observation_length": 40,
            "save_strategy": "steps",
            "save_steps": 1,
        }
        return Mem1GRPOTrainer(
            model=actor_path,
            args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **{**given, **settings})),
            train_dataset=lookup_dataset(16),
            environment_factory=LookupEnvironment,
            protocol=SHORT,
            processing_class=tokenizer,
        )

    trainer(**before, max_steps=3).train()
    caplog.clear()
    again = trainer(**after, max_steps=6)
    whole = whole_batches(again)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6 and whole == [True] * 3
    assert ("The checkpoint is of a run with" in caplog.text) is (said is not None) and (said or "") in caplog.text
    assert ("left out or played twice" in caplog.text) is (after.get("per_device_train_batch_size") == 8)


# Adapters and tied weights


def adapted(tmp_path, actor_path, tokenizer, lora, steps=1, **settings):
    saved = {"save_strategy": "steps", "save_steps": 1, "max_turns": 2, "num_generations": 2, "max_steps": steps}
    return Mem1GRPOTrainer(
        model=actor_path,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **saved, **settings)),
        train_dataset=lookup_dataset(4),
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
        peft_config=None if lora is None else LoraConfig(**{**LORA, **lora}),
    )


Loaded = namedtuple("Loaded", ["missing_keys", "unexpected_keys"])  # as torch returns it
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def test_a_run_goes_on_with_the_adapter_it_began_with(tmp_path, actor_path, tokenizer):
    adapted(tmp_path, actor_path, tokenizer, {}, beta=0.1).train()
    for lora, words in (
        ({"lora_alpha": 512}, "is of a LoRA run with lora_alpha=8, got lora_alpha=512: restore it"),
        ({"r": 8, "use_rslora": True}, "is of a LoRA run with r=4, use_rslora=False, got r=8, use_rslora=True: restore it"),
        ({"use_dora": True}, "is of a LoRA run with use_dora=False, got use_dora=True"),
        ({"target_modules": ["q_proj"]}, r"is of a LoRA run with target_modules=\['q_proj', 'v_proj'\], got target_modules=\['q_proj'\]"),
        (None, "is of a LoRA run with r=4, lora_alpha=8, got none: pass that `peft_config`"),
    ):  # fmt: skip
        trainer = adapted(tmp_path, actor_path, tokenizer, lora, steps=2)
        with pytest.raises(ValueError, match=f"checkpoint-1 {words}") as caught:
            trainer.train(resume_from_checkpoint=True)
        assert "\n" not in str(caught.value) and trainer.state.global_step == 0
    again = adapted(
        tmp_path, actor_path, tokenizer, {"target_modules": ["v_proj", "q_proj"], "lora_dropout": 0.1}, 2, beta=0.1
    )
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2


def test_a_checkpoint_of_all_weights_is_not_resumed_with_an_adapter(tmp_path, actor_path, tokenizer):
    adapted(tmp_path, actor_path, tokenizer, None).train()
    trainer = adapted(tmp_path, actor_path, tokenizer, {}, steps=2)
    words = "checkpoint-1 is of a run without an adapter, got LoRA with r=4, lora_alpha=8: leave out `peft_config`, or start a new run"
    with pytest.raises(ValueError, match=words):
        trainer.train(resume_from_checkpoint=True)


def test_tied_weights_are_not_called_missing(tmp_path, tokenizer):
    model = tiny_model("llama", vocab_size=VOCAB, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "tied")
    adapted(tmp_path / "run", str(tmp_path / "tied"), tokenizer, None).train()
    again = adapted(tmp_path / "run", str(tmp_path / "tied"), tokenizer, None, steps=2)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    transformers_logger = logging.getLogger("transformers.trainer")
    level = transformers_logger.level
    transformers_logger.setLevel(logging.WARNING)  # another test may have asked for errors alone
    transformers_logger.addHandler(handler)
    try:
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == 2 and not [line for line in said if "missing keys" in line]
        again._issue_warnings_after_load(Loaded([], ["x"]))
        again._issue_warnings_after_load(Loaded(["lm_head.weight", "model.norm.weight"], []))
    finally:
        transformers_logger.removeHandler(handler)
        transformers_logger.setLevel(level)
    assert said[-2:] == [
        "There were unexpected keys in the checkpoint model loaded: ['x'].",
        "There were missing keys in the checkpoint model loaded: ['model.norm.weight'].",
    ]
