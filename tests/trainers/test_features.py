"""Every feature of TRL's `GRPOTrainer` with both trainers: it trains a step, or is refused by name. Checks docs/features.md."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, tiny_classifier, trainer_arguments
from transformers import TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from mem1_trl import ContextRule, Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer
from mem1_trl.context_rules import NextTurn

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
TRAINERS = {"GRPO": (Mem1GRPOTrainer, Mem1GRPOConfig), "PPO": (Mem1PPOTrainer, Mem1PPOConfig)}


@dataclasses.dataclass
class Feature:
    """
    A row of the table.

    Attributes:
        name: As a reader looks for it.
        covers: Fields of `GRPOConfig` and arguments of `GRPOTrainer` it stands for.
        settings: Fields of the configuration that turn it on.
        arguments: Arguments of the trainer that turn it on.
        refused: Words of the refusal, for each trainer that refuses it.
        note: What there is to know.
        tested: Where else it is tested, if a step of training here cannot show it.
    """

    name: str
    covers: tuple[str, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""
    tested: str = ""


PLUMBING = {
    "self", "args", "model", "processing_class", "callbacks", "optimizers", "learning_rate", "model_init_kwargs",
    "trust_remote_code", "remove_unused_columns", "num_generations", "max_completion_length", "pad_to_multiple_of",
    "log_completions_hub_repo", "use_transformers_paged", "vllm_importance_sampling_cap",
}  # fmt: skip
"""What every run sets, or what TRL is about to drop."""


def both(words: str) -> dict[str, str]:
    return {"GRPO": words, "PPO": words}


def length(completions, **kwargs) -> list[float]:
    return [float(len(completion)) for completion in completions]


async def slow_length(completions, **kwargs) -> list[float]:
    return length(completions)


def nothing(item: str) -> str:
    """Do nothing."""
    return item


class TurnByTurn(LookupEnvironment):
    """Rewards every turn."""

    def get_turn_reward(self) -> float:
        return 1.0 if self.given is not None else 0.5 ** len(self.queries)


class AllTurns(ContextRule):
    """A rule as users write it."""

    def next(self, past):
        return NextTurn(range(len(past)))


LORA = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")

FEATURES = [
    Feature("reward functions, several, weighted, asynchronous", ("reward_funcs", "reward_weights"),
            {"reward_weights": [0.5, 2.0]}, {"reward_funcs": [length, slow_length]}),
    Feature("`normalize_then_sum` of several rewards", ("multi_objective_aggregation",),
            {"multi_objective_aggregation": "normalize_then_sum"}, {"reward_funcs": [length, slow_length]},
            {"PPO": "multi_objective_aggregation='normalize_then_sum' works on whole sequences or groups"}),
    Feature("reward models", ("reward_processing_classes",), {}, {"reward_funcs": "a classifier"},
            note="They read the task and all turns, with what the environment said, as one text."),
    Feature("environments", ("environment_factory",), note="A dictionary of several, too."),
    Feature("`tools`", ("tools", "max_tool_calling_iterations"), {}, {"tools": [nothing]},
            both("make them methods of an environment")),
    Feature("`rollout_func`", ("rollout_func",), {}, {"rollout_func": lambda prompts, trainer: {}}, both("use GRPOTrainer")),
    Feature("images", ("log_multimodal",), {}, {"train_dataset": Dataset.from_dict({"prompt": ["a"], "image": ["b"]})},
            both("remove the column")),
    Feature("iterable data sets", ("train_dataset", "shuffle_dataset"), {}, {"train_dataset": "stream"}),
    Feature("several evaluation data sets", ("num_generations_eval",), {"eval_strategy": "steps", "eval_steps": 1},
            {"eval_dataset": {"one": lookup_dataset(2), "two": lookup_dataset(3)}}),
    Feature("`eval_on_start`", (), {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 1},
            {"eval_dataset": lookup_dataset(2)}),
    Feature("PEFT", ("peft_config",), {}, {"peft_config": LORA}, note="PPO's critic is a second adapter on the same weights. "
            "Prompt learning is refused."),
    Feature("QLoRA, 4 and 8 bits", ("quantization_config",), tested="tests/trainers/test_quantized.py"),
    Feature("8-bit optimizers", tested="tests/trainers/test_quantized.py"),
    Feature("KL to a reference", ("beta", "use_bias_correction_kl"), {"beta": 0.1}, note="PPO: in the reward, or in the loss."),
    Feature("a reference that follows", ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
            {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1}, note="It is part of a checkpoint."),
    Feature("several passes over a batch", ("num_iterations", "steps_per_generation", "generation_batch_size"),
            {"num_iterations": 2}),
    Feature("asymmetric and two-sided clipping", ("epsilon", "epsilon_high", "delta"), {"epsilon_high": 0.3, "delta": 2.0}),
    Feature("loss `grpo`, `dr_grpo`, `bnpo`, `dapo`", ("loss_type",), {"loss_type": "dr_grpo"}),
    Feature("loss `cispo`", (), {"loss_type": "cispo", "epsilon_high": 5.0}),
    Feature("loss `luspo`", (), {"loss_type": "luspo", "importance_sampling_level": "sequence"},
            refused={"PPO": "importance_sampling_level='sequence' works on whole sequences"}),
    Feature("loss `sapo`", ("sapo_temperature_neg", "sapo_temperature_pos"), {"loss_type": "sapo"}),
    Feature("loss `vespo`", ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), {"loss_type": "vespo"},
            refused={"PPO": "loss_type='vespo' works on whole sequences"}),
    Feature("sequence-level importance sampling", ("importance_sampling_level",),
            {"importance_sampling_level": "sequence", "loss_type": "grpo"},
            refused={"PPO": "importance_sampling_level='sequence' works on whole sequences"}),
    Feature("scaling of rewards by group or batch", ("scale_rewards",), {"scale_rewards": "batch"},
            refused={"PPO": "scale_rewards='batch' works on whole sequences or groups"}),
    Feature("off-policy sequence mask", ("off_policy_mask_threshold",), {"off_policy_mask_threshold": 0.5},
            refused={"PPO": "off_policy_mask_threshold=0.5 works on whole sequences"}),
    Feature("leaving truncated episodes out", ("mask_truncated_completions",), {"mask_truncated_completions": True}),
    Feature("only tokens of high entropy", ("top_entropy_quantile",), {"top_entropy_quantile": 0.5}),
    Feature("entropy bonus, fixed or adaptive",
            ("entropy_coef", "use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta",
             "entropy_target"), {"entropy_coef": 0.01, "use_adaptive_entropy": True}),
    Feature("sampling settings", ("temperature", "top_p", "top_k", "min_p", "generation_kwargs", "repetition_penalty",
                                  "cache_implementation"), {"temperature": 0.9, "top_p": 0.9, "top_k": 20}),
    Feature("beam search, assisted and other decoding", (), {"generation_kwargs": {"num_beams": 2}},
            refused=both("one sampled token at a time")),
    Feature("gradient checkpointing", (), {"gradient_checkpointing": True}, note="Policy and critic."),
    Feature("bfloat16", (), {"bf16": True}),
    Feature("`disable_dropout`", ("disable_dropout",), {"disable_dropout": True},
            note="Numbers, skipped layers and noise of routers, too; policy, reference and critic."),
    Feature("a head in float32", ("cast_lm_head_to_fp32",), {"cast_lm_head_to_fp32": True}),
    Feature("tables of completions", ("log_completions", "num_completions_to_print", "log_unique_prompts"),
            {"log_completions": True}),
    Feature("vLLM, in the same process or a server",
            ("use_vllm", "vllm_mode", "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
             "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
            tested="tests/rollout/test_vllm.py, against a stand-in; not on a GPU"),
    Feature("vLLM's own settings",
            ("vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex", "vllm_server_base_url",
             "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port", "vllm_gpu_memory_utilization",
             "vllm_max_model_length", "vllm_tensor_parallel_size"), tested="passed to TRL unchanged; not tested here"),
    Feature("arguments of the chat template", ("chat_template_kwargs",), tested="tests/hub/test_hub.py",
            note="Saved with the model and applied by `Mem1Agent`."),
    Feature("continuous batching of transformers",
            ("use_transformers_continuous_batching", "transformers_continuous_batching_config"),
            {"use_transformers_continuous_batching": True,  # without bounds it takes half of the memory for its cache
             "transformers_continuous_batching_config": {"page_size": 32, "num_blocks": 64, "max_batch_tokens": 256}},
            note="A turn runs to its full length before it is cut."),
    Feature("Liger", (), {"use_liger_kernel": True}, refused=both("`use_liger_kernel` is not supported")),
    Feature("`torch_compile`", (), {"torch_compile": True}, refused=both("`torch_compile` is not supported")),
    Feature("NEFTune", (), {"neftune_noise_alpha": 5.0}, refused=both("adds other noise to the embeddings in each pass")),
    Feature("experts, and the balancing of their load", ("router_aux_loss_coef",), tested="tests/trainers/test_parts.py"),
    Feature("several processes (DDP)", tested="tests/trainers/test_processes.py", note="Every critic."),
    Feature("DeepSpeed ZeRO-2", (), tested="tests/trainers/test_zero.py, two processes",
            note="PPO: the critic stays outside the engine. See examples/accelerate."),
    Feature("DeepSpeed ZeRO-3", ("ds3_gather_for_generation",), tested="tests/trainers/test_zero.py, two processes",
            note="PPO: a critic with weights of its own is split, too, outside the engine."),
    Feature("FSDP2", (), tested="tests/trainers/test_sharded_ppo.py, two processes",
            note="PPO: a critic with weights of its own is split, too."),
    Feature("FSDP of version 1", (), {"fsdp": True, "fsdp_config": {"version": 1}}, refused={"PPO": "needs FSDP's version 2"},
            tested="TRL's own; not tested here"),
    Feature("weight of the state's tokens", (), {"state_loss_weight": 2.0}, note="Not TRL's: [credit.md](credit.md)."),
    Feature("rewards of single turns", (), {}, {"environment_factory": TurnByTurn},
            note="Not TRL's. GRPO adds them up."),
    Feature("advantages between turns, or on two levels", (), {"advantage_level": "two_level", "token_lam": 0.9, "lam": 0.9},
            refused={"GRPO": "unexpected keyword argument 'token_lam'"}, note="Not TRL's: by a critic."),
    Feature("turns compared within their group", (), {"advantage_level": "state", "gamma": 0.9},
            refused={"PPO": "advantage_level must be one of 'token', 'turn', 'two_level'"},
            note="Not TRL's: turns of one number, or of one context, without a critic."),
    Feature("context rule `compact`: summaries at a budget, or every few turns", (),
            {"context": "compact", "context_kwargs": {"every": 1}}, note="Not TRL's: [context_rules.md](context_rules.md)."),
    Feature("context rule `on_demand`: rewriting is an action", (), {"context": "on_demand"}, note="Not TRL's."),
    Feature("context rule `fold`: branches that are folded", (), {"context": "fold"}, note="Not TRL's."),
    Feature("context rules `full`, `truncate`, `external`", (), {"context": "truncate", "max_context_length": 120}, note="Not TRL's."),
    Feature("a context rule of one's own", (), {"context": AllTurns()}, note="Not TRL's."),
    Feature("a reward for what states are worth", (), {"memory_value_weight": 0.1},
            note="Not TRL's: nats that the state carries, by turn. Not with FSDP or ZeRO-3."),
    Feature("groups of equal rewards are played again", (), {"dynamic_sampling_max_rounds": 2},
            refused={"PPO": "dynamic_sampling_max_rounds=2 works on whole sequences or groups"}, note="Not TRL's: dynamic sampling."),
    Feature("trajectories without advantage are passed over", (), {"skip_zero_advantages": True, "beta": 0.0},
            refused={"PPO": "skip_zero_advantages=True works on whole sequences or groups"}, note="Not TRL's: the same gradient in less time."),
    Feature("a curriculum by schedule or by success, of objectives and turns", (), tested="tests/trainers/test_stages.py", note="Not TRL's."),
    Feature("on-policy distillation", (), {"distillation_weight": 0.1, "task_reward_weight": 0.5},
            note="Not TRL's: from another model, or from the policy with the whole history in view. Not with FSDP or ZeRO-3."),
    Feature("on-policy distillation in the rewards", (), {"distillation_weight": 0.1, "distillation_in_reward": True},
            note="Not TRL's."),
    Feature("trackers: TensorBoard, wandb, trackio", (), tested="tests/trainers/test_tracking.py", note="With `log_completions`, episodes turn "
            "by turn: a table (wandb, trackio), traces (trackio), text (TensorBoard)."),
    Feature("trajectories as data sets on the Hub", (), tested="tests/hub/test_trajectory_hub.py"),
]  # fmt: skip


def outcome(feature: Feature, trainer: str) -> str:
    """`refused: why`, `works`, or `see elsewhere`."""
    if trainer in feature.refused:
        return f"refused: {feature.refused[trainer]}"
    return feature.tested or "works"


def page() -> str:
    """docs/features.md"""
    lines = [
        f"# Features of `GRPOTrainer` (TRL {'.'.join(trl.__version__.split('.')[:2])})",
        "",
        "Made and checked by `tests/trainers/test_features.py`: \"works\" is a step of training there and a value over several turns",
        "in the test that `tests/trainers/test_feature_effects.py` names, \"refused\" an error at construction that says what to use",
        "instead. To write it again: `PYTHONPATH=tests python tests/trainers/test_features.py`.",
        "",
        "| feature | `Mem1GRPOTrainer` | `Mem1PPOTrainer` | |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for feature in FEATURES:
        cells = [feature.name, outcome(feature, "GRPO"), outcome(feature, "PPO"), feature.note]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def build(tmp_path, tokenizer, actor_path, name: str, feature: Feature):
    trainer, config = TRAINERS[name]
    settings = {"max_turns": 3, "max_observation_length": 40, "max_steps": 1, **feature.settings}
    if name == "GRPO":
        settings = {"num_generations": 2, **settings}
    arguments = {"train_dataset": lookup_dataset(), **feature.arguments}
    if arguments.get("reward_funcs") == "a classifier":
        arguments |= {"reward_funcs": tiny_classifier(), "reward_processing_classes": tokenizer}
    if arguments["train_dataset"] == "stream":
        arguments["train_dataset"] = lookup_dataset().to_iterable_dataset()
    return trainer(
        model=actor_path,
        args=config(**trainer_arguments(tmp_path, **settings)),
        processing_class=tokenizer,
        protocol=SHORT,
        **{"environment_factory": LookupEnvironment, **arguments},
    )


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_it_trains_or_is_refused(tmp_path, tokenizer, actor_path, name, feature):
    if name in feature.refused and "ZeRO-3" in feature.name:
        pytest.skip("tests/trainers/test_sharding.py")  # needs the package to be asked for
    if name in feature.refused:
        with pytest.raises((ValueError, TypeError), match=re.escape(feature.refused[name])):
            build(tmp_path, tokenizer, actor_path, name, feature)
        return
    if feature.tested:
        pytest.skip(feature.tested)
    trainer = build(tmp_path, tokenizer, actor_path, name, feature)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert math.isfinite(logs["loss"]) and math.isfinite(logs["grad_norm"])
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    if logs["grad_norm"] > 0:
        assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)


def test_every_parameter_of_grpo_trainer_has_a_row():
    """A new release of TRL with a new feature fails here, until the table says what becomes of it."""
    own = {field.name for field in dataclasses.fields(GRPOConfig)} - {
        f.name for f in dataclasses.fields(TrainingArguments)
    }
    arguments = set(inspect.signature(GRPOTrainer.__init__).parameters)
    covered = {name for feature in FEATURES for name in (*feature.covers, *feature.settings, *feature.arguments)}
    assert not own - covered - PLUMBING
    assert not arguments - covered - PLUMBING
    known = {f.name for config in (TrainingArguments, Mem1PPOConfig) for f in dataclasses.fields(config)}
    assert not covered - own - arguments - known


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
