"""Scripted policies, small environments and a trained tiny model: what the tests of rollout and trainers share."""

from __future__ import annotations

import random
import re
from typing import Any

import torch
from datasets import Dataset
from support.helpers import VOCAB, tiny_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from mem1_trl import Mem1Protocol
from mem1_trl.rollout.stopping import Completion, StopStringFinder, finish_completion

SHORT = Mem1Protocol(
    instructions="{prompt}",
    observation_template="<{tag}>{hint}{observation}</{tag}>",
    hint_template="{n};",
    last_hint_template="last;",
    over_hint_template="",
    truncation_marker="[cut]",
)
"""The default tags with as few bytes around them as possible, since the tiny tokenizer spends one token on a byte."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:{{ message['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def cut_first_turns(trainer: Any, lengths: dict[int, int]) -> None:
    """Cut the first turn of some episodes after so many tokens, as a budget that is too small does. Keys are their places in the batch."""
    generate, calls = trainer.rollout.generate, []

    def cut(prompts: Any, stops: Any, draws: Any = None) -> list[Completion]:
        completions = generate(prompts, stops, draws)
        calls.append(len(completions))
        if len(calls) == 1:
            for index, length in lengths.items():
                one = completions[index]
                completions[index] = Completion(one.ids[:length], one.logprobs and one.logprobs[:length], False)
        return completions

    trainer.rollout.generate = cut


class ScriptedGenerator:
    """
    A backend that says what it is told, cut where a real one would stop.

    Args:
        tokenizer: Encodes the texts.
        script (`list[list[str]]` or callable): Texts per call, one for each context; or a function of
            `(call, index, prompt text)`. A text ends with an end-of-sequence token if it ends in `<eos>`.
        max_length (`int`, *optional*): Most tokens of one completion.
    """

    def __init__(self, tokenizer: Any, script: Any, max_length: int | None = None):
        self.tokenizer = tokenizer
        self.script = script
        self.max_length = max_length
        self.stop_texts = StopStringFinder(tokenizer)
        self.eos_token_ids = [tokenizer.eos_token_id]
        self.prompts: list[list[list[int]]] = []
        self.stops: list[list[list[str]]] = []

    def __call__(self, prompts: list[list[int]], stops: list[list[str]], draws: Any = None) -> list[Completion]:
        call = len(self.prompts)
        self.prompts.append([list(prompt) for prompt in prompts])
        self.stops.append(stops)
        completions = []
        for index, (prompt, stop) in enumerate(zip(prompts, stops, strict=True)):
            text = (
                self.script(call, index, self.tokenizer.decode(prompt))
                if callable(self.script)
                else self.script[call][index]
            )
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.max_length]
            completions.append(finish_completion(ids, None, stop, self.stop_texts, self.eos_token_ids))
        return completions


class LookupEnvironment:
    """Tells a secret to whoever searches for it; the reward is 1 for the secret."""

    def reset(self, prompt: Any = None, secret: str = "7", **row: Any) -> str | None:
        self.secret = secret
        self.given: str | None = None
        self.queries: list[str] = []
        return None

    def search(self, query: str) -> str:
        """Look the secret up."""
        self.queries.append(query)
        return self.secret

    def answer(self, text: str) -> None:
        """Give the secret."""
        self.given = text

    def get_reward(self) -> float:
        return float(self.given == self.secret)


class NoReward(LookupEnvironment):
    """Leaves the reward to reward functions."""

    get_reward = None


class SometimesDown(NoReward):
    """Cannot begin one of its tasks."""

    def reset(self, secret: str = "7", prompt: str = "", **row: Any) -> str | None:
        if "q1" in prompt:
            raise KeyError("row")
        return super().reset(secret=secret)


def score(trajectory: Any) -> float:
    """A number that differs between episodes: of their turns and of what they sampled."""
    return len(trajectory.turns) + 0.1 * (sum(trajectory.turns[0].completion_ids) % 17) - 1.0


def odd(trajectories: list[Any], **kwargs: Any) -> list[float]:
    """A reward function: [`score`] of each episode."""
    return [score(trajectory) for trajectory in trajectories]


def lookup_dataset(count: int = 4) -> Dataset:
    """`count` tasks of [`LookupEnvironment`] with prompts of different lengths."""
    return Dataset.from_dict(
        {"prompt": [f"{'ab' * (i % 3)}q{i}?" for i in range(count)], "secret": [str(i % 3) for i in range(count)]}
    )


def trained_model(tokenizer: PreTrainedTokenizerFast, steps: int = 150, hidden_size: int = 48) -> PreTrainedModel:
    """
    A two-layer Llama with four heads that acts: taught, by next-token prediction, one to three searches and then an answer.

    What it was taught is random where it has a choice (a second search, which digit to answer), so that sampling at
    temperature 1 gives trajectories of different lengths and rewards.
    """
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCAB,
        hidden_size=hidden_size,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    rows = random.Random(0)

    def search() -> str:
        return f"<think>{rows.choice('klm')}</think><search>{rows.choice('uvwxyz')}</search>"

    def example() -> tuple[list[int], int]:
        prompt = f"{'ab' * rows.randrange(3)}q{rows.randrange(8)}?"
        past = ""
        if rows.random() < 0.6:
            hint = rows.choice(["3;", "2;", "last;"])
            past = f"{search()}<information>{hint}{rows.randrange(3)}</information>"
        if past and rows.random() < 0.7:
            text = f"<think>{rows.choice('klm')}</think><answer>{rows.randrange(3)}</answer>"
        else:
            text = search()
        context = tokenizer(prompt + past, add_special_tokens=False)["input_ids"]
        return context + tokenizer(text, add_special_tokens=False)["input_ids"], len(context)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
    model.train()
    for _ in range(steps):
        examples = [example() for _ in range(32)]
        longest = max(len(ids) for ids, _ in examples)
        input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
        labels = torch.full_like(input_ids, -100)
        mask = torch.zeros_like(input_ids)
        for row, (ids, begin) in enumerate(examples):
            # On the left, as contexts stand when they are generated from
            input_ids[row, longest - len(ids) :] = torch.tensor(ids)
            labels[row, longest - len(ids) + begin :] = torch.tensor(ids[begin:])
            mask[row, longest - len(ids) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        loss = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def trainer_arguments(directory: Any, **kwargs: Any) -> dict[str, Any]:
    """Arguments of a quick run on one core; keyword arguments win."""
    # The same batches in every run, since environments answer at once or soon
    wait = {} if kwargs.get("rollout_mode") == "lockstep" else {"rollout_batch_wait": 10.0}
    return {
        "output_dir": str(directory),
        "learning_rate": 1e-3,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 12,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "conversational": False,  # the tiny actor was taught on texts
        **wait,
        "seed": 3,
        **kwargs,
    }


def trl_arguments(directory: Any, **kwargs: Any) -> dict[str, Any]:
    """The same for a configuration of TRL itself."""
    arguments = trainer_arguments(directory, **kwargs)
    del arguments["conversational"]
    arguments.pop("rollout_batch_wait", None)
    return arguments


def copy_parameters(model: Any) -> dict[str, torch.Tensor]:
    """Parameters by name, detached and copied."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class Recorder(TrainerCallback):
    """Keeps, for each optimizer step, the gradients it is about to take, and every logged dictionary."""

    def __init__(self):
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.logs: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(
            {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def record(trainer: Any) -> Recorder:
    """Attach a [`Recorder`] to a trainer; `recorder.losses` and `recorder.batches` fill up as it trains."""
    recorder = Recorder()
    recorder.losses, recorder.batches = [], []
    trainer.add_callback(recorder)
    loss_of, batch_of = trainer._compute_loss, trainer._generate_and_score_completions

    def compute_loss(model, inputs):
        loss = loss_of(model, inputs)
        recorder.losses.append(loss.detach().clone())
        return loss

    def generate_and_score(inputs):
        batch = batch_of(inputs)
        recorder.batches.append(batch)
        return batch

    trainer._compute_loss, trainer._generate_and_score_completions = compute_loss, generate_and_score
    return recorder


def train_and_count(trainer: Any) -> tuple[Recorder, list[int]]:
    """Train; what was recorded, and the number of tokens of each pass of the policy with gradient."""
    tokens: list[int] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            tokens.append(kwargs["input_ids"].numel())

    trainer.model.model.register_forward_pre_hook(hook, with_kwargs=True)
    recorder = record(trainer)
    trainer.train()
    return recorder, tokens


def planned(plan: Any) -> Any:
    """
    A script for [`ScriptedGenerator`] in which episode `i` of a batch searches until its last turn and then answers.

    `plan(i)` gives the number of turns and the answer. Who an episode is, and how far, it reads in its own state, so that
    the script does not depend on which episodes still run.
    """

    def script(call: int, index: int, prompt: str) -> str:
        past = re.findall(r"<think>(\d+)\.(\d+)</think>", prompt)
        episode, turn = (int(past[-1][0]), int(past[-1][1]) + 1) if past else (index, 1)
        turns, answer = plan(episode)
        action = f"<answer>{answer}</answer>" if turn >= turns else f"<search>{'xyz'[episode % 3] * turn}</search>"
        return f"<think>{episode}.{turn}</think>{action}"

    return script


def play_scripted(trainer: Any, tokenizer: PreTrainedTokenizerFast, plan: Any) -> None:
    """Let a trainer play every batch by the same plan, as [`planned`] has it."""
    prepare = trainer.prepare_rows

    def fresh(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(plan))
        return prepare(rows)

    trainer.prepare_rows = fresh


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    """
    Largest difference over the largest value, per tensor, is at most `tolerance`.

    A tensor whose values all but cancel is held against a hundredth of the largest value of all tensors.
    """
    assert one.keys() == other.keys() and one
    floor = 0.01 * max(float(tensor.abs().max()) for tensor in one.values())
    for name, tensor in one.items():
        scale = max(float(tensor.abs().max()), floor)
        worst = float((tensor - other[name]).abs().max())
        assert worst <= tolerance * scale, f"{name}: {worst} of {scale}"


def tiny_classifier() -> PreTrainedModel:
    """A random reward model that reads the tiny tokenizer's ids."""
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=0, bos_token_id=None, eos_token_id=1, num_labels=1,
    )  # fmt: skip
    torch.manual_seed(5)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
