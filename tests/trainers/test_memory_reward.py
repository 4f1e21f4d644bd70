"""`memory_value_weight`: what the trainers add to the rewards of turns, from plain forwards with the state and without it."""

from __future__ import annotations

import pytest
import torch
from support.objectives import in_float32
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, record, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer


class Flaky(LookupEnvironment):
    """Cannot begin one of its tasks."""

    def reset(self, prompt="", secret="7", **row):
        if prompt.endswith("q3?"):
            raise KeyError("row")
        return super().reset(prompt, secret)


def total(model, context, completion) -> float:
    row = torch.tensor([[*context, *completion]])
    with torch.no_grad():
        scores = torch.log_softmax(model(input_ids=row).logits[0, len(context) - 1 : -1].double(), -1)
    return float(scores.gather(1, row[0, len(context) :, None]).sum())


def worth(model, tokenizer, trajectory, gold):
    """Nats of the next action, or of an answer, for each turn whose state the next one read; by texts, since the tokenizer reads bytes."""

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    found = []
    for turn, read in zip(trajectory.turns, trajectory.turns[1:]):
        if turn.state is None:
            found.append(0.0)
            continue
        text = tokenizer.decode(read.prompt_ids)
        state = f"<think>{turn.state}</think>"
        begin = text.rindex(state)
        blank = ids(text[:begin] + "<think></think>" + text[begin + len(state) :])
        after = read.state_begin + read.state_tokens
        if gold is None:
            thought, action = read.completion_ids[:after], read.completion_ids[after:]
            found.append(total(model, [*read.prompt_ids, *thought], action) - total(model, [*blank, *thought], action))
        else:
            tag = ids("<answer>")
            found.append(total(model, [*read.prompt_ids, *tag], ids(gold)) - total(model, [*blank, *tag], ids(gold)))
    return [*found, 0.0]


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
@pytest.mark.parametrize("with_answers", [True, False])
def test_the_reward_of_each_turn(tmp_path, tokenizer, actor_path, kind, with_answers):
    dataset = lookup_dataset(4)
    if with_answers:
        dataset = dataset.add_column("answers", [[["5"]] for _ in range(4)])
    settings = {
        "memory_value_weight": 0.5, "max_turns": 4, "max_observation_length": 40, "per_device_train_batch_size": 8,
        "max_steps": 1, "environment_retries": 0, "beta": 0.0, "num_generations": 2, "shuffle_dataset": False,
    }  # fmt: skip
    if kind == "ppo":
        trainer = make_ppo(tmp_path, actor_path, tokenizer, environment=Flaky, train_dataset=dataset, **settings)
    else:
        trainer = Mem1GRPOTrainer(
            model=actor_path,
            args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
            train_dataset=dataset,
            processing_class=tokenizer,
            environment_factory=Flaky,
            protocol=SHORT,
        )
    policy, _ = in_float32(trainer, actor_path)
    seen, rewarded = [], trainer.rewarded
    trainer.rewarded = lambda trajectories: (seen.extend(trajectories), rewarded(trajectories))
    recorder = record(trainer)
    trainer.train()
    sums = []
    for index, trajectory in enumerate(seen):
        if trajectory.error is not None:
            continue
        expected = worth(policy, tokenizer, trajectory, "5" if with_answers else None)
        given = [turn.reward for turn in trajectory.turns]
        if len(given) == 1:
            assert given == [None]
        else:
            assert given == pytest.approx([0.5 * number for number in expected], abs=2e-4)
            sums.append(sum(expected))
        right = float(trajectory.answer == dataset[index // 2]["secret"])
        assert trajectory.reward == pytest.approx(right + 0.5 * sum(expected), abs=5e-4)
    assert len([t for t in seen if t.error is not None]) == 2 and max(map(abs, sums)) > 1e-2
    assert recorder.logs[0]["rewards/memory_value/mean"] == pytest.approx(sum(sums) / len(sums), abs=5e-4)
    assert trainer.args.reward_weights is None  # as it was given


def test_states_are_scored_in_contexts_that_were_read_whatever_the_layout(tmp_path, tokenizer, actor_path):
    settings = {
        "memory_value_weight": 0.5,
        "num_generations": 2,
        "layout": "paper",
        "temperature": 0.7,
        "max_turns": 2,
    }
    trainer = Mem1GRPOTrainer(
        model=actor_path, args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)), train_dataset=lookup_dataset(),
        processing_class=tokenizer, environment_factory=LookupEnvironment, protocol=SHORT,
    )  # fmt: skip
    assert trainer.layout == "paper"
    assert trainer.scoring == {"layout": "packed", "temperature": 0.7, "batch_size": 4}


def test_what_cannot_work_is_refused(tmp_path, tokenizer, actor_path):
    with pytest.raises(ValueError, match=r"memory_value_weight must be a finite number of at least 0, got -1\.0"):
        Mem1GRPOConfig(**trainer_arguments(tmp_path, memory_value_weight=-1.0, num_generations=2))
    args = Mem1GRPOConfig(**trainer_arguments(tmp_path, memory_value_weight=1.0, num_generations=2, max_turns=1))
    with pytest.raises(ValueError, match=r"memory_value_weight=1\.0 needs turns that read a state"):
        Mem1GRPOTrainer(
            model=actor_path, args=args, reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=lookup_dataset(), processing_class=tokenizer,
        )  # fmt: skip
