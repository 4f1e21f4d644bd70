"""On-policy distillation: what the trainers learn from a teacher, by plain forwards of each turn after the contexts that the teacher reads."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.objectives import (
    Watch,
    gradients_of,
    group_advantages,
    logprobs_of,
    policy_loss,
    value_loss,
    values_of,
)
from support.ppo_helpers import LORA, four_plans, gae, wake
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import (
    SHORT,
    NoReward,
    ScriptedGenerator,
    SometimesDown,
    assert_same_tensors,
    cut_first_turns,
    lookup_dataset,
    odd,
    planned,
    record,
    score,
    trainer_arguments,
)
from transformers import AutoModelForCausalLM

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer, Trajectory


def make(kind, tmp_path, path, tokenizer, **settings):
    settings = {
        "max_turns": 4, "max_observation_length": 40, "per_device_train_batch_size": 8, "num_iterations": 2, "max_steps": 2,
        "max_grad_norm": 0.0, "learning_rate": 1e-2, "environment_retries": 0, "beta": 0.0, "distillation_weight": 0.3, **settings,
    }  # fmt: skip
    further = {
        name: settings.pop(name) for name in ("teacher_model", "reward_funcs", "peft_config") if name in settings
    }
    further = {"reward_funcs": odd, **further}
    if kind == "PPO":
        trainer = make_ppo(
            tmp_path, path, tokenizer, environment=SometimesDown, train_dataset=lookup_dataset(8), gamma=0.97, lam=0.9,
            whiten_advantages=False, value_learning_rate=1e-2, cliprange_value=None, vf_coef=0.7, **settings, **further,
        )  # fmt: skip
        wake(trainer)
        return scripted(trainer, tokenizer)
    trainer = Mem1GRPOTrainer(
        model=path,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=4, **settings)),
        train_dataset=lookup_dataset(),
        processing_class=tokenizer,
        environment_factory=NoReward,
        protocol=SHORT,
        **further,
    )
    return scripted(trainer, tokenizer)


def scripted(trainer, tokenizer):
    """Episodes of one to four turns, and a policy to which the history makes a difference; it was taught on at most one turn."""
    trainer.rollout.generate = ScriptedGenerator(tokenizer, planned(four_plans))
    trainer.model.load_state_dict(other_model(trainer.model.config._name_or_path, 0.5).state_dict())
    return trainer


def other_model(path, noise=0.1):
    """A model with other weights."""
    teacher = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(noise * torch.randn_like(parameter) * parameter.std())
    return teacher


def with_history(tokenizer, trajectory) -> Trajectory:
    """The same turns after everything that was said before them; by texts, since the tokenizer reads bytes and tags."""
    context, turns = list(trajectory.prompt_ids), []
    for turn in trajectory.turns:
        turns.append(dataclasses.replace(turn, prompt_ids=tuple(context), logprobs=None))
        said = tokenizer(turn.observation or "", add_special_tokens=False)["input_ids"] if turn.observation else []
        context += [*turn.completion_ids, *said]
    return Trajectory(turns)


def sound(watch):
    (trajectories,) = watch.trajectories
    return [index for index, one in enumerate(trajectories) if one.error is None], trajectories


@pytest.mark.parametrize("task", [1.0, 0.0])
@pytest.mark.parametrize(
    ("kind", "layout", "teacher", "context"),
    [
        ("GRPO", "packed", "self", "full"),
        ("GRPO", "per_turn", "other", "full"),
        ("GRPO", "packed", "other", "same"),
        ("PPO", "packed", "self", "full"),
        ("PPO", "per_turn", "other", "same"),
    ],
)
def test_the_gap_as_a_loss(tmp_path, tokenizer, actor_path, kind, layout, teacher, context, task):
    """Two passes over a batch: the teacher's numbers stay, the student's move. Loss, gradient and the logged gap by hand."""
    if kind == "PPO" and task == 0.0:
        pytest.skip("refused below")
    further = {} if teacher == "self" else {"teacher_model": other_model(actor_path)}
    trainer = make(
        kind,
        tmp_path,
        actor_path,
        tokenizer,
        layout=layout,
        teacher_context=context,
        task_reward_weight=task,
        **further,
    )
    cut_first_turns(trainer, {0: 2})
    watch, recorder = Watch(trainer, actor_path), record(trainer)
    trainer.train()
    kept, trajectories = sound(watch)
    assert (len(kept) < len(trajectories)) == (kind == "PPO")
    rewards = [0.0 if t.error else task * score(t) for t in trajectories]
    advantages = group_advantages(rewards, 4, "group")
    advantages = [advantages[index] for index in kept]
    played = [trajectories[index] for index in kept]
    read = [with_history(tokenizer, one) for one in played] if context == "full" else played
    with torch.no_grad():
        old = logprobs_of(watch.steps[0].policy, played)
        teacher_logps = logprobs_of(further.get("teacher_model", watch.steps[0].policy), read)
        old_values = values_of(watch.steps[0].critic, played) if kind == "PPO" else []
    if kind == "PPO":
        advantages = [
            torch.tensor(gae([0.0] * (len(v) - 1) + [rewards[i]], v.tolist(), 0.97, 0.9))
            for i, v in zip(kept, old_values, strict=True)
        ]
    for number, step in enumerate(watch.steps):
        new = logprobs_of(step.policy, played)
        gaps = torch.cat([one - other for one, other in zip(new, teacher_logps, strict=True)])
        plain = policy_loss(trainer.args, new, old, advantages, [torch.zeros_like(one) for one in new])
        loss = plain + 0.3 * (gaps**2 / 2).mean()
        if kind == "PPO":
            returns = [a + v for a, v in zip(advantages, old_values, strict=True)]
            loss = loss + 0.7 * value_loss(values_of(step.critic, played), old_values, returns, None)
        assert float((gaps**2).mean().detach()) > 1e-2
        if task == 0.0:
            assert float(plain.detach()) == 0.0
        torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-4, atol=1e-4)
        assert_same_tensors(gradients_of(loss, step), step.gradients, 2e-3)
        assert recorder.logs[number]["distillation/gap"] == pytest.approx(float(gaps.mean()), abs=2e-4)


def test_the_gap_as_a_reward_of_turns(tmp_path, tokenizer, actor_path):
    """GRPO: each turn is rewarded by its gaps, and the episode by their sum beside its own reward."""
    trainer = make(
        "GRPO", tmp_path, actor_path, tokenizer, distillation_in_reward=True, task_reward_weight=0.5, max_steps=1
    )
    watch, recorder = Watch(trainer, actor_path), record(trainer)
    trainer.train()
    _, trajectories = sound(watch)
    policy = watch.steps[0].policy
    with torch.no_grad():
        gaps = [
            [float((one - other).sum()) for one, other in zip(*rows, strict=True)]
            for rows in zip(
                [split(logprobs_of(policy, [t])[0], t) for t in trajectories],
                [split(logprobs_of(policy, [with_history(tokenizer, t)])[0], t) for t in trajectories],
                strict=True,
            )
        ]
    assert max(abs(number) for one in gaps for number in one) > 0.1
    for trajectory, own in zip(trajectories, gaps, strict=True):
        assert trajectory.turn_rewards == pytest.approx([-0.3 * number for number in own], abs=2e-4)
        assert trajectory.reward == pytest.approx(0.5 * score(trajectory) - 0.3 * sum(own), abs=5e-4)
    rewards = [0.5 * score(t) - 0.3 * sum(own) for t, own in zip(trajectories, gaps, strict=True)]
    advantages = torch.stack(group_advantages(rewards, 4, "group"))
    by_episode = dict(zip(watch.batches[0]["episode_ids"].tolist(), watch.batches[0]["advantages"].tolist()))
    assert [by_episode[i] for i in range(len(rewards))] == pytest.approx(advantages.tolist(), abs=2e-3)
    tokens = sum(t.num_generated_tokens for t in trajectories)
    assert recorder.logs[0]["distillation/gap"] == pytest.approx(sum(map(sum, gaps)) / tokens, abs=2e-4)
    assert trainer.args.reward_weights is None  # as it was given


def split(values, trajectory):
    return values.split([len(turn.completion_ids) for turn in trajectory.turns])


def test_ppo_credits_gaps_token_by_token(tmp_path, tokenizer, actor_path):
    trainer = make(
        "PPO", tmp_path, actor_path, tokenizer, distillation_in_reward=True, task_reward_weight=0.0, max_steps=1
    )
    watch, recorder = Watch(trainer, actor_path), record(trainer)
    trainer.train()
    kept, trajectories = sound(watch)
    played = [trajectories[index] for index in kept]
    step, batch = watch.steps[0], watch.batches[0]
    with torch.no_grad():
        new = logprobs_of(step.policy, played)
        read = logprobs_of(step.policy, [with_history(tokenizer, one) for one in played])
        values = values_of(step.critic, played)
    gaps = [one - other for one, other in zip(new, read, strict=True)]
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    for index, gap, value in zip(kept, gaps, values, strict=True):
        row = batch["episode_ids"].tolist().index(index)
        expected = gae((-0.3 * gap).tolist(), value.tolist(), 0.97, 0.9)
        assert batch["advantages"][row][mask[row]].tolist() == pytest.approx(expected, abs=5e-4)
    assert recorder.logs[0]["distillation/gap"] == pytest.approx(float(torch.cat(gaps).mean()), abs=2e-4)


def test_distillation_alone_needs_no_reward(tmp_path, tokenizer, actor_path):
    ends = []
    for name, rewards in (("none", None), ("odd", odd)):
        trainer = make(
            "GRPO",
            tmp_path / name,
            actor_path,
            tokenizer,
            reward_funcs=rewards,
            task_reward_weight=0.0,
            num_iterations=1,
        )
        trainer.train()
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_the_gradient_does_not_depend_on_micro_batches(tmp_path, tokenizer, actor_path):
    ends = []
    for size, budget in ((8, None), (2, None), (8, 60)):
        trainer = make(
            "GRPO", tmp_path / f"{size}-{budget}", actor_path, tokenizer, distillation_weight=3.0, max_steps=1, num_iterations=1,
            per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, max_tokens_per_micro_batch=budget,
        )  # fmt: skip
        recorder = record(trainer)
        trainer.train()
        ends.append(recorder.gradients[0])
    for other in ends[1:]:
        assert_same_tensors(ends[0], other, 1e-3)


def test_a_run_resumes_bit_for_bit_in_the_middle_of_a_batch(tmp_path, tokenizer, actor_path):
    """The teacher's numbers of the batch are those of the policy that played it, and are kept."""
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = make("GRPO", tmp_path / "whole", actor_path, tokenizer, **settings)
    whole.train()
    make("GRPO", tmp_path / "cut", actor_path, tokenizer, **settings).train()
    resumed = make("GRPO", tmp_path / "cut", actor_path, tokenizer, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-1"))
    ends = [dict(one.model.named_parameters()) for one in (whole, resumed)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_a_teacher_is_loaded_by_its_path(tmp_path, tokenizer, actor_path):
    other_model(actor_path).save_pretrained(tmp_path / "teacher")
    trainer = make(
        "GRPO", tmp_path, actor_path, tokenizer, teacher_model_name_or_path=str(tmp_path / "teacher"),
        teacher_model_init_kwargs={"attn_implementation": "eager"},
    )  # fmt: skip
    teacher = trainer.distillation.teacher
    assert teacher.config._attn_implementation == "eager" and not any(p.requires_grad for p in teacher.parameters())
    expected = other_model(actor_path).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"distillation_weight": -1.0}, "distillation_weight must be a finite number of at least 0, got -1.0"),
        ({"task_reward_weight": float("inf")}, "task_reward_weight must be a finite number of at least 0, got inf"),
        ({"teacher_context": "half"}, "teacher_context must be one of 'full', 'same', got 'half'"),
        ({"distillation_weight": 0.0, "task_reward_weight": 0.5}, "task_reward_weight=0.5 has no effect with distillation_weight=0.0"),
        ({"layout": "paper"}, "does not go with layout='paper'"),
        ({"distillation_weight": 0.0, "teacher_model": "other"}, "A teacher has no effect with distillation_weight=0.0"),
        ({"teacher_context": "same"}, r"both read the same \(teacher_context='same'\): pass a teacher_model"),
        ({"context": "full"}, r"both read the same \(context='full'\)"),
        ({"teacher_model_init_kwargs": {"dtype": "auto"}}, "teacher_model_init_kwargs are for a teacher that is loaded"),
        ({"teacher_model": "small"}, "must know the .* tokens of the student's tokenizer"),
    ],
)  # fmt: skip
def test_what_cannot_be_taught_is_refused(tmp_path, tokenizer, actor_path, settings, words):
    if settings.get("teacher_model") == "small":
        settings = {"teacher_model": other_model(actor_path)}
        settings["teacher_model"].resize_token_embeddings(9)
    with pytest.raises(ValueError, match=words):
        make("GRPO", tmp_path, actor_path, tokenizer, **settings)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("algorithm", ["GRPO", "PPO"])
def test_a_teacher_with_weights_of_the_policy_is_refused(tmp_path, tokenizer, actor_path, algorithm, adapter):
    """It would be frozen with them: PPO then ran to its end with a gradient of 0, and nothing said why."""
    model = AutoModelForCausalLM.from_pretrained(actor_path)
    more = {"peft_config": LORA} if adapter else {}
    with pytest.raises(ValueError, match="`teacher_model` shares weights with the policy: leave it None"):
        make(algorithm, tmp_path, model, tokenizer, teacher_model=model, **more)


def test_a_critic_without_rewards_is_refused(tmp_path, tokenizer, actor_path):
    with pytest.raises(ValueError, match=r"task_reward_weight=0\.0 leaves nothing that a critic could learn"):
        make("PPO", tmp_path, actor_path, tokenizer, task_reward_weight=0.0)
