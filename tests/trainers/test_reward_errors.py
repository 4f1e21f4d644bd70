"""What a reward function raises names the function, since two of them may run the same code."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from support.trainer_helpers import NoReward, lookup_dataset, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.trainers.reward_gate import RewardGate


def broken(completions: list[Any], **row: Any) -> list[float]:
    return [1.0 / 0 for _ in completions]


async def broken_later(completions: list[Any], **row: Any) -> list[float]:
    await asyncio.sleep(0)
    return [1.0 / 0 for _ in completions]


def broken_at_once(completions: list[Any], **row: Any) -> Any:
    raise KeyError("score")


@pytest.mark.parametrize("function", [broken, broken_later, partial(broken_later, wanted="x"), broken_at_once])
def test_an_error_of_a_reward_function_names_it(function):
    ask = RewardGate([False, False], [1, 1]).guard(function, "judge")

    def call() -> Any:
        found = ask(completions=["a", "b"])
        return asyncio.run(found) if asyncio.iscoroutine(found) else found

    kind = KeyError if function is broken_at_once else ZeroDivisionError
    with pytest.raises(kind) as error:
        call()
    assert error.value.__notes__ == ["In the reward function 'judge'"]


def test_what_is_wrong_with_its_numbers_is_said_once():
    with pytest.raises(ValueError, match="The reward function 'judge' returned 1 rewards") as error:
        RewardGate([False, False], [1, 1]).guard(lambda completions, **row: [1.0], "judge")(completions=["a", "b"])
    assert not hasattr(error.value, "__notes__")


def test_a_run_ends_with_the_error_and_the_name(tmp_path, tokenizer, actor_path):
    trainer = Mem1GRPOTrainer(
        model=actor_path, args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2, max_turns=2)),
        reward_funcs=[lambda completions, **row: [0.0] * len(completions), broken], train_dataset=lookup_dataset(4),
        processing_class=tokenizer, environment_factory=NoReward,
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError) as error:
        trainer.train()
    assert error.value.__notes__ == ["In the reward function 'broken'"]
