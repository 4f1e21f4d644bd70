"""Tests of PPO over trajectories: credit, critic, both losses, saving."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from support.ppo_helpers import LORA, four_plans, gae, make, wake, watch_credit
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    assert_same_tensors,
    copy_parameters,
    lookup_dataset,
    record,
)
from transformers import AutoModelForCausalLM, TrainerCallback

from mem1_trl import Mem1Agent, Mem1Protocol

# Credit


@pytest.mark.parametrize("layout", ["packed", "per_turn"])
@pytest.mark.parametrize(
    ("gamma", "lam", "beta"), [(1.0, 1.0, 0.0), (0.97, 0.9, 0.0), (0.97, 0.9, 0.2), (0.9, 0.0, 0.0)]
)
def test_advantages_are_gae_over_all_sampled_tokens(tmp_path, tokenizer, actor_path, layout, gamma, lam, beta):
    """Invariant 4, from plain forwards of policy, reference and critic to the batch that is trained on."""
    trainer = make(
        tmp_path, actor_path, tokenizer, layout, plan=four_plans, gamma=gamma, lam=lam, beta=beta,
        whiten_advantages=False, max_steps=1,
    )  # fmt: skip
    wake(trainer, policy=0.3)
    seen = watch_credit(trainer)
    recorder = record(trainer)
    trainer.train()
    (credit,) = seen
    batch, penalties = credit["batch"], []
    assert 0 < credit["rewards"].sum() < 4
    for row, trajectory in enumerate(credit["trajectories"]):
        mask = credit["mask"][row]
        values = credit["values"][row]
        assert int(mask.sum()) == len(values) == trajectory.num_generated_tokens
        rewards = [0.0] * len(values)
        if beta:
            penalty = credit["logps"][row] - credit["ref"][row]  # k1, of either sign
            penalties.append(penalty)
            rewards = (-beta * penalty).tolist()
        rewards[-1] += float(credit["rewards"][row])
        expected = torch.tensor(gae(rewards, values.tolist(), gamma, lam))
        torch.testing.assert_close(batch["old_values"][row][mask], values, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(batch["advantages"][row][mask], expected, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(batch["returns"][row][mask], expected + values, atol=2e-4, rtol=1e-3)
        assert not batch["advantages"][row][~mask].any()
    assert torch.cat(credit["values"]).std() > 0.05
    if beta:
        penalties = torch.cat(penalties)
        assert penalties.min() < -0.01 < 0.01 < penalties.max()  # pitfall 8: not clamped
        assert recorder.logs[0]["kl"] == pytest.approx(float(penalties.mean()), abs=1e-4)


def test_undiscounted_returns_are_the_reward(tmp_path, tokenizer, actor_path):
    trainer = make(tmp_path, actor_path, tokenizer, plan=four_plans, beta=0.0, max_steps=1)
    wake(trainer)
    seen = watch_credit(trainer)
    trainer.train()
    for row, reward in enumerate(seen[0]["rewards"]):
        returns = seen[0]["batch"]["returns"][row][seen[0]["mask"][row]]
        torch.testing.assert_close(returns, torch.full_like(returns, float(reward)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("whiten", [True, False])
def test_whitening_counts_sampled_tokens_only(tmp_path, tokenizer, actor_path, whiten):
    """Pitfall 7, first half: the reference whitens over environment tokens too."""
    trainer = make(tmp_path, actor_path, tokenizer, plan=four_plans, beta=0.0, whiten_advantages=whiten, max_steps=1)
    wake(trainer)
    seen = watch_credit(trainer)
    trainer.train()
    batch, mask = seen[0]["batch"], seen[0]["mask"]
    raw = batch["returns"][mask] - batch["old_values"][mask]
    assert not mask.all()
    if whiten:
        torch.testing.assert_close(batch["advantages"][mask], (raw - raw.mean()) / raw.std(), atol=1e-4, rtol=1e-3)
    else:
        torch.testing.assert_close(batch["advantages"][mask], raw, atol=1e-5, rtol=1e-5)
    assert not batch["advantages"][~mask].any()


def test_a_trajectory_that_nothing_scored_teaches_nothing(tmp_path, tokenizer, actor_path):
    class NoReward(LookupEnvironment):
        get_reward = None

    def sometimes(trajectories, **kwargs):
        return [None if len(t.turns) == 2 else 1.0 for t in trajectories]

    trainer = make(
        tmp_path, actor_path, tokenizer, environment=NoReward, reward_funcs=[sometimes], plan=four_plans, beta=0.0,
        whiten_advantages=False, max_steps=1,
    )  # fmt: skip
    wake(trainer)
    seen = watch_credit(trainer)
    trainer.train()
    batch, mask = seen[0]["batch"], seen[0]["mask"]
    assert seen[0]["rewards"].isnan().tolist() == [False, True, False, False]
    assert not batch["advantages"][1].any() and batch["advantages"][0][mask[0]].any()
    assert torch.equal(batch["returns"][1], batch["old_values"][1])
    # Nor does it count in what is logged about values
    scored = mask & torch.tensor([[True], [False], [True], [True]])
    values, returns = batch["old_values"][scored], batch["returns"][scored]
    logs = trainer.state.log_history[0]
    assert logs["value/mean"] == pytest.approx(float(values.mean()), rel=1e-4)
    assert logs["value/return_mean"] == pytest.approx(float(returns.mean()), rel=1e-4) == 1.0
    assert logs["value/advantage_abs_mean"] == pytest.approx(float((returns - values).abs().mean()), rel=1e-4)
    assert abs(float(values.mean()) - float(batch["old_values"][mask].mean())) > 1e-3


# Losses


def k3(logps: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    return torch.exp(ref - logps) - (ref - logps) - 1


@pytest.mark.parametrize(("beta", "kl_in_reward"), [(0.0, True), (0.3, True), (0.3, False)])
@pytest.mark.parametrize("vf_coef", [0.0, 0.7])
def test_the_loss_is_its_hand_computed_value(tmp_path, tokenizer, actor_path, beta, kl_in_reward, vf_coef):
    """Minus the mean advantage, plus `vf_coef` times half the squared error, plus k3 if the KL is in the loss."""
    trainer = make(
        tmp_path, actor_path, tokenizer, plan=four_plans, beta=beta, kl_in_reward=kl_in_reward, vf_coef=vf_coef,
        whiten_advantages=False, max_steps=1,
    )  # fmt: skip
    wake(trainer, policy=0.3)
    seen = watch_credit(trainer)
    recorder = record(trainer)
    trainer.train()
    credit, batch = seen[0], seen[0]["batch"]
    mask = credit["mask"]
    values = torch.cat(credit["values"])
    value_loss = 0.5 * (values - batch["returns"][mask]).square().mean()
    expected = -batch["advantages"][mask].mean() + vf_coef * value_loss
    if beta and not kl_in_reward:
        divergence = k3(torch.cat(credit["logps"]), torch.cat(credit["ref"])).mean()
        assert divergence > 1e-3
        expected = expected + beta * divergence
        # Then no penalty is in the returns
        torch.testing.assert_close(
            batch["returns"][0][mask[0]], credit["rewards"][0].expand(int(mask[0].sum())), atol=1e-4, rtol=0
        )
    torch.testing.assert_close(recorder.losses[0], expected, atol=2e-4, rtol=1e-3)
    assert recorder.logs[0]["value/loss"] == pytest.approx(float(value_loss), rel=1e-3, abs=1e-5)
    assert value_loss > 1e-3


@pytest.mark.parametrize("clip", [0.1, None])
def test_the_value_loss_is_clipped_around_the_old_values(tmp_path, tokenizer, actor_path, clip):
    trainer = make(
        tmp_path, actor_path, tokenizer, plan=four_plans, beta=0.0, cliprange_value=clip, max_steps=1, vf_coef=2.0
    )
    wake(trainer)
    recorder = record(trainer)
    trainer.train()
    batch = dict(recorder.batches[0])
    del batch["critic_has_learned"]  # not from this
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    torch.manual_seed(0)
    batch["old_values"] = torch.randn_like(batch["old_values"])
    batch["returns"] = torch.randn_like(batch["returns"])
    values = trainer.values(batch)[mask].detach()
    old, returns = batch["old_values"][mask], batch["returns"][mask]
    squared = (values - returns) ** 2
    if clip is not None:
        squared = torch.maximum(squared, (old + (values - old).clamp(-clip, clip) - returns) ** 2)
    torch.testing.assert_close(trainer.extra_loss(batch).detach(), 2.0 * 0.5 * squared.mean(), atol=1e-5, rtol=1e-5)


def test_environment_tokens_are_in_neither_loss(tmp_path, tokenizer, actor_path):
    """Pitfall 7: whatever stands at prompt, observation and padding in the batch, loss and gradients stay."""
    trainer = make(tmp_path, actor_path, tokenizer, plan=four_plans, beta=0.1, kl_in_reward=False, max_steps=1)
    wake(trainer, policy=0.3)
    recorder = record(trainer)
    trainer.train()
    batch = recorder.batches[0]
    del batch["critic_has_learned"]  # so that its gradient is that of the loss, too
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    inside = ~mask & batch["completion_mask"].bool()
    assert inside.any() and (~mask).sum() > inside.sum()

    def loss_and_gradients(inputs):
        trainer.model.zero_grad()
        trainer.critic.zero_grad()
        trainer.model.train()
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        modules = (("policy", trainer.model), ("critic", trainer.value_model))
        return loss.detach(), {
            f"{name}.{key}": p.grad.clone() for name, module in modules for key, p in module.named_parameters()
        }

    loss, gradients = loss_and_gradients(batch)
    changed = {
        key: torch.where(mask, batch[key], torch.full_like(batch[key], value))
        for key, value in (("old_values", 1e3), ("returns", 1e3), ("advantages", 1e3), ("ref_per_token_logps", -9.0))
    }
    other_loss, other = loss_and_gradients({**batch, **changed})
    torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=1e-6)
    assert_same_tensors(gradients, other, 1e-6)
    # And they do matter at sampled tokens
    moved, _ = loss_and_gradients({**batch, "returns": batch["returns"] + 1.0})
    assert abs(float(moved - loss)) > 1e-3


def test_packed_and_per_turn_agree_in_actor_and_critic(tmp_path, tokenizer, actor_path):
    runs = []
    for layout in ("packed", "per_turn"):
        trainer = make(
            tmp_path / layout, actor_path, tokenizer, layout, plan=four_plans, max_steps=1, max_grad_norm=0.0
        )
        wake(trainer, policy=0.2)
        critic = {}

        class Keep(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, kept=critic, trainer=trainer, **kwargs):
                kept.update({name: p.grad.clone() for name, p in trainer.value_model.named_parameters()})

        trainer.add_callback(Keep())
        recorder = record(trainer)
        trainer.train()
        runs.append((recorder, critic))
    (one, one_critic), (other, other_critic) = runs
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-4, atol=1e-5)
    assert_same_tensors(one.gradients[0], other.gradients[0], 1e-3)
    assert_same_tensors(one_critic, other_critic, 1e-3)


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_do_not_change_the_gradients(tmp_path, tokenizer, actor_path, size):
    runs = []
    for rows in (4, size):
        trainer = make(
            tmp_path / str(rows), actor_path, tokenizer, plan=four_plans, max_steps=1, max_grad_norm=0.0,
            per_device_train_batch_size=rows, gradient_accumulation_steps=4 // rows,
        )  # fmt: skip
        wake(trainer)
        critic = {}

        class Keep(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, kept=critic, trainer=trainer, **kwargs):
                kept.update({name: p.grad.clone() for name, p in trainer.value_model.named_parameters()})

        trainer.add_callback(Keep())
        recorder = record(trainer)
        trainer.train()
        runs.append((recorder, critic))
    (one, one_critic), (other, other_critic) = runs
    assert_same_tensors(one.gradients[0], other.gradients[0], 1e-3)
    assert_same_tensors(one_critic, other_critic, 1e-3)


# The critic's optimizer


def test_every_parameter_of_policy_and_critic_changes_and_metrics_are_there(tmp_path, tokenizer, actor_path):
    trainer = make(
        tmp_path, actor_path, tokenizer,
        per_device_train_batch_size=8, max_steps=3, value_learning_rate=1e-3, train_dataset=lookup_dataset(8),
    )  # fmt: skip
    policy, critic = copy_parameters(trainer.model), copy_parameters(trainer.value_model)
    recorder = record(trainer)
    trainer.train()
    assert not [name for name, p in trainer.model.named_parameters() if torch.equal(p, policy[name])]
    # The backbone learns from the second step on: the head starts at zero
    assert not [name for name, p in trainer.value_model.named_parameters() if torch.equal(p, critic[name])]
    steps = [logs for logs in recorder.logs if "loss" in logs]
    assert len(steps) == 3
    for logs in steps:
        wanted = ["loss", "value/clip_ratio", "value/mean", "value/return_mean", "value/advantage_abs_mean"]
        wanted += ["value/explained_variance", "value/grad_norm", "value/loss", "kl", "entropy", "reward"]
        wanted += ["episode/turns", "sampling/max_logp_difference", "clip_ratio/region_mean"]
        assert not [key for key in wanted if key not in logs]
        assert logs["sampling/max_logp_difference"] < 1e-4
    assert steps[0]["value/mean"] == 0.0
    assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert steps[0]["value/return_mean"] == pytest.approx(steps[0]["reward"], abs=0.5)
    assert trainer.num_generations == 1


def test_the_critic_learns_at_its_own_rate(tmp_path, tokenizer, actor_path):
    trainer = make(
        tmp_path, actor_path, tokenizer, learning_rate=1e-4, value_learning_rate=3e-3, lr_scheduler_type="linear",
        warmup_steps=0, max_steps=4, plan=four_plans, weight_decay=0.1,
    )  # fmt: skip
    optimizer = trainer.create_optimizer()
    critic = {id(p) for p in trainer.value_model.parameters()}
    policy = {id(p) for p in trainer.model.parameters()}
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in rates
            rates[id(parameter)] = group["lr"]
    assert {rates[key] for key in critic} == {3e-3} and {rates[key] for key in policy} == {1e-4}
    assert rates.keys() == critic | policy
    seen = []

    class Rates(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            seen.append([group["lr"] for group in optimizer.param_groups])

    trainer.add_callback(Rates())
    trainer.train()
    for first, *_, last in seen:
        assert last == pytest.approx(30 * first)  # one schedule for both
    assert seen[0][-1] > seen[2][-1] > 0


def test_without_value_loss_the_critic_stays(tmp_path, tokenizer, actor_path):
    trainer = make(
        tmp_path, actor_path, tokenizer, plan=four_plans, vf_coef=0.0, value_learning_rate=1e-2, weight_decay=0.1
    )
    wake(trainer)
    critic, policy = copy_parameters(trainer.value_model), copy_parameters(trainer.model)
    trainer.train()
    assert_same_tensors(critic, copy_parameters(trainer.value_model), 0.0)
    assert any(not torch.equal(p, policy[name]) for name, p in trainer.model.named_parameters())


def test_gradients_of_the_critic_are_clipped_and_cleared(tmp_path, tokenizer, actor_path):
    """`Trainer` does this for its own model only."""
    norms, cleared = [], []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            gradients = [p.grad for p in trainer.value_model.parameters() if p.grad is not None]
            norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

        def on_step_end(self, args, state, control, **kwargs):
            cleared.append(all(p.grad is None for p in trainer.value_model.parameters()))

    trainer = make(
        tmp_path, actor_path, tokenizer, plan=four_plans, max_grad_norm=0.01, gradient_accumulation_steps=2,
        per_device_train_batch_size=2, max_steps=3,
    )  # fmt: skip
    wake(trainer)
    trainer.add_callback(Watch())
    recorder = record(trainer)
    trainer.train()
    assert len(norms) == 3 and norms == pytest.approx([0.01] * 3, rel=1e-3)
    assert cleared == [True] * 3
    assert all(logs["value/grad_norm"] > 0.1 for logs in recorder.logs if "loss" in logs)


def test_a_second_pass_moves_ratio_and_values(tmp_path, tokenizer, actor_path):
    trainer = make(
        tmp_path, actor_path, tokenizer, plan=four_plans, num_iterations=2, max_steps=2, learning_rate=1e-2,
        value_learning_rate=1e-1, cliprange_value=0.01,
    )  # fmt: skip
    recorder = record(trainer)
    trainer.train()
    assert len(recorder.batches) == 1 and len(recorder.losses) == 2
    batch = recorder.batches[0]
    assert "old_per_token_logps" in batch
    first, second = (logs for logs in recorder.logs if "loss" in logs)
    assert first["clip_ratio/region_mean"] == 0.0 and first["value/clip_ratio"] == 0.0
    assert second["clip_ratio/region_mean"] > 0.0 and second["value/clip_ratio"] > 0.0
    old = torch.cat([row[m] for row, m in zip(batch["old_per_token_logps"], batch["tool_mask"].bool())])
    assert torch.isfinite(old).all()


def test_evaluation_leaves_the_critic_in_training(tmp_path, tokenizer, actor_path):
    trainer = make(
        tmp_path, actor_path, tokenizer, eval_dataset=lookup_dataset(4), per_device_eval_batch_size=4, max_steps=1
    )
    before = copy_parameters(trainer.value_model)
    metrics = trainer.evaluate()
    assert {"eval_value/loss", "eval_value/mean", "eval_reward", "eval_kl", "eval_loss"} <= set(metrics)
    assert math.isfinite(metrics["eval_loss"])
    assert_same_tensors(before, copy_parameters(trainer.value_model), 0.0)
    trainer.train()
    assert trainer.value_model.training


# Where the critic comes from


def test_the_critic_starts_as_a_copy_of_the_policy(tmp_path, tokenizer, actor_path):
    trainer = make(tmp_path, actor_path, tokenizer)
    backbone = dict(trainer.value_model.backbone.named_parameters())
    for name, parameter in trainer.model.model.named_parameters():
        assert torch.equal(backbone[name], parameter) and backbone[name] is not parameter
    assert not trainer.value_model.head.weight.any() and not trainer.value_model.head.bias.any()


def test_a_saved_critic_brings_its_head(tmp_path, tokenizer, actor_path):
    first = make(tmp_path, actor_path, tokenizer)
    wake(first)
    first.value_model.save(tmp_path / "critic")
    second = make(tmp_path, actor_path, tokenizer, value_model=str(tmp_path / "critic"))
    assert_same_tensors(copy_parameters(first.value_model), copy_parameters(second.value_model), 0.0)


def test_bad_critics_are_refused(tmp_path, tokenizer, actor_path):
    from support.helpers import tiny_model

    with pytest.raises(TypeError, match="`value_model` must not be of type int: pass a model id"):
        make(tmp_path, actor_path, tokenizer, value_model=3)
    model = AutoModelForCausalLM.from_pretrained(actor_path)
    with pytest.raises(ValueError, match="`value_model` shares weights with the policy: leave it None"):
        make(tmp_path, model, tokenizer, value_model=model, beta=0.0)
    with pytest.raises(ValueError, match="`value_model` shares weights with the policy: leave it None"):
        make(tmp_path, model, tokenizer, value_model=model.model, beta=0.0)
    with pytest.raises(ValueError, match="`value_model` shares weights with the policy: leave it None"):
        make(tmp_path, model, tokenizer, value_model=model, peft_config=LORA, beta=0.0)
    other = tiny_model("llama")
    other.resize_token_embeddings(300)
    with pytest.raises(ValueError, match="vocabulary of 300 tokens and the policy one of 320"):
        make(tmp_path, actor_path, tokenizer, value_model=other)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"scale_rewards": "group"}, "scale_rewards='group' works on whole sequences or groups"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level='sequence' works on whole sequences"),
        ({"loss_type": "vespo"}, "loss_type='vespo' works on whole sequences"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "Mem1PPOTrainer needs FSDP's version 2"),
    ],
)
def test_what_has_no_meaning_with_a_critic_is_refused(tmp_path, tokenizer, actor_path, kwargs, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make(tmp_path, actor_path, tokenizer, **kwargs)


# Saving


def test_the_saved_policy_is_clean_and_plays(tmp_path, tokenizer, actor_path):
    trainer = make(tmp_path / "run", actor_path, tokenizer, plan=four_plans, max_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert not [path.name for path in (tmp_path / "saved").rglob("*") if "critic" in path.name or "value" in path.name]
    record_ = json.loads((tmp_path / "saved" / "mem1_protocol.json").read_text())
    assert Mem1Protocol.from_dict(record_) == SHORT
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_tensors(copy_parameters(trainer.model), copy_parameters(loaded), 0.0)
    agent = Mem1Agent.from_pretrained(
        str(tmp_path / "saved"), max_turns=4, max_completion_length=12, max_observation_length=40
    )
    assert agent.protocol == SHORT
    trajectory = agent.run("q1?", LookupEnvironment(), secret="2")
    assert trajectory.turns[0].action == "search" and trajectory.reward in (0.0, 1.0)
    assert tokenizer.decode(trajectory.prompt_ids) == "q1?"
    assert trajectory.metrics["turns"] == len(trajectory.turns)


class StopAt(TrainerCallback):
    """Ends training after a step, as an interrupted run does, with the schedule of the whole run."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize(
    "peft_config",
    [
        None,
        LORA,
    ],
    ids=["full", "lora"],
)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, tokenizer, actor_path, peft_config):
    settings = dict(plan=four_plans, save_strategy="steps", save_steps=1, max_steps=3, value_learning_rate=1e-2)
    settings["train_dataset"] = lookup_dataset(12)  # one epoch; the order of later ones is TRL's
    if peft_config is not None:
        settings["peft_config"] = peft_config
    whole = make(tmp_path / "whole", actor_path, tokenizer, **{**settings, "save_strategy": "no"})
    whole.train()
    first = make(tmp_path / "cut", actor_path, tokenizer, callbacks=[StopAt(2)], **settings)
    first.train()
    checkpoint = Path(tmp_path / "cut" / "checkpoint-2")
    assert (checkpoint / "critic" / "value_head.safetensors").is_file()
    second = make(tmp_path / "cut", actor_path, tokenizer, **settings)
    loaded = []
    load = second.load_extra
    second.load_extra = lambda directory: (load(directory), loaded.append(copy_parameters(second.value_model)))
    second.train(resume_from_checkpoint=str(checkpoint))
    assert_same_tensors(copy_parameters(first.value_model), loaded[0], 0.0)
    assert second.state.global_step == 3
    assert_same_tensors(copy_parameters(whole.value_model), copy_parameters(second.value_model), 1e-5)
    assert_same_tensors(copy_parameters(whole.model), copy_parameters(second.model), 1e-5)


# Adapters


def test_only_adapters_and_the_value_head_train(tmp_path, tokenizer, actor_path):
    trainer = make(
        tmp_path, actor_path, tokenizer, peft_config=LORA, plan=four_plans, max_steps=3, value_learning_rate=1e-2
    )
    policy, critic = copy_parameters(trainer.model), copy_parameters(trainer.value_model)
    recorder = record(trainer)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            assert not torch.equal(parameter, policy[name]), name
        elif "lora_" not in name:
            assert torch.equal(parameter, policy[name]), name
    for name, parameter in trainer.value_model.named_parameters():
        if "lora_B" in name or name.startswith("head."):
            assert not torch.equal(parameter, critic[name]), name
        elif "lora_" not in name:
            assert torch.equal(parameter, critic[name]), name
    assert any("lora_" in name for name in critic)
    assert recorder.logs[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    trainer.save_model(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert (tmp_path / "adapter" / "mem1_protocol.json").is_file()
