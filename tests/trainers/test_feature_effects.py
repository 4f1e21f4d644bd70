"""What the options of TRL do that are not in the loss, and where each row of docs/features.md that says "works" is held by value."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.helpers import is_checkpointed, oracle_logprobs, tiny_model, turn_distributions
from support.objectives import Watch, entropies_of, group_advantages, logprobs_of, policy_loss, sampled_tokens
from support.ppo_helpers import four_plans, stir, wake
from support.ppo_helpers import make as make_ppo
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    assert_same_tensors,
    lookup_dataset,
    record,
    trainer_arguments,
)
from transformers import AutoModelForCausalLM

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer

ROOT = Path(__file__).parents[2]
LOSSES, HERE, GRPO = "trainers/test_objectives.py", "trainers/test_feature_effects.py", "trainers/test_grpo_trainer.py"
INPUTS = "trainers/test_feature_inputs.py"
RULES = "trainers/test_context_rules.py"
HELD = {
    "reward functions, several, weighted, asynchronous": HERE,
    "`normalize_then_sum` of several rewards": INPUTS,
    "reward models": INPUTS,
    "several evaluation data sets": INPUTS,
    "`eval_on_start`": INPUTS,
    "environments": GRPO,
    "iterable data sets": HERE,
    "PEFT": HERE,
    "KL to a reference": LOSSES,
    "a reference that follows": HERE,
    "several passes over a batch": LOSSES,
    "asymmetric and two-sided clipping": LOSSES,
    "loss `grpo`, `dr_grpo`, `bnpo`, `dapo`": LOSSES,
    "loss `cispo`": LOSSES,
    "loss `luspo`": LOSSES,
    "loss `sapo`": LOSSES,
    "loss `vespo`": LOSSES,
    "sequence-level importance sampling": LOSSES,
    "scaling of rewards by group or batch": LOSSES,
    "off-policy sequence mask": LOSSES,
    "leaving truncated episodes out": LOSSES,
    "only tokens of high entropy": LOSSES,
    "entropy bonus, fixed or adaptive": LOSSES,
    "sampling settings": HERE,
    "gradient checkpointing": HERE,
    "bfloat16": "trainers/test_bfloat16.py",
    "`disable_dropout`": HERE,
    "a head in float32": HERE,
    "tables of completions": "trainers/test_tracking.py",
    "continuous batching of transformers": HERE,
    "weight of the state's tokens": "trainers/test_state_weight.py",
    "rewards of single turns": "trainers/test_turn_rewards.py",
    "advantages between turns, or on two levels": "trainers/test_advantage_level.py",
    "a reward for what states are worth": "trainers/test_memory_reward.py",
    "turns compared within their group": "trainers/test_group_levels.py",
    "on-policy distillation": "trainers/test_distillation.py",
    "on-policy distillation in the rewards": "trainers/test_distillation.py",
    "groups of equal rewards are played again": "trainers/test_dynamic_sampling.py",
    "trajectories without advantage are passed over": "trainers/test_skipping.py",
    "context rule `compact`: summaries at a budget, or every few turns": RULES,
    "context rule `on_demand`: rewriting is an action": RULES,
    "context rule `fold`: branches that are folded": RULES,
    "context rules `full`, `truncate`, `external`": RULES,
    "a context rule of one's own": RULES,
}
"""Rows of the table that say "works", and the tests that hold a value of theirs over several turns."""


def test_every_row_that_works_is_held_by_value():
    rows = [
        line.split("|")[1:-1] for line in (ROOT / "docs" / "features.md").read_text().splitlines() if line[:1] == "|"
    ]
    works = {cells[0].strip() for cells in rows if any(cell.strip() == "works" for cell in cells[1:3])}
    assert works == HELD.keys()
    assert all((ROOT / "tests" / path).is_file() for path in HELD.values())


def lengths(trajectories, **kwargs) -> list[float]:
    return [float(t.num_generated_tokens % 7) for t in trajectories]


def make(tmp_path, model, tokenizer, reward_funcs=lengths, dataset=None, peft_config=None, **settings):
    defaults = {
        "num_generations": 4, "max_turns": 4, "max_observation_length": 40, "per_device_train_batch_size": 8, "max_steps": 1,
        "max_grad_norm": 0.0,
    }  # fmt: skip
    return Mem1GRPOTrainer(
        model=model,
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **{**defaults, **settings})),
        reward_funcs=reward_funcs,
        train_dataset=lookup_dataset() if dataset is None else dataset,
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
        peft_config=peft_config,
    )


def keep_trajectories(trainer) -> list:
    seen, rewarded = [], trainer.rewarded
    trainer.rewarded = lambda trajectories: (seen.extend(trajectories), rewarded(trajectories))
    return seen


def test_rewards_are_weighted_and_added(tmp_path, tokenizer, actor_path):
    async def turns(trajectories, **kwargs):
        return [None if len(t.turns) == 1 else float(len(t.turns)) for t in trajectories]

    trainer = make(tmp_path, actor_path, tokenizer, [lengths, turns], reward_weights=[0.5, -2.0], scale_rewards="none")
    trajectories = keep_trajectories(trainer)
    recorder = record(trainer)
    trainer.train()
    expected = []
    for trajectory in trajectories:
        count = len(trajectory.turns)
        own = trajectory.reward - 0.5 * (trajectory.num_generated_tokens % 7) + (2.0 * count if count > 1 else 0.0)
        assert own == pytest.approx(0.0, abs=1e-5) or own == pytest.approx(1.0)  # the environment's, of weight 1
        expected.append(trajectory.reward)
    assert len({len(t.turns) for t in trajectories}) > 1
    advantages = group_advantages(expected, 4, "none")
    torch.testing.assert_close(recorder.batches[0]["advantages"], torch.stack(advantages), atol=1e-5, rtol=1e-4)


def test_a_stream_trains_as_its_rows_do(tmp_path, tokenizer, actor_path):
    runs = []
    for kind in ("rows", "stream"):
        dataset = lookup_dataset(8)
        trainer = make(
            tmp_path / kind, actor_path, tokenizer, max_steps=2, shuffle_dataset=False,
            dataset=dataset.to_iterable_dataset() if kind == "stream" else dataset,
        )  # fmt: skip
        recorder = record(trainer)
        trainer.train()
        runs.append(recorder)
    for one, other in zip(runs[0].batches, runs[1].batches, strict=True):
        assert torch.equal(one["completion_ids"], other["completion_ids"])
    for one, other in zip(runs[0].gradients, runs[1].gradients, strict=True):
        assert_same_tensors(one, other, 1e-6)


def test_an_adapter_has_the_gradient_of_plain_scoring(tmp_path, tokenizer, actor_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make(tmp_path, actor_path, tokenizer, peft_config=config, beta=0.2, use_bias_correction_kl=False)
    stir(trainer.model, 3)
    plain = get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), config)
    plain.load_state_dict(trainer.model.state_dict())
    trajectories = keep_trajectories(trainer)
    recorder = record(trainer)
    trainer.train()
    new = logprobs_of(plain, trajectories)
    with torch.no_grad(), plain.disable_adapter():
        reference = logprobs_of(plain, trajectories)
    old, entropies = [row.detach() for row in new], entropies_of(plain, trajectories)
    advantages = group_advantages([t.reward for t in trajectories], 4, "group")
    loss = policy_loss(trainer.args, new, old, advantages, entropies, reference=reference, beta=0.2)
    loss.backward()
    torch.testing.assert_close(recorder.losses[0], loss.detach(), rtol=1e-4, atol=1e-5)
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert len(gradients) == 8
    assert_same_tensors(gradients, recorder.gradients[0], 1e-3)


def test_a_reference_follows(tmp_path, tokenizer, actor_path):
    """After each step it is a fifth of the policy and four fifths of what it was."""
    trainer = make(
        tmp_path, actor_path, tokenizer, beta=0.1, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=0.2,
        max_steps=2,
    )  # fmt: skip
    expected = {name: p.clone() for name, p in trainer.ref_model.named_parameters()}
    watch = Watch(trainer, actor_path)
    trainer.train()
    policies = [dict(watch.steps[1].policy.named_parameters()), dict(trainer.model.named_parameters())]
    for policy in policies:
        expected = {name: 0.2 * policy[name].detach() + 0.8 * p for name, p in expected.items()}
    assert_same_tensors(expected, dict(trainer.ref_model.named_parameters()), 1e-5)
    assert not torch.equal(policies[0]["lm_head.weight"], policies[1]["lm_head.weight"])
    # And the second batch is held against the reference as it then was
    between = AutoModelForCausalLM.from_pretrained(actor_path)
    with torch.no_grad():
        for name, p in between.named_parameters():
            p.copy_(0.2 * policies[0][name] + 0.8 * p)
        wanted = torch.cat(logprobs_of(between, watch.trajectories[1]))
    batch = watch.batches[1]
    found = torch.cat(sampled_tokens(batch, batch["ref_per_token_logps"]))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.3}, {}])
def test_sampling_settings_are_those_of_every_turn(tmp_path, tokenizer, actor_path, settings):
    """Each token is one of those that the setting leaves of the plain model's distribution in that turn's context."""
    trainer = make(tmp_path, actor_path, tokenizer, temperature=1.5, **settings)
    trajectories = keep_trajectories(trainer)
    trainer.train()
    plain = AutoModelForCausalLM.from_pretrained(actor_path)
    allowed = []
    for trajectory in trajectories:
        for logprobs, sampled in turn_distributions(plain, trajectory, temperature=1.5):
            chances = logprobs.detach().exp()
            mine = chances.gather(1, sampled[:, None])
            before = (chances * (chances > mine)).sum(1)  # of likelier tokens
            allowed += {
                "top_k": (chances > mine).sum(1) < 2,
                "top_p": before < 0.5 + 1e-4,
                "min_p": mine[:, 0] >= 0.3 * chances.amax(1) - 1e-4,
                "": mine[:, 0] == chances.amax(1),
            }[next(iter(settings), "")].tolist()
    assert all(allowed) == bool(settings)  # without any, not all tokens are the likeliest ones
    recorded = [p for t in trajectories for turn in t.turns for p in turn.logprobs]
    scored = torch.cat([torch.cat(oracle_logprobs(plain, t, temperature=1.5)).detach() for t in trajectories])
    torch.testing.assert_close(torch.tensor(recorded), scored, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, tokenizer, actor_path, kind):
    runs = []
    for checkpointing in (False, True):
        settings = {"gradient_checkpointing": checkpointing, "max_grad_norm": 0.0, "max_steps": 1}
        if kind == "grpo":
            trainer = make(tmp_path / str(checkpointing), actor_path, tokenizer, **settings)
        else:
            trainer = make_ppo(tmp_path / str(checkpointing), actor_path, tokenizer, plan=four_plans, **settings)
            wake(trainer)
            assert is_checkpointed(trainer.value_model.backbone) == checkpointing
        watch = Watch(trainer, actor_path)
        trainer.train()
        assert is_checkpointed(trainer.model) == checkpointing
        runs.append(watch.steps[0])
    torch.testing.assert_close(runs[0].loss, runs[1].loss, rtol=1e-6, atol=1e-6)
    assert_same_tensors(runs[0].gradients, runs[1].gradients, 1e-5)


@pytest.mark.parametrize("disabled", [False, True])
def test_dropout_is_on_in_the_update_unless_disabled(tmp_path, tokenizer, disabled):
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.3)
    model = tiny_model("gpt2", **drop)
    model.save_pretrained(tmp_path / "model")
    trainer = make(tmp_path, str(tmp_path / "model"), tokenizer, disable_dropout=disabled)
    recorder = record(trainer)
    trainer.train()
    difference = recorder.logs[0]["sampling/max_logp_difference"]
    assert difference < 1e-4 if disabled else difference > 0.05


@pytest.mark.parametrize("cast", [False, True])
def test_a_head_in_float32_gives_the_logprobs_of_its_hidden_states(tmp_path, tokenizer, actor_path, cast):
    """With weights in bfloat16: of the very hidden states, in double precision, to a millionth instead of a hundredth."""
    trainer = make(
        tmp_path, actor_path, tokenizer, bf16=True, layout="per_turn", cast_lm_head_to_fp32=cast,
        model_init_kwargs={"dtype": "bfloat16"},
    )  # fmt: skip
    hidden = []
    trainer.model.model.register_forward_hook(
        lambda module, args, output: hidden.append(output.last_hidden_state) if torch.is_grad_enabled() else None
    )
    inputs = []
    trainer.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs["input_ids"]) if torch.is_grad_enabled() else None,
        with_kwargs=True,
    )
    head = trainer.model.lm_head.weight.detach().double().clone()
    watch = Watch(trainer, actor_path)
    trainer.train()
    exact = []
    for states, ids in zip(hidden, inputs, strict=True):  # a call for each group of turns of like length
        logprobs = torch.log_softmax(states[:, :-1].detach().double() @ head.T, -1)
        exact.append(logprobs.gather(2, ids[:, 1:, None]).flatten())
    (step,) = watch.steps
    found = torch.cat(sampled_tokens(step.inputs, step.logps)).double()
    # Each is one of those of the same hidden states; which one is a matter of the order of turns
    nearest = (found[:, None] - torch.cat(exact)[None]).abs().amin(1)
    errors = nearest.max()
    assert errors < 1e-5 if cast else errors > 1e-4


def test_what_continuous_batching_samples_is_what_is_trained(tmp_path, tokenizer, actor_path):
    trainer = make(
        tmp_path, actor_path, tokenizer, use_transformers_continuous_batching=True,
        transformers_continuous_batching_config={"page_size": 32, "num_blocks": 64, "max_batch_tokens": 256},
    )  # fmt: skip
    watch = Watch(trainer, actor_path)
    trainer.train()
    ((step,), (trajectories,)) = watch.steps, watch.trajectories
    assert max(len(t.turns) for t in trajectories) > 1
    new = logprobs_of(step.policy, trajectories)
    assert torch.cat(new).detach().exp().median() > 0.2  # by the policy, in these contexts
    old = [row.detach() for row in new]
    advantages = group_advantages([t.reward for t in trajectories], 4, "group")
    loss = policy_loss(trainer.args, new, old, advantages, entropies_of(step.policy, trajectories))
    loss.backward()
    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-4, atol=1e-5)
    expected = {f"policy.{name}": p.grad for name, p in step.policy.named_parameters()}
    assert_same_tensors(expected, step.gradients, 1e-3)
    texts = [tokenizer.decode(turn.completion_ids) for t in trajectories for turn in t.turns]
    assert sum(bool(re.search(r"</(search|answer)>$", text)) for text in texts) > len(texts) / 2
