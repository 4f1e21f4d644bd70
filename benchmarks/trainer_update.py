"""
What one update costs in the trainers themselves, against `GRPOTrainer` with a row for each turn.

    python benchmarks/trainer_update.py --threads 1 --clock cpu

A user without this package can train every turn as a sample of its own: exact, and the best that is to be had otherwise. All trainers get
the same episodes with the same advantages, and are timed from the finished episodes to the last gradient: rows, old log-probs where TRL
takes them, values of the critic, loss and backward pass; no generation, no optimizer. The gradients of the GRPO variants must be equal.

Variants: `trl, a row for each turn` (turns of like length together, at most `--rows` in a pass), `packed` and `per_turn`
([`Mem1GRPOTrainer`]), `ppo` and `ppo, shared critic` ([`Mem1PPOTrainer`]).
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import update_step
from datasets import Dataset
from memory_and_flops import peak_memory
from options import parse_arguments
from report import Report
from scripted import make_tokenizer
from timing import compare
from trl import GRPOConfig, GRPOTrainer
from update_step import VOCAB, build_model, trajectory

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer, Trajectory

Episodes = list[Trajectory]
TRL = "trl, a row for each turn"
EXACT = (TRL, "per_turn", "packed")
MINE: dict[str, tuple[type, type, dict[str, Any], dict[str, Any]]] = {
    "per_turn": (Mem1GRPOTrainer, Mem1GRPOConfig, {"layout": "per_turn"}, {}),
    "packed": (Mem1GRPOTrainer, Mem1GRPOConfig, {}, {}),
    "ppo": (Mem1PPOTrainer, Mem1PPOConfig, {}, {}),
    "ppo, shared critic": (Mem1PPOTrainer, Mem1PPOConfig, {}, {"value_model": "shared"}),
}


class Game:
    """Is never played: the episodes are there already."""

    def reset(self, **row: Any) -> None:
        pass

    def search(self, query: str) -> str:
        """
        Search.

        Args:
            query: A few keywords.
        """
        raise NotImplementedError


def rewards(trajectories: Episodes, **kwargs: Any) -> list[float]:
    """A number that differs between episodes."""
    return [float(sum(trajectory.turns[-1].completion_ids) % 11) for trajectory in trajectories]


def settings_of(args: argparse.Namespace, directory: str, samples: int) -> dict[str, Any]:
    return dict(
        output_dir=directory,
        num_generations=samples,
        per_device_train_batch_size=samples,
        beta=0.0,
        max_completion_length=update_step.STATE + update_step.ACTION,
        bf16=args.device != "cpu",
        use_cpu=args.device == "cpu",
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )


def finished(trainer: Any) -> Any:
    """A trainer in the middle of training, as far as its loss asks."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer.is_in_train = True
    return trainer


def update_of(kind: str, episodes: Episodes, tokenizer: Any, args: argparse.Namespace, directory: str) -> Any:
    """A trainer of this package that is handed the episodes, and its update as a function."""
    cls, config, settings, more = MINE[kind]

    class Handed(cls):  # type: ignore[misc, valid-type]
        def run_episodes(self, rows: list[dict[str, Any]]) -> Episodes:
            return episodes

        def completions_for_rewards(self, trajectories: Episodes, conversational: bool) -> list[Any]:
            return [[{"role": "assistant", "content": ""}]] * len(trajectories)

    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "Task"}]}] * len(episodes))
    trainer = finished(
        Handed(
            model=build_model(args, 32768),
            args=config(
                max_turns=len(episodes[0].turns),
                check="off",
                **settings,
                **settings_of(args, directory, len(episodes)),
            ),
            reward_funcs=rewards,
            train_dataset=data,
            processing_class=tokenizer,
            environment_factory=Game,
            **more,
        )
    )
    rows = list(data)

    def update() -> float:
        for module in trainer.trained_modules:
            module.zero_grad(set_to_none=True)
        batch = trainer._generate_and_score_completions([dict(row) for row in rows])
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return float(loss.detach())

    return trainer, update


def turns_of(episodes: Episodes, most: int) -> list[list[tuple[int, Any]]]:
    """The turns with the number of their episode, in passes of at most `most` of like length: what a careful user would do."""
    turns = [(index, turn) for index, episode in enumerate(episodes) for turn in episode.turns]
    turns.sort(key=lambda pair: len(pair[1].prompt_ids) + len(pair[1].completion_ids))
    return [turns[start : start + most] for start in range(0, len(turns), most)]


def no_reward(completions: list[Any], **kwargs: Any) -> list[float | None]:
    return [0.0] * len(completions)


def update_of_trl(episodes: Episodes, tokenizer: Any, args: argparse.Namespace, directory: str) -> Any:
    """`GRPOTrainer` with a row for each turn, which has the advantage of its episode, and its update as a function."""
    trainer = finished(
        GRPOTrainer(
            model=build_model(args, 32768),
            args=GRPOConfig(**settings_of(args, directory, len(episodes))),
            reward_funcs=no_reward,
            train_dataset=Dataset.from_list([{"prompt": "Task"}] * len(episodes)),
            processing_class=tokenizer,
        )
    )
    given = torch.tensor(rewards(episodes))
    advantages = (given - given.mean()) / (given.std() + 1e-4)
    count = sum(len(turn.completion_ids) for episode in episodes for turn in episode.turns)
    pad, device = tokenizer.pad_token_id, args.device

    def rows(turns: list[tuple[int, Any]]) -> dict[str, Any]:
        prompt, completion = (
            max(len(getattr(t, name)) for _, t in turns) for name in ("prompt_ids", "completion_ids")
        )
        batch = {
            "prompt_ids": torch.full((len(turns), prompt), pad),
            "prompt_mask": torch.zeros(len(turns), prompt, dtype=torch.long),
            "completion_ids": torch.full((len(turns), completion), pad),
            "completion_mask": torch.zeros(len(turns), completion, dtype=torch.long),
        }
        for row, (_, turn) in enumerate(turns):
            size = len(turn.prompt_ids)
            batch["prompt_ids"][row, prompt - size :] = torch.tensor(turn.prompt_ids)
            batch["prompt_mask"][row, prompt - size :] = 1
            batch["completion_ids"][row, : len(turn.completion_ids)] = torch.tensor(turn.completion_ids)
            batch["completion_mask"][row, : len(turn.completion_ids)] = 1
        batch["advantages"] = advantages[[index for index, _ in turns]]
        batch["num_items_in_batch"] = torch.tensor(count)
        return {name: value.to(device) for name, value in batch.items()}

    def update() -> float:
        trainer.model.zero_grad(set_to_none=True)
        total = 0.0
        for turns in turns_of(episodes, args.rows):
            loss = trainer.compute_loss(trainer.model, rows(turns))
            loss.backward()
            total += float(loss.detach())
        return total

    return trainer, update


def gradient(trainer: Any) -> torch.Tensor:
    """All gradients of the policy in one vector."""
    return torch.cat([p.grad.detach().double().flatten() for p in trainer.model.parameters() if p.grad is not None])


def measure(report: Report, args: argparse.Namespace, prompt: int, turns: int, samples: int, tokenizer: Any) -> None:
    """All variants of one shape, and how far their gradients are from those of TRL's rows."""
    generator = random.Random(0)
    task = [generator.randrange(VOCAB) for _ in range(prompt)]
    episodes = [trajectory(generator, task, turns) for _ in range(samples)]
    updates: dict[str, Callable[[], float]] = {}
    values: dict[str, dict[str, Any]] = {}
    exact: torch.Tensor | None = None
    with tempfile.TemporaryDirectory() as directory:
        for kind in (TRL, *MINE):
            build = update_of_trl if kind == TRL else lambda *rest, kind=kind: update_of(kind, *rest)
            trainer, updates[kind] = build(episodes, tokenizer, args, directory)
            values[kind] = {"peak_bytes": peak_memory(updates[kind], args.device)}
            if kind in EXACT:
                found = gradient(trainer)
                exact = found if exact is None else exact
                error = float((found - exact).norm() / exact.norm())
                values[kind]["gradient_error"] = error
                assert error < 1e-3 or args.device != "cpu", (
                    f"{kind} has another gradient than TRL's rows: {error:.1e}"
                )
            trainer.model.zero_grad(set_to_none=True)
        case = f"prompt {prompt}, {turns} turns, {samples} samples"
        timings = compare(updates, args.repeats, TRL, warmup=0, label=case)
    report.add(case, timings, TRL, {"prompt": prompt, "turns": turns, "samples": samples}, values)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--hidden_size", type=int, default=256)
        parser.add_argument("--layers", type=int, default=2)
        parser.add_argument("--rows", type=int, default=6, help="turns in one pass of TRL's")

    args = parse_arguments(__doc__, add, repeats=3)
    args.gradient_checkpointing = False
    shapes = [(400, 6, 4), (100, 6, 4), (1500, 16, 2)]  # prompt, turns, samples of the one task
    if args.smoke:
        args.hidden_size, args.layers, shapes = 32, 1, [(40, 2, 2)]
        update_step.STATE, update_step.ACTION, update_step.OBSERVATION = 15, 5, 50
    tokenizer = make_tokenizer()
    settings = {name: getattr(args, name) for name in ("hidden_size", "layers", "rows")}
    settings |= {name.lower(): getattr(update_step, name) for name in ("STATE", "ACTION", "OBSERVATION")}
    settings["vocabulary"] = VOCAB
    report = Report("trainer_update", args, settings)
    for shape in shapes:
        measure(report, args, *shape, tokenizer)
    report.finish()


if __name__ == "__main__":
    main()
