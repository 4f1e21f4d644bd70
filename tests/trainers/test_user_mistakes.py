"""Tests of mistakes that users make: each is one sentence that says what to do, before anything is trained."""

from __future__ import annotations

import copy
import random
import sys

import pytest
import torch
from datasets import Dataset
from support.fault_environments import Importing
from support.helpers import tiny_model
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    NoReward,
    ScriptedGenerator,
    lookup_dataset,
    trainer_arguments,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from trl import GRPOTrainer

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig
from mem1_trl.environment_runtime.pool import EnvironmentPool
from mem1_trl.trainers.checks import _longest_rows
from mem1_trl.trainers.first_row import play_first_row
from mem1_trl.trainers.reward_functions import check_signatures


def make(tmp_path, model, tokenizer, environment=None, dataset=None, protocol=SHORT, **kwargs):
    episodes = {} if environment is None else {"max_turns": 3, "max_observation_length": 60}
    settings = {**episodes, "num_generations": 4, **kwargs.pop("args", {})}
    return Mem1GRPOTrainer(
        model=model,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
        train_dataset=lookup_dataset(8) if dataset is None else dataset,
        processing_class=tokenizer,
        environment_factory=environment,
        protocol=protocol,
        **kwargs,
    )


def test_a_package_that_an_action_lacks_ends_training(tmp_path, tokenizer, actor):
    rows = lookup_dataset(8).add_column("where", ["search"] * 8)
    trainer = make(tmp_path, actor, tokenizer, Importing, rows)
    trainer.rollout.generate = ScriptedGenerator(tokenizer, lambda *_: "<think>a</think><search>x</search>")
    with pytest.raises(ImportError, match="`search` of Importing cannot work here and would fail in every episode"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("rule", ["mem1", "compact"])
def test_a_budget_of_observations_that_the_last_hint_exceeds(tmp_path, tokenizer, actor, rule):
    """The last hint is longer than the first: it is met when an episode comes to its last turn but one."""
    first, last = (len(tokenizer("".join(SHORT.observation_frame(turns)))["input_ids"]) for turns in (2, 1))
    marker = len(tokenizer(SHORT.truncation_marker)["input_ids"])
    assert first < last
    args = {"context": rule, **({"context_kwargs": {"every": 1}} if rule == "compact" else {})}
    words = rf"max_observation_length={last + marker - 1} is less than .* need \({last + marker} tokens\): raise it"
    with pytest.raises(ValueError, match=words):
        make(tmp_path, actor, tokenizer, LookupEnvironment, args={"max_observation_length": last + marker - 1, **args})
    make(tmp_path, actor, tokenizer, LookupEnvironment, args={"max_observation_length": last + marker, **args})


# Before any model is loaded


@pytest.fixture
def no_model(monkeypatch):
    """Fails if a model is loaded, or an episode is played."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    for kind in (AutoModelForCausalLM, PreTrainedModel):
        monkeypatch.setattr(kind, "from_pretrained", refuse)
    monkeypatch.setattr(GRPOTrainer, "__init__", refuse)


class NoAction:
    def reset(self, **row):
        return None

    def get_reward(self):
        return 1.0


class NoRow(LookupEnvironment):
    def reset(self):
        return None


class Needy(LookupEnvironment):
    def __init__(self, shop):
        self.shop = shop


class WrongObservation(LookupEnvironment):
    def reset(self, prompt=None, secret="", **row):
        return ["a page"]


class WrongReward(LookupEnvironment):
    def get_reward(self):
        return "good"


class NeedsPrompt(LookupEnvironment):
    def reset(self, prompt, **row):
        return None


class NoSuchName(LookupEnvironment):
    def reset(self, **row):
        return self.shopp  # a typo


SMALL = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": []}, "The train dataset must have at least one row, got none"),
        ({"dataset": [{"prompt": {"question": "q"}}]}, "Row 0 of the train dataset must have a text or a list of messages as prompt, got a dict"),
        ({"dataset": [{"prompt": "q"}, {"prompt": " "}], "environment": None, "protocol": None}, "Row 1 of the train dataset has an empty prompt"),
        ({"dataset": [{"prompt": []}]}, "Row 0 of the train dataset has an empty prompt"),
        ({"dataset": [{"prompt": None}]}, "Row 0 of the train dataset must have a text or a list of messages as prompt, got None"),
        ({"dataset": [{"prompt": MESSAGES}]}, "The prompt of row 0 of the train dataset must end with a message of the user, got one of role 'assistant'"),
        ({"environment": NoAction}, "NoAction has no action: give it a public method with a docstring"),
        ({"environment": NoRow}, r"`reset` of NoRow must accept the columns of a row \(prompt, secret\), got a signature \(self\).*add `\*\*row`"),
        ({"environment": Needy}, "`environment_factory` must be callable without arguments, got Needy, which needs 'shop': pass `functools.partial"),
        ({"environment": LookupEnvironment()}, "must be a class or function without arguments"),
        ({"environment": WrongObservation}, "The first row cannot be played: .*`reset` of WrongObservation must return None or a string"),
        ({"environment": WrongReward}, "The first row cannot be played: .*get_reward gave a str: return a float"),
        ({"environment": NoSuchName}, "The first row cannot be played: `reset` of NoSuchName failed with AttributeError: .*shopp"),
        ({"args": {"report_to": ["wandbb"]}}, "report_to must name trackers among .*wandb, got 'wandbb'"),
        ({"model": None}, "`model` must be an id, a path or a model, got None"),
        ({"model": "runs/first/no-model"}, "There is no model at 'runs/first/no-model': check the path"),
        ({"model": "./gone"}, "There is no model at './gone': check the path"),
        ({"teacher_model": "./gone"}, "There is no teacher at './gone': check the path"),
        ({"model": AutoModel.from_config(AutoConfig.for_model("llama", **SMALL)), "dataset": None}, "^`model` must have an output head, got a LlamaModel: load it with AutoModelForCausalLM"),
        ({"dataset": [{"prompt": "q"}] * 1500 + [{"prompt": None}]}, "Row 1500 of the train dataset must have a text or a list of messages as prompt, got None"),
        ({"dataset": [{"prompt": "q"}] * 1500 + [{"prompt": ""}], "environment": None, "protocol": None}, "Row 1500 of the train dataset has an empty prompt"),
        ({"dataset": [{"prompt": MESSAGES[:1]}] * 1500 + [{"prompt": MESSAGES}]}, "The prompt of row 1500 of the train dataset must end with a message of the user"),
        ({"dataset": [{"question": "q"}], "environment": NeedsPrompt}, r"^The train dataset has no column 'prompt', which `reset` of NeedsPrompt needs \(it has question\): rename .*rename_column\('question', 'prompt'\)"),
        ({"model": T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))}, "T5ForConditionalGeneration is an encoder-decoder"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_a_mistake_is_one_sentence(no_model, tmp_path, tokenizer, actor, change, words):
    change = {"model": actor, "environment": LookupEnvironment, "reward_funcs": len, **change}
    if change.get("dataset") is not None:
        rows = change["dataset"]
        change["dataset"] = Dataset.from_list(rows) if rows else Dataset.from_dict({"prompt": []})
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=words) as caught:
        make(tmp_path, tokenizer=tokenizer, **change)
    assert "\n" not in str(caught.value)


def test_a_critic_that_is_nowhere_is_named_before_the_policy_is_loaded(no_model, tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"^There is no value model at './gone': check the path"):
        make_ppo(tmp_path, "examples/assets/tiny-mem1", tokenizer, value_model="./gone")


@pytest.mark.parametrize(
    ("package", "setting", "extra"),
    [("wandb", {"report_to": ["wandb"]}, "tracking"), ("vllm", {"use_vllm": True}, "vllm")],
)
def test_a_package_that_is_not_installed_is_named(
    no_model, tmp_path, tokenizer, actor, monkeypatch, package, setting, extra
):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    with pytest.raises(ImportError, match=rf'needs the package {package}.*pip install "mem1-trl\[{extra}\]"'):
        make(tmp_path, actor, tokenizer, LookupEnvironment, args=setting)


def test_an_encoder_decoder_is_refused_by_its_path(no_model, tmp_path, tokenizer):
    T5Config(vocab_size=8).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"is an encoder-decoder, .* a causal language model"):
        make(tmp_path, str(tmp_path / "t5"), tokenizer, LookupEnvironment)


def test_a_model_that_was_saved_without_a_head_is_refused_by_its_path(no_model, tmp_path, tokenizer):
    AutoModel.from_config(AutoConfig.for_model("llama", **SMALL)).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"^`model` must have an output head, got a LlamaModel: load it with"):
        make(tmp_path, str(tmp_path / "headless"), tokenizer, LookupEnvironment)


# Model and tokenizer


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tokenizer):
    largest = max(tokenizer.get_vocab().values())
    words = rf"^The model must have an embedding for each token of the tokenizer, whose largest id is {largest}, got one with 30 rows: pass"
    with pytest.raises(ValueError, match=words):
        make(tmp_path, tiny_model("llama", vocab_size=30), tokenizer, LookupEnvironment)
    make(tmp_path, tiny_model("llama", vocab_size=largest + 65), tokenizer, LookupEnvironment)  # padded


def test_a_special_token_that_no_text_has_needs_no_embedding(tmp_path, actor, tokenizer):
    """As the place of an image in the tokenizer of Gemma 3, whose text models lack it; padding is read."""
    larger = copy.deepcopy(tokenizer)
    rows = actor.get_input_embeddings().num_embeddings
    larger.add_tokens([f"unused{i}" for i in range(rows - len(larger))])
    larger.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    assert larger.convert_tokens_to_ids("<image_soft_token>") == rows
    make(tmp_path, actor, larger, LookupEnvironment)
    larger.add_special_tokens({"pad_token": "<more>"})
    with pytest.raises(ValueError, match=f"whose largest id is {rows + 1}, got one with {rows} rows"):
        make(tmp_path, actor, larger, LookupEnvironment)


# Long prompts, wherever they are


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_a_long_prompt_after_many_short_ones_is_found(tmp_path, actor, tokenizer, kind):
    prompts = ["ab" * (i % 3) for i in range(3000)]
    prompts[2345] = "x" * 500
    if kind == "messages":
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rows = Dataset.from_dict({"prompt": prompts, "secret": ["1"] * 3000})
    words = "^Row 2345 of the train dataset has a task prompt of 5.. tokens, but a context may have 300"
    with pytest.raises(ValueError, match=words):
        make(tmp_path, actor, tokenizer, LookupEnvironment, rows, args={"max_context_length": 300})


def test_the_longest_prompts_of_each_environment_are_counted():
    rows = {"prompt": ["a" * 50] * 2000 + ["é" * 40, "b" * 3], "environment": ["far"] * 2001 + ["near"]}
    numbers = _longest_rows(Dataset.from_dict(rows), routed=True)
    assert len(numbers) == 501 and numbers[-2:] == [2000, 2001]  # 80 bytes are more than 50
    assert _longest_rows(Dataset.from_dict({"secret": ["1"] * 9}), routed=False) == [0]


# Environments that own the tasks, and tokenizers without a chat template


class Owner(LookupEnvironment):
    def reset(self, **row):
        super().reset()
        return "q?"


@pytest.mark.parametrize("dataset", [None, Dataset.from_dict({"question": ["a"] * 8})])
@pytest.mark.parametrize("conversational", [None, False])
def test_a_task_of_an_environment_needs_no_chat_template(tmp_path, actor, tokenizer, dataset, conversational):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    arguments = trainer_arguments(tmp_path, max_turns=3, max_observation_length=60, num_generations=4, max_steps=1)
    trainer = Mem1GRPOTrainer(
        model=actor,
        args=Mem1GRPOConfig(**{**arguments, "conversational": conversational}),
        train_dataset=dataset,
        processing_class=plain,
        environment_factory=Owner,
        protocol=SHORT,
    )
    trainer.train()
    assert trainer.episodes[0].prompt == "q?"


def test_messages_without_a_chat_template_name_two_remedies(no_model, tmp_path, tokenizer, actor):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "q"}], "secret": "1"}] * 8)
    with pytest.raises(ValueError, match=r"set `tokenizer.chat_template`, or use texts and conversational=False"):
        make(tmp_path, actor, plain, LookupEnvironment, rows, args={"conversational": None})


@pytest.mark.parametrize("kind", [Mem1GRPOConfig, Mem1PPOConfig])
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"temperature": 0.0}, r"temperature must be at least 1e-05, .* got 0\.0: .*eval_temperature=0\.0"),
        ({"temperature": -1.0}, "temperature must be at least 1e-05"),
        ({"temperature": 1e-42}, "temperature must be at least 1e-05"),
        ({"learning_rate": "1e-6"}, r"learning_rate must be a number, got the text '1e-6'.*1\.0e-6"),
        ({"max_turns": "six"}, "max_turns must be a number, got the text 'six'"),
        ({"beta": "0.1"}, r"beta must be a number, got the text '0\.1'"),
    ],
)
def test_a_setting_that_cannot_work_is_one_sentence(tmp_path, kind, setting, words):
    with pytest.raises(ValueError, match=words):
        kind(str(tmp_path), bf16=False, **setting)


def test_an_argument_without_a_type_is_named(tmp_path, tokenizer, actor, caplog):
    class Untyped(LookupEnvironment):
        def add(self, a, b: int) -> str:
            """Add."""
            return ""

    make(tmp_path, actor, tokenizer, Untyped)
    assert "The argument 'a' of the action 'add' of Untyped has no type and is passed as text" in caplog.text


# The first row


class Counting(LookupEnvironment):
    made = resets = 0

    def __init__(self):
        type(self).made += 1

    def reset(self, **row):
        type(self).resets += 1
        random.random()
        return super().reset(**row)


def test_the_first_row_is_played_once_and_leaves_no_trace(tmp_path, tokenizer, actor):
    Counting.made = Counting.resets = 0
    pool = EnvironmentPool(Counting, SHORT)
    random.seed(5)
    play_first_row(pool, lookup_dataset(8))
    assert (Counting.made, Counting.resets) == (1, 1)
    assert random.random() == random.Random(5).random()
    assert not any(pool.caller.counts.reset().values())
    make(tmp_path, actor, tokenizer, Counting)
    assert (Counting.made, Counting.resets) == (2, 2)


def test_one_bad_row_is_no_mistake_and_each_environment_is_played():
    class Picky(LookupEnvironment):
        def reset(self, secret="", **row):
            if secret == "bad":
                raise KeyError("no such task")
            return super().reset(secret=secret)

    for rows, refused in (["bad", "1", "1"], False), (["bad"] * 3, True), (["bad"], True):
        dataset = Dataset.from_dict({"prompt": ["q"] * len(rows), "secret": rows})
        if refused:
            with pytest.raises(ValueError, match="`reset` of Picky failed with KeyError: 'no such task'"):
                play_first_row(EnvironmentPool(Picky, SHORT), dataset)
        else:
            play_first_row(EnvironmentPool(Picky, SHORT), dataset)
    several = Dataset.from_dict({"prompt": ["q"] * 2, "secret": ["1", "bad"], "environment": ["a", "b"]})
    with pytest.raises(ValueError, match="`reset` of Picky failed"):
        play_first_row(EnvironmentPool({"a": LookupEnvironment, "b": Picky}, SHORT), several)


@pytest.mark.parametrize(
    "error", [ConnectionError("the server starts"), TimeoutError("late"), RuntimeError("now and then")]
)
def test_what_may_pass_is_no_mistake(tmp_path, tokenizer, actor, caplog, error):
    class Away(LookupEnvironment):
        def reset(self, **row):
            raise error

    make(tmp_path, actor, tokenizer, Away, args={"environment_retries": 0})
    assert "The first row could not be played yet" in caplog.text and str(error) in caplog.text


# Reward functions


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (
            None,
            "The reward function 'score' must return a list with one number for each of 4 completions, got a NoneType",
        ),
        (1.0, "The reward function 'score' must return a list with one number for each of 4 completions, got a float"),
        (torch.tensor(1.0), "The reward function 'score' must return a list .* got a Tensor"),
        ([1.0], "The reward function 'score' returned 1 rewards, but 4 were expected"),
        ({"a": 1.0}, "The reward function 'score' must return a list .* got a dict"),
        ("1234", "The reward function 'score' must return a list .* got a str"),
    ],
)
def test_a_reward_function_is_named(tmp_path, tokenizer, actor, returned, words):
    def score(completions, **kwargs):
        return returned

    trainer = make(tmp_path, actor, tokenizer, LookupEnvironment, reward_funcs=score)
    with pytest.raises((ValueError, TypeError), match=words):
        trainer.train()


# What the log says about a run that learns nothing


def train_with_rewards(tmp_path, model, tokenizer, caplog, rewards):
    """Lines about missing rewards, of a run whose batches all get one of these rewards in turn."""
    given = iter(rewards)

    def score(completions, **kwargs):
        return [next(given)] * len(completions)

    class Silent(LookupEnvironment):
        get_reward = None

    settings = {"max_steps": len(rewards), "learning_rate": 0.0}
    trainer = make(tmp_path, model, tokenizer, Silent, reward_funcs=score, args=settings)
    texts = ["<think>a</think><answer>1</answer>"] * 3 + ["<think>b</think>"]
    trainer.rollout.generate = ScriptedGenerator(tokenizer, lambda call, index, prompt: texts[index % 4])
    caplog.clear()
    trainer.train()
    return [record.getMessage() for record in caplog.records if "got a reward above 0" in record.getMessage()]


@pytest.mark.parametrize(
    ("rewards", "lines"), [([0.0] * 5, 1), ([0.0, -1.0, None], 1), ([0.0, 0.0, 1.0, 0.0, 0.0], 0), ([0.0] * 2, 0)]
)
def test_three_batches_without_reward_are_one_line(tmp_path, tokenizer, actor, caplog, rewards, lines):
    said = train_with_rewards(tmp_path, actor, tokenizer, caplog, rewards)
    assert len(said) == lines
    if said:
        assert (
            "No episode of the last 3 batches got a reward above 0. They ended with: answer 9, truncated 3." in said[0]
        )
        assert "<answer>1</answer>" in said[0]


def test_reward_functions_that_could_not_be_called_are_refused(tmp_path, actor_path, tokenizer):
    def narrow(completions):
        return [0.0] * len(completions)

    def wants(completions, gold, **kwargs):
        return [0.0] * len(completions)

    def fine(completions, secret, **kwargs):
        return [0.0] * len(completions)

    words = r"'narrow' must take prompts, completions, .*environments, secret by name for the train dataset, got a signature \(completions\)"
    with pytest.raises(ValueError, match=words):
        make(tmp_path, actor_path, tokenizer, NoReward, reward_funcs=[fine, narrow])
    with pytest.raises(
        ValueError, match=r"'wants' must take .*: missing a required argument: 'gold'; add `\*\*kwargs`"
    ):
        make(tmp_path, actor_path, tokenizer, NoReward, reward_funcs=wants)
    # The columns of a stream may not be known
    check_signatures([wants, "a/model"], (), has_environment=True)
    with pytest.raises(ValueError, match="'narrow' must take"):
        check_signatures([narrow], (), has_environment=True)
