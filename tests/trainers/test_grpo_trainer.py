"""Tests of GRPO over trajectories: equal to TRL's on one turn, and right where episodes have several."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from support.helpers import tiny_model
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    ScriptedGenerator,
    assert_same_tensors,
    copy_parameters,
    lookup_dataset,
    planned,
    record,
    trainer_arguments,
    trl_arguments,
)
from trl import GRPOConfig, GRPOTrainer

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1Protocol, StopReason, Trajectory
from mem1_trl.trainers.grpo import model_name

EPISODE_METRICS = [
    "turns",
    "generated_tokens",
    "peak_tokens",
    "peak_tokens_without_prompt",
    "dependency_length",
    "state_tokens",
    "valid_action_rate",
    "repeated_actions",
    "failed_actions",
]


def odd_reward(completion_ids, **kwargs) -> list[float]:
    """A number that differs between completions and depends on nothing but their ids."""
    return [float(sum(ids) % 11 - len(ids)) for ids in completion_ids]


def make(tmp_path, model, tokenizer, layout="packed", environment=LookupEnvironment, **kwargs):
    """A GRPO trainer on the lookup task; keyword arguments that the trainer does not know go to the configuration."""
    own = {
        key: kwargs.pop(key)
        for key in (
            "reward_funcs",
            "train_dataset",
            "eval_dataset",
            "protocol",
            "peft_config",
            "tools",
            "rollout_func",
        )
        if key in kwargs
    }
    episodes = {} if environment is None else {"max_turns": 4, "max_observation_length": 40}
    settings = {"num_generations": 4, **episodes, "layout": layout, **kwargs}
    own.setdefault("train_dataset", lookup_dataset())
    if environment is not None:
        own.setdefault("protocol", SHORT)
    return Mem1GRPOTrainer(
        model=model,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **settings)),
        processing_class=tokenizer,
        environment_factory=environment,
        **own,
    )


def scripted(trainer, tokenizer, plan) -> ScriptedGenerator:
    """Give a trainer a scripted policy in place of its model's samples."""
    trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(plan))
    return trainer.rollout.generate


# One turn is GRPO


def ending_model(directory) -> str:
    """A random model, saved, in which a tenth of all tokens end a sequence."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = list(range(1, 320, 10))
    model.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "dapo"},
        {"loss_type": "grpo"},
        {"loss_type": "bnpo"},
        {"loss_type": "dr_grpo"},
        {"loss_type": "cispo"},
        {"loss_type": "dapo", "beta": 0.1},
        {"loss_type": "grpo", "beta": 0.1, "num_iterations": 2, "gradient_accumulation_steps": 2},
        {"loss_type": "dapo", "steps_per_generation": 2, "temperature": 0.7},
        {"loss_type": "dapo", "scale_rewards": "batch", "entropy_coef": 0.01},
        {"loss_type": "dapo", "mask_truncated_completions": True},
        {"loss_type": "dapo", "top_entropy_quantile": 0.5},
        {"loss_type": "dapo", "environment": True},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
def test_one_turn_equals_grpo_trainer(tmp_path, tokenizer, settings):
    """Loss, gradient of every parameter and parameters after two steps, against TRL's own trainer."""
    settings = dict(settings)
    environment = settings.pop("environment", False)
    dataset = Dataset.from_dict({"prompt": ["task 1?", "task 2?", "task 3?", "task 4?"]})
    runs = []
    for ours in (False, True):
        arguments = trl_arguments(
            tmp_path / str(ours),
            num_generations=4,
            per_device_train_batch_size=8,
            max_grad_norm=0.0,
            max_completion_length=8,
            optim="sgd",  # Adam makes a full step of a gradient that is nothing but rounding
            learning_rate=1e-2,
            **settings,
        )
        kwargs = {}
        if ours:
            # Where actions end a turn, ended sequences leave the batch, and the others draw other random numbers than in TRL
            args = Mem1GRPOConfig(max_turns=1, prefix_cache=not environment, conversational=False, **arguments)
            if environment:
                # Tags of which a random model writes none, so that every completion is one turn that ends as in TRL
                kwargs["environment_factory"] = LookupEnvironment
                kwargs["protocol"] = Mem1Protocol(
                    instructions="{prompt}", action_tags={"unlikely": "search"}, answer_tag="never"
                )
        else:
            args = GRPOConfig(**arguments)
        trainer = (Mem1GRPOTrainer if ours else GRPOTrainer)(
            model=ending_model(tmp_path / "model"),
            reward_funcs=odd_reward,
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
            **kwargs,
        )
        recorder = record(trainer)
        if environment and ours:
            trainer.reward_weights[1] = 0.0  # the environment's own, which TRL's run has not
        trainer.train()
        runs.append((trainer, recorder))
    (theirs, reference), (mine, recorder) = runs
    for expected, batch in zip(reference.batches, recorder.batches, strict=True):
        assert torch.equal(expected["completion_ids"], batch["completion_ids"])
        assert torch.equal(expected["completion_mask"], batch["completion_mask"])
        torch.testing.assert_close(expected["advantages"], batch["advantages"])
    lengths = torch.cat([batch["completion_mask"].sum(1) for batch in recorder.batches])
    assert lengths.min() < lengths.max()  # some end early, some run out
    assert len(recorder.losses) == len(reference.losses) > 0
    for expected, loss in zip(reference.losses, recorder.losses):
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for expected, gradients in zip(reference.gradients, recorder.gradients, strict=True):
        assert_same_tensors(expected, gradients, 1e-5)
        assert any(float(gradient.abs().max()) > 1e-4 for gradient in gradients.values())
    assert_same_tensors(copy_parameters(theirs.model), copy_parameters(mine.model), 1e-5)
    for expected, logs in zip(reference.logs[:-1], recorder.logs[:-1], strict=True):  # the last sums up the run
        shared = {key for key in expected if key.startswith(("reward", "completions/mean", "entropy", "kl", "clip"))}
        assert shared
        for key in shared:
            assert logs[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5), key


# Several turns


def test_every_parameter_changes_and_every_metric_is_logged_at_every_step(tmp_path, tokenizer, actor):
    before = copy_parameters(actor)
    trainer = make(tmp_path, actor, tokenizer, per_device_train_batch_size=8, max_steps=3, num_generations=8)
    recorder = record(trainer)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    steps = [logs for logs in recorder.logs if "loss" in logs]
    assert len(steps) == 3
    for logs in steps:
        wanted = [f"episode/{key}" for key in EPISODE_METRICS]
        wanted += [f"episode/stop_reason/{reason}" for reason in StopReason]
        wanted += [
            "sampling/max_logp_difference",
            "reward",
            "reward_std",
            "frac_reward_zero_std",
            "entropy",
            "num_tokens",
        ]
        wanted += ["rewards/LookupEnvironment/mean", "rewards/LookupEnvironment/std", "clip_ratio/region_mean"]
        wanted += [
            f"completions/{kind}_{part}" for kind in ("mean", "min", "max") for part in ("length", "terminated_length")
        ]
        wanted += ["completions/clipped_ratio", "learning_rate", "grad_norm"]
        assert not [key for key in wanted if key not in logs]
        assert sum(logs[f"episode/stop_reason/{reason}"] for reason in StopReason) == pytest.approx(1.0)
        assert 1.0 <= logs["episode/turns"] <= 4.0
        assert logs["completions/clipped_ratio"] == logs["episode/stop_reason/truncated"]
        assert logs["completions/mean_length"] == pytest.approx(logs["episode/generated_tokens"])


@pytest.mark.parametrize(("layout", "exact"), [("packed", True), ("per_turn", True), ("paper", False)])
def test_update_scores_tokens_as_they_were_sampled(tmp_path, tokenizer, actor, layout, exact):
    """Invariant 1 in training: only the paper's stitched row disagrees with the sampler, from the third turn on."""
    trainer = make(
        tmp_path, actor, tokenizer, layout, per_device_train_batch_size=16, num_generations=8, max_steps=1, seed=1,
        rollout_mode="lockstep",
    )  # fmt: skip
    recorder = record(trainer)
    trainer.train()
    (batch,) = recorder.batches
    assert int(batch["turn_ids"].max()) >= 2
    assert batch["sampling_per_token_logps"] is not None
    gap = recorder.logs[0]["sampling/max_logp_difference"]
    assert gap < 1e-4 if exact else gap > 0.01


def test_packed_and_per_turn_give_the_same_loss_and_gradient(tmp_path, tokenizer, actor):
    actor.save_pretrained(tmp_path / "model")
    runs = []
    for layout in ("packed", "per_turn"):
        trainer = make(
            tmp_path / layout,
            str(tmp_path / "model"),
            tokenizer,
            layout,
            per_device_train_batch_size=8,
            max_steps=1,
            max_grad_norm=0.0,
            beta=0.05,
        )
        scripted(trainer, tokenizer, lambda i: (1 + i % 4, i % 3))
        recorder = record(trainer)
        trainer.train()
        assert trainer.layout == layout
        runs.append(recorder)
    one, other = runs
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-5, atol=1e-6)
    assert_same_tensors(one.gradients[0], other.gradients[0], 1e-4)
    assert one.logs[0]["entropy"] == pytest.approx(other.logs[0]["entropy"], rel=1e-5)


def turns_and_rewards(i: int) -> tuple[int, int]:
    return (1, 4, 2, 3, 2, 2, 1, 3)[i], (0, 1, 0, 0, 1, 2, 1, 0)[i]


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_group_statistics_count_trajectories(tmp_path, tokenizer, actor, scale):
    """Invariant 5: a group is its trajectories, however many turns or tokens each has."""
    trainer = make(tmp_path, actor, tokenizer, per_device_train_batch_size=8, max_steps=1, scale_rewards=scale)
    scripted(trainer, tokenizer, turns_and_rewards)
    recorder = record(trainer)
    seen = []
    scoring = trainer._calculate_rewards

    def spy(*args):
        per_function = scoring(*args)
        seen.append((per_function[:, 0].clone(), [len(t.turns) for t in trainer.current_batch.trajectories]))
        return per_function

    trainer._calculate_rewards = spy
    trainer.train()
    ((rewards, turns),) = seen
    assert turns == [turns_and_rewards(i)[0] for i in range(8)]
    assert 0 < rewards.sum() < 8
    groups = rewards.view(2, 4)
    expected = groups - groups.mean(1, keepdim=True)
    if scale == "group":
        expected = expected / (groups.std(1, keepdim=True) + 1e-4)
    elif scale == "batch":
        expected = expected / (rewards.std() + 1e-4)
    torch.testing.assert_close(recorder.batches[0]["advantages"], expected.flatten())


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_the_gradient_does_not_depend_on_micro_batches(tmp_path, tokenizer, actor, loss_type):
    """Invariant 5, second half: four rows at once, or one at a time."""
    gradients, losses = [], []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        trainer = make(
            tmp_path / str(size),
            copy.deepcopy(actor),
            tokenizer,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0.0,
            loss_type=loss_type,
            reward_funcs=odd_reward,
        )
        scripted(trainer, tokenizer, lambda i: (1 + i, i % 2))
        recorder = record(trainer)
        trainer.train()
        gradients.append(recorder.gradients[0])
        losses.append(sum(recorder.losses))
    assert max(float(gradient.abs().max()) for gradient in gradients[0].values()) > 1e-3
    for other in gradients[1:]:
        assert_same_tensors(gradients[0], other, 1e-4)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_batch_is_its_hand_computed_value(tmp_path, tokenizer, actor):
    """With the ratio at 1 the dapo loss is minus the mean advantage over sampled tokens, environment tokens left out."""
    trainer = make(tmp_path, actor, tokenizer, per_device_train_batch_size=8, max_steps=1)
    scripted(trainer, tokenizer, turns_and_rewards)
    recorder = record(trainer)
    trainer.train()
    (batch,) = recorder.batches
    counts = batch["tool_mask"].mul(batch["completion_mask"]).sum(1)
    assert int(counts.sum()) == int(batch["num_items_in_batch"])
    expected = -(batch["advantages"] * counts).sum() / counts.sum()
    torch.testing.assert_close(recorder.losses[0], expected, rtol=1e-5, atol=1e-6)
    # Every sampled token is in the row exactly once: <think> i . t </think> <tag> argument </tag>
    lengths = []
    for i in range(8):
        turns = turns_and_rewards(i)[0]
        lengths.append(sum(5 + 2 + (1 if turn == turns else turn) for turn in range(1, turns + 1)))
    assert sorted(counts.tolist()) == sorted(lengths)


# Rewards


@pytest.mark.parametrize("conversational", [False, True])
def test_reward_functions_see_what_is_documented(tmp_path, tokenizer, actor, conversational):
    seen = {}

    def look(prompts, completions, completion_ids, trajectories, environments, secret, trainer_state, **kwargs):
        seen.update(locals())
        return [0.5 * len(t.turns) for t in trajectories]

    dataset = lookup_dataset()
    if conversational:
        dataset = dataset.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    trainer = make(
        tmp_path, actor, tokenizer, reward_funcs=look, train_dataset=dataset, max_steps=1, reward_weights=[2.0]
    )
    scripted(trainer, tokenizer, lambda i: (1 + i, 0))
    recorder = record(trainer)
    trainer.train()
    trajectories = seen["trajectories"]
    assert [len(t.turns) for t in trajectories] == [1, 2, 3, 4]
    assert all(isinstance(t, Trajectory) for t in trajectories)
    assert seen["completion_ids"] == [[i for turn in t.turns for i in turn.completion_ids] for t in trajectories]
    assert all(isinstance(e, LookupEnvironment) for e in seen["environments"])
    assert len({id(e) for e in seen["environments"]}) == 4
    assert [e.secret for e in seen["environments"]] == seen["secret"]
    second = seen["completions"][1]
    observation = f"<information>3;{seen['secret'][1]}</information>"
    if conversational:
        assert second == [
            {"role": "assistant", "content": "<think>1.1</think><search>y</search>"},
            {"role": "tool", "name": "search", "content": observation},
            {"role": "assistant", "content": "<think>1.2</think><answer>0</answer>"},
        ]
        assert tokenizer.decode(trajectories[0].prompt_ids).endswith("?;assistant:")
    else:
        assert second == f"<think>1.1</think><search>y</search>{observation}<think>1.2</think><answer>0</answer>"
    # The environment's own reward has weight 1 and is added
    own = [e.get_reward() for e in seen["environments"]]
    expected = [2.0 * 0.5 * (1 + i) + own[i] for i in range(4)]
    assert recorder.logs[0]["reward"] == pytest.approx(sum(expected) / 4)
    assert [t.reward for t in trajectories] == pytest.approx(expected)
    assert recorder.logs[0]["rewards/look/mean"] == pytest.approx(1.25)
    assert trainer.args.reward_weights == [2.0]


def test_what_reset_returns_is_part_of_the_task(tmp_path, tokenizer, actor):
    class Greeting(LookupEnvironment):
        def reset(self, **row):
            super().reset(**row)
            return f" Hello {self.secret}."

    protocol = Mem1Protocol(**{**SHORT.to_dict(), "instructions": "({prompt})", "scratch_tags": ()})
    trainer = make(tmp_path, actor, tokenizer, environment=Greeting, protocol=protocol, max_steps=1)
    generator = scripted(trainer, tokenizer, lambda i: (1, 0))
    trainer.train()
    assert re.fullmatch(r"\((ab)*q\d\? Hello [012]\.\)", tokenizer.decode(generator.prompts[0][0]))


def test_an_environment_may_own_the_tasks(tmp_path, tokenizer, actor):
    class Tasks(LookupEnvironment):
        made = 0

        def reset(self, **row):
            super().reset(secret="1")
            type(self).made += 1
            return f"q{type(self).made}?"

    trainer = make(tmp_path, actor, tokenizer, environment=Tasks, train_dataset=None, max_steps=2)
    generator = scripted(trainer, tokenizer, lambda i: (2, i % 2))
    recorder = record(trainer)
    trainer.train()
    assert Tasks.made == 8 and len(recorder.losses) == 2
    # Environments are reset at once, in no order
    assert sorted(tokenizer.decode(prompt) for prompt in generator.prompts[0]) == [f"q{i}?" for i in range(1, 5)]


def test_an_environment_with_tasks_needs_a_number_of_steps(tmp_path, tokenizer, actor):
    with pytest.raises(ValueError, match="set `max_steps`"):
        make(tmp_path, actor, tokenizer, train_dataset=None, max_steps=-1)


def test_rows_choose_among_several_environments(tmp_path, tokenizer, actor):
    class Other(LookupEnvironment):
        def get_reward(self) -> float:
            return 10.0

    dataset = lookup_dataset().add_column("environment", ["lookup", "other"] * 2)
    trainer = make(
        tmp_path,
        actor,
        tokenizer,
        environment={"lookup": LookupEnvironment, "other": Other},
        train_dataset=dataset,
        num_generations=2,
        per_device_train_batch_size=8,
        max_steps=1,
    )
    scripted(trainer, tokenizer, lambda i: (1 + i % 2, 0))
    seen = []
    scoring = trainer._calculate_rewards

    def spy(inputs, *args):
        result = scoring(inputs, *args)
        seen.append(([row["environment"] for row in inputs], list(trainer.environments), result.clone()))
        return result

    trainer._calculate_rewards = spy
    recorder = record(trainer)
    trainer.train()
    ((names, environments, per_function),) = seen
    assert sorted(names) == ["lookup"] * 4 + ["other"] * 4
    assert [type(e).__name__ for e in environments] == [
        {"lookup": "LookupEnvironment", "other": "Other"}[n] for n in names
    ]
    assert len({id(e) for e in environments}) == 8
    for name, (lookup, other) in zip(names, per_function.tolist()):
        assert (other == 10.0 and lookup != lookup) if name == "other" else (other != other and lookup in (0.0, 1.0))
    assert recorder.logs[0]["rewards/Other/mean"] == 10.0


def test_truncated_episodes_can_be_left_out(tmp_path, tokenizer, actor):
    """The first action of episode 0 does not fit; its tokens are in no loss, and the others' count alone."""
    trainer = make(tmp_path, actor, tokenizer, mask_truncated_completions=True, max_steps=1)
    plan = planned(lambda i: (1 + i % 2, i % 3))

    def script(call, index, prompt):
        return "<think>cut" if call == 0 and index == 0 else plan(call, index, prompt)

    trainer.rollout.generate = ScriptedGenerator(tokenizer, script)
    recorder = record(trainer)
    trainer.train()
    (batch,) = recorder.batches
    counts = batch["completion_mask"].mul(batch["tool_mask"]).sum(1)
    assert (counts == 0).sum() == 1
    assert int(batch["num_items_in_batch"]) == int(counts.sum())
    assert recorder.logs[0]["completions/clipped_ratio"] == 0.25
    assert trainer.mask_truncated_completions is True


def test_unscored_trajectories_are_no_part_of_their_group(tmp_path, tokenizer, actor):
    def sometimes(trajectories, **kwargs):
        return [None if len(t.turns) == 1 else float(len(t.turns)) for t in trajectories]

    class NoReward(LookupEnvironment):
        get_reward = None

    trainer = make(
        tmp_path, actor, tokenizer, environment=NoReward, reward_funcs=[sometimes], max_steps=1, scale_rewards="none"
    )
    scripted(trainer, tokenizer, lambda i: (1 + i, 0))
    recorder = record(trainer)
    trainer.train()
    torch.testing.assert_close(recorder.batches[0]["advantages"], torch.tensor([0.0, -1.0, 0.0, 1.0]))


# Evaluation


def test_evaluation_decodes_greedily_and_leaves_no_trace(tmp_path, tokenizer, actor):
    """Pitfall 11: the reference samples in validation."""
    trainer = make(
        tmp_path,
        actor,
        tokenizer,
        eval_dataset=lookup_dataset(4),
        per_device_eval_batch_size=8,
        num_generations_eval=2,
        temperature=1.3,
    )
    texts = []
    play = trainer.rollout.run

    def spy(episodes):
        trajectories = play(episodes)
        texts.append([[turn.completion_ids for turn in t.turns] for t in trajectories])
        return trajectories

    trainer.rollout.run = spy
    config, kwargs = trainer.generation_config.to_dict(), dict(trainer.generation_kwargs)
    first = trainer.evaluate()
    second = trainer.evaluate()
    assert texts[0] == texts[1]
    assert texts[0][0::2] == texts[0][1::2]  # two of each task, and no difference
    assert first["eval_reward"] == second["eval_reward"]
    assert {"eval_loss", "eval_episode/turns", "eval_rewards/LookupEnvironment/mean"} <= set(first)
    assert first["eval_sampling/max_logp_difference"] < 1e-4
    assert trainer.generation_config.to_dict() == config and trainer.generation_kwargs == kwargs
    assert config["do_sample"] is True and config["temperature"] == 1.3
    # Greedy: the likeliest token everywhere
    prompt = tokenizer("q0?")["input_ids"]
    logits = actor(input_ids=torch.tensor([[*prompt, *texts[0][0][0]]])).logits[0, len(prompt) - 1 : -1]
    assert tuple(logits.argmax(-1).tolist()) == texts[0][0][0]
    # And training samples again
    trainer.train()
    assert len({str(episode) for episode in texts[2]}) > 1


def test_evaluation_can_sample(tmp_path, tokenizer, actor):
    trainer = make(
        tmp_path, actor, tokenizer, eval_dataset=lookup_dataset(1), per_device_eval_batch_size=8,
        num_generations_eval=8, eval_temperature=None,
    )  # fmt: skip
    seen = []
    play = trainer.rollout.run
    trainer.rollout.run = lambda episodes: seen.extend(play(episodes)) or seen
    trainer.evaluate()
    assert len({trajectory.turns[0].completion_ids for trajectory in seen}) > 1


# Bad input, before any training


def refused(error, tmp_path, tokenizer, **kwargs) -> str:
    """The one sentence with which a trainer is refused."""
    with pytest.raises(error) as caught:
        make(tmp_path, tiny_model("llama"), tokenizer, **kwargs)
    message = str(caught.value)
    assert "\n" not in message.strip() and message.strip().endswith(".")
    return message


def image_dataset():
    return Dataset.from_dict({"prompt": ["a"] * 4, "image": ["x.png"] * 4})


class WithoutReset:
    def search(self, query: str) -> str:
        """Look."""
        return ""


class WithoutReward(LookupEnvironment):
    get_reward = None


NO_TOOLS = {"environment": None, "reward_funcs": odd_reward}


def test_a_protocol_is_named_as_that_of_an_agent_is(tmp_path, tokenizer):
    trainer = make(tmp_path, tiny_model("llama"), tokenizer, protocol="reference", max_observation_length=200)
    assert trainer.protocol == Mem1Protocol.reference()


@pytest.mark.parametrize(
    ("error", "kwargs", "words"),
    [
        (ValueError, {**NO_TOOLS, "train_dataset": Dataset.from_dict({"question": ["a"] * 4})}, "no column 'prompt' .*question.*rename"),
        (ValueError, {**NO_TOOLS, "eval_dataset": Dataset.from_dict({"question": ["a"] * 4})}, "eval dataset has no column 'prompt'"),
        (ValueError, {**NO_TOOLS, "eval_dataset": {"x": Dataset.from_dict({"q": ["a"]})}}, "eval dataset 'x' has no column 'prompt'"),
        (ValueError, {"environment": WithoutReset}, "WithoutReset has no `reset` method"),
        (ValueError, {"environment": WithoutReward}, "no reward: pass `reward_funcs`"),
        (ValueError, {"environment": None}, "no reward: pass `reward_funcs`"),
        (ValueError, {"environment": {}}, "empty dictionary"),
        (TypeError, {"environment": LookupEnvironment()}, "`environment_factory` must be a class or function .* got LookupEnvironment"),
        (TypeError, {"environment": {"a": 3}}, r"`environment_factory`\['a'\] must be a class or function .* got int"),
        (ValueError, {"environment": {"a": LookupEnvironment}}, "no column 'environment'"),
        (ValueError, {"environment": {"a": LookupEnvironment}, "train_dataset": Dataset.from_dict({"prompt": ["q"] * 2000, "environment": ["a"] * 1999 + ["b"]})}, "column `environment` must be one of 'a' in every row, got 'b'"),
        (ValueError, {"environment": {"a": LookupEnvironment}, "train_dataset": None}, "`train_dataset` is missing"),
        (ValueError, {"environment": None, "train_dataset": None, "reward_funcs": odd_reward}, "`train_dataset` is missing"),
        (ValueError, {"protocol": Mem1Protocol(action_tags={"find": "lookup"})}, "The tag 'find' calls 'lookup'"),
        (TypeError, {"protocol": 7}, "`protocol` must be a Mem1Protocol, the name of a preset, or None for the one saved with the model, got a int"),
        (ValueError, {"protocol": "papier"}, "protocol is 'papier', but must be one of default, paper, reference, "),
        (ValueError, {"max_context_length": 5}, "Row 2 of the train dataset has a task prompt of 7 tokens"),
        (ValueError, {"max_context_length": 70, "eval_dataset": {"x": Dataset.from_dict({"prompt": ["q?", "ab" * 40]})}}, "Row 1 of the eval dataset 'x' has a task prompt of 80 tokens"),
        (ValueError, {"max_context_length": 70, "eval_dataset": Dataset.from_dict({"prompt": ["ab" * 10]})}, r"A context may need 72 tokens \(prompt 20, .* allowed, for the eval dataset: lower"),
        (ValueError, {"max_context_length": 30}, r"A context may need 59 tokens \(prompt 7, .* 12, .* 40\)"),
        (ValueError, {"max_observation_length": 5}, "max_observation_length=5 is less than"),
        (ValueError, {"max_completion_length": 5000}, "max_completion_length must be less than the model's 4096 positions, got 5000"),
        (ValueError, {"tools": [lambda x: x]}, "`tools` are not supported.*methods of an environment"),
        (ValueError, {"rollout_func": lambda prompts, trainer: {}}, "`rollout_func` is not supported"),
        (ValueError, {"train_dataset": image_dataset()}, "The column 'image' of train dataset would be an image"),
        (ValueError, {"reward_weights": [1.0, 2.0], "reward_funcs": odd_reward}, "reward_weights has 2 numbers for 1"),
        (ValueError, {"environment": None, "reward_funcs": odd_reward, "protocol": SHORT}, "pass `environment_factory`"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_at_once_in_one_sentence(tmp_path, tokenizer, error, kwargs, words):
    assert re.search(words, refused(error, tmp_path, tokenizer, **kwargs))


@pytest.mark.parametrize(("conversational", "prompt"), [(False, "q5?"), (None, "user:q5?;assistant:")])
def test_rows_without_prompts_need_an_environment_that_gives_the_task(
    tmp_path, tokenizer, actor, conversational, prompt
):
    """As in TRL, the columns of such rows are all that `reset` gets."""

    class Seeded(LookupEnvironment):
        def reset(self, seed: int) -> str:
            super().reset(secret="1")
            return f"q{seed}?"

    dataset = Dataset.from_dict({"seed": [5] * 4})
    trainer = make(
        tmp_path,
        actor,
        tokenizer,
        environment=Seeded,
        train_dataset=dataset,
        max_steps=1,
        conversational=conversational,
    )
    generator = scripted(trainer, tokenizer, lambda i: (1, i % 2))
    trainer.train()
    assert tokenizer.decode(generator.prompts[0][0]) == prompt
    trainer = make(tmp_path, actor, tokenizer, train_dataset=Dataset.from_dict({"question": ["a"] * 4}))
    with pytest.raises(ValueError, match=r"no 'prompt'.*question.*LookupEnvironment returned no task: rename"):
        trainer.train()


def test_a_multimodal_processor_is_refused(tmp_path, tokenizer):
    from transformers import ProcessorMixin

    class Processor(ProcessorMixin):
        def __init__(self):
            pass

    assert "pass a tokenizer" in refused(ValueError, tmp_path, Processor())


def test_a_row_that_names_no_environment_is_an_error(tmp_path, tokenizer, actor):
    dataset = lookup_dataset().add_column("environment", ["lookup", "loookup"] * 2)
    trainer_of = lambda: make(  # noqa: E731
        tmp_path, actor, tokenizer, environment={"lookup": LookupEnvironment}, train_dataset=dataset, max_steps=4
    )
    with pytest.raises(ValueError, match=r"The column `environment` must be one of 'lookup'.*, got 'loookup'"):
        trainer_of().train()


def test_a_stream_of_rows_trains(tmp_path, tokenizer, actor):
    def rows():
        yield from lookup_dataset(8)

    trainer = make(tmp_path, actor, tokenizer, train_dataset=IterableDataset.from_generator(rows))
    scripted(trainer, tokenizer, lambda i: (1 + i % 2, i % 3))
    recorder = record(trainer)
    trainer.train()
    assert len(recorder.losses) == 2


def test_a_dataset_smaller_than_one_generation_batch_is_refused(tmp_path, tokenizer):
    dataset = lookup_dataset(1)
    message = refused(
        ValueError, tmp_path, tokenizer, train_dataset=dataset, per_device_train_batch_size=8, num_generations=4
    )
    assert "1 row" in message and "2" in message


def test_a_stream_without_prompts_is_an_error(tmp_path, tokenizer, actor):
    stream = IterableDataset.from_generator(lambda: iter([{"question": "a"}] * 8))
    kwargs = {"environment": None, "max_turns": 1, "reward_funcs": odd_reward}
    with pytest.raises((ValueError, KeyError), match="prompt"):
        make(tmp_path, actor, tokenizer, train_dataset=stream, **kwargs).train()


def test_reset_that_returns_no_text_is_an_error(tmp_path, tokenizer, actor):
    class Pictures(LookupEnvironment):
        def reset(self, **row):
            return [{"type": "image"}]

    words = "The first row cannot be played: `reset` of Pictures failed with ValueError: A message may hold text only, got a block of type 'image'"
    with pytest.raises(ValueError, match=words):
        make(tmp_path, actor, tokenizer, environment=Pictures)


def test_text_blocks_that_reset_returns_are_their_text(tmp_path, tokenizer, actor):
    """As TRL takes them."""

    class Blocks(LookupEnvironment):
        def reset(self, secret="7", **row):
            super().reset(secret=secret)
            return [{"type": "text", "text": " look"}, {"type": "text", "text": " up"}]

    trainer = make(tmp_path, actor, tokenizer, environment=Blocks)
    (row,) = trainer.prepare_rows([{"prompt": "q?", "secret": "1"}])
    assert row["prompt"] == "q? look up"


# Adapters


def test_only_the_adapter_trains(tmp_path, tokenizer, actor):
    from peft import LoraConfig

    trainer = make(
        tmp_path, actor, tokenizer, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        max_steps=2, beta=0.1, per_device_train_batch_size=8,
    )  # fmt: skip
    before = copy_parameters(trainer.model)
    recorder = record(trainer)
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    adapter = {name for name in before if "lora_" in name and ".default." in name}
    assert changed and changed <= adapter
    assert all("lora_B" not in name or name in changed for name in adapter)
    # The reference is the model without the adapter, in the same layout: no divergence before the first step
    assert recorder.logs[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert recorder.logs[1]["kl"] > 0.0


def test_the_default_output_directory_is_named_after_the_model():
    model = tiny_model("llama")
    assert model_name(model) == "model"
    model.config._name_or_path = "someone/small-model"
    assert model_name(model) == model_name("a/path/to/small-model/") == "small-model"


def test_a_first_batch_that_nothing_scores_is_an_error(tmp_path, tokenizer, actor):
    class Unscored(LookupEnvironment):
        def get_reward(self):
            return None

    trainer = make(tmp_path, actor, tokenizer, environment=Unscored)
    with pytest.raises(ValueError, match=r"Nothing scored any .* first batch.*: Unscored gave None for each"):
        trainer.train()


@pytest.mark.parametrize("kind", ["adapter", "frozen"])
def test_a_policy_without_a_trainable_weight_is_refused(tmp_path, actor, tokenizer, kind):
    """An adapter loaded for use used to train nothing, silently."""
    model = actor.requires_grad_(False)
    if kind == "adapter":
        get_peft_model(copy.deepcopy(actor), LoraConfig(target_modules=["q_proj"])).save_pretrained(
            tmp_path / "adapter"
        )
        model = PeftModel.from_pretrained(actor, tmp_path / "adapter")
    with pytest.raises(ValueError, match="must have weights that are trained, got none"):
        Mem1GRPOTrainer(
            model=model,
            args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=2)),
            train_dataset=lookup_dataset(),
            processing_class=tokenizer,
            environment_factory=LookupEnvironment,
            protocol=SHORT,
        )


def test_a_configuration_of_ppo_is_refused(tmp_path, actor, tokenizer):
    """It used to be taken, and its critic ignored."""
    with pytest.raises(TypeError, match="`args` must be a Mem1GRPOConfig, got a Mem1PPOConfig"):
        Mem1GRPOTrainer(
            model=actor,
            args=Mem1PPOConfig(**trainer_arguments(tmp_path)),
            train_dataset=lookup_dataset(),
            processing_class=tokenizer,
            environment_factory=LookupEnvironment,
        )
