"""A micro-batch that is trained in parts has the gradient of the whole, in every term that TRL's loss may have."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from support.helpers import tiny_model
from support.trainer_helpers import (
    SHORT,
    LookupEnvironment,
    ScriptedGenerator,
    assert_same_tensors,
    lookup_dataset,
    planned,
    record,
    trainer_arguments,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.trainers.trl_seam.shares import Shares, TermWeights

EXPERTS = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}


def one_step(tmp_path, model, tokenizer, dataset=None, script=None, **settings):
    """What was recorded of one step on eight scripted episodes of different lengths, and the episodes."""
    defaults = {"max_turns": 4, "max_observation_length": 60, "num_generations": 4, "per_device_train_batch_size": 8}
    defaults |= {"max_steps": 1, "max_grad_norm": 0.0, "shuffle_dataset": False}
    trainer = Mem1GRPOTrainer(
        model=copy.deepcopy(model),
        args=Mem1GRPOConfig(**trainer_arguments(tmp_path, **{**defaults, **settings})),
        train_dataset=lookup_dataset(2) if dataset is None else dataset,
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        protocol=SHORT,
    )
    trainer.rollout.generate = ScriptedGenerator(tokenizer, script or planned(lambda i: (1 + i % 3, i % 2)))
    if isinstance(model, str):  # away from the reference, so that there is a divergence
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter) * parameter.std())
    recorder = record(trainer)
    recorder.parts = []  # the episodes of each backward pass
    trainer.extra_loss = lambda batch: recorder.parts.append(batch["episode_ids"].tolist())
    played: list = []
    trainer.rewarded = played.extend
    trainer.train()
    return recorder, played


# Every term but the experts'


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "dapo", "beta": 0.3},
        {"loss_type": "grpo", "beta": 0.3},
        {"loss_type": "grpo", "entropy_coef": 0.5},
        {"loss_type": "dapo", "entropy_coef": 0.5, "beta": 0.3},
        {"loss_type": "bnpo"},
        {"loss_type": "bnpo", "entropy_coef": 0.5, "beta": 0.3},
        {"loss_type": "dr_grpo", "entropy_coef": 0.5},
        {"loss_type": "cispo", "entropy_coef": 0.5, "epsilon_high": 5.0},
        {"loss_type": "sapo", "entropy_coef": 0.5},
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "entropy_coef": 0.5},
        {"loss_type": "vespo", "entropy_coef": 0.5},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_parts_add_up_to_the_whole(settings, tmp_path, tokenizer, actor, actor_path):
    model = actor_path if settings.get("beta") else actor
    whole, _ = one_step(tmp_path / "whole", model, tokenizer, **settings)
    parts, _ = one_step(tmp_path / "parts", model, tokenizer, max_tokens_per_micro_batch=70, **settings)
    assert parts.logs[0]["micro_batch/parts"] == 4
    assert_same_tensors(parts.gradients[0], whole.gradients[0], 2e-5)
    assert parts.losses[0] == pytest.approx(float(whole.losses[0]), rel=1e-4, abs=1e-6)
    # And each term matters
    for name in ("beta", "entropy_coef"):
        if name in settings:
            without, _ = one_step(tmp_path / name, model, tokenizer, **{**settings, name: 0.0})
            worst = max(
                float((g - without.gradients[0][key]).abs().max() / g.abs().max())
                for key, g in whole.gradients[0].items()
            )
            assert worst > 1e-2, name


@pytest.mark.parametrize("layout", ["packed", "per_turn"])
@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "dapo", "beta": 0.3, "entropy_coef": 0.5},
        {"loss_type": "grpo", "beta": 0.3, "entropy_coef": 0.5},
        {"loss_type": "bnpo", "entropy_coef": 0.5},
        {"loss_type": "dr_grpo", "entropy_coef": 0.5},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "sapo", "entropy_coef": 0.5},
        {"loss_type": "luspo"},
        {"loss_type": "dapo", "state_loss_weight": 0.3},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_pieces_of_rows_add_up_to_the_whole(settings, layout, tmp_path, tokenizer, actor, actor_path):
    """The budget is one token, so that each turn is a pass of its own, with all that it reads."""
    model = actor_path if settings.get("beta") else actor
    whole, played = one_step(tmp_path / "whole", model, tokenizer, layout=layout, **settings)
    cut, _ = one_step(tmp_path / "cut", model, tokenizer, layout=layout, max_tokens_per_micro_batch=1, **settings)
    turns = sum(len(trajectory.turns) for trajectory in played)
    assert cut.logs[0]["micro_batch/parts"] == turns > len(played)
    assert_same_tensors(cut.gradients[0], whole.gradients[0], 2e-5)
    assert cut.losses[0] == pytest.approx(float(whole.losses[0]), rel=1e-4, abs=1e-6)


def test_what_other_turns_of_a_history_sampled_is_not_in_the_ratios_of_a_piece(tmp_path, tokenizer, actor):
    """However unlikely it was: a ratio without bound would be inf, and NaN where it is masked."""
    sharp = copy.deepcopy(actor)
    with torch.no_grad():
        sharp.lm_head.weight.mul_(500.0)
    settings = {"context": "full", "num_iterations": 2, "max_completion_length": 64}
    whole, played = one_step(tmp_path / "whole", sharp, tokenizer, **settings)
    assert float(whole.batches[0]["old_per_token_logps"].min()) < -100.0
    cut, _ = one_step(tmp_path / "cut", sharp, tokenizer, max_tokens_per_micro_batch=1, **settings)
    assert cut.logs[0]["micro_batch/parts"] == sum(len(trajectory.turns) for trajectory in played)
    assert float(cut.losses[0]) == pytest.approx(float(whole.losses[0]), rel=1e-3)
    # Logits of hundreds are rounded in the third digit, on each processor otherwise
    assert_same_tensors(cut.gradients[0], whole.gradients[0], 5e-3)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"loss_type": "vespo"}, "the loss is of whole sequences"),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, "the loss is of whole sequences"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold is of whole sequences"),
        ({"layout": "paper"}, "layout='paper' has no branches"),
    ],
    ids=["vespo", "sequences", "off_policy", "paper"],
)
def test_a_row_that_cannot_be_cut_is_trained_whole_with_one_warning(
    settings, reason, tmp_path, tokenizer, actor, caplog
):
    whole, played = one_step(tmp_path / "whole", actor, tokenizer, **settings)
    parts, _ = one_step(tmp_path / "parts", actor, tokenizer, max_tokens_per_micro_batch=1, **settings)
    assert parts.logs[0]["micro_batch/parts"] == len(played)
    assert_same_tensors(parts.gradients[0], whole.gradients[0], 2e-5)
    (said,) = [record.getMessage() for record in caplog.records if "A pass must forward" in record.getMessage()]
    assert f"but a trajectory, which is not cut since {reason}, takes" in said


@pytest.mark.parametrize("bad", [{"use_adaptive_entropy": True}, {"top_entropy_quantile": 0.5}])
def test_what_needs_all_tokens_of_a_micro_batch_is_refused_with_parts(bad, tmp_path):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name}=.* does not go with max_tokens_per_micro_batch"):
        Mem1GRPOConfig(**trainer_arguments(tmp_path, num_generations=4, max_tokens_per_micro_batch=70, **bad))


def test_the_weights_of_the_terms_by_hand():
    one, other = Shares.of_parts([2, 2], [30, 10], [100, 300])
    assert (one, other) == (Shares(0.5, 0.75, 0.25), Shares(0.5, 0.25, 0.75))
    kept = {"shares": one, "row_scale": torch.tensor(2.0), "micro_batch_scale": torch.tensor(4.0)}
    assert TermWeights.of(kept, "grpo", True) == TermWeights(policy=1.0, token_means=3.0, experts=1.0)
    assert TermWeights.of(kept, "bnpo", True) == TermWeights(policy=3.0, token_means=3.0, experts=1.0)
    assert TermWeights.of(kept, "dapo", True) == TermWeights(policy=1.0, token_means=3.0, experts=1.0)
    assert TermWeights.of(kept, "dapo", False) == TermWeights(policy=1.0, token_means=1.0, experts=1.0)
    empty = {"row_scale": torch.tensor(2.0), "micro_batch_scale": torch.tensor(0.0)}
    assert TermWeights.of(empty, "grpo", True) == TermWeights(policy=2.0, token_means=1.0, experts=0.0)
    assert TermWeights.of({}, "grpo", True) == TermWeights()
    assert Shares.of_parts([1], [0], [0]) == [Shares(1.0, 0.0, 0.0)]
    # A part of two rows, and one row in two pieces
    pieces = Shares.of_parts([2, 1, 1], [40, 30, 10], [10, 10, 20], owners=[0, 1, 1])
    assert pieces == [Shares(2 / 3, 0.5, 0.25), Shares(1 / 3, 3 / 8, 0.25, 0.75), Shares(1 / 3, 1 / 8, 0.5, 0.25)]
    assert TermWeights.of({"shares": pieces[1]}, "grpo", False).policy == pytest.approx(0.25)
    assert TermWeights.of({"shares": pieces[1]}, "dr_grpo", False).policy == pytest.approx(1 / 3)


# Load balancing of experts


def moe(kind):
    return tiny_model("qwen3", model_type=kind, output_router_logits=False, **EXPERTS[kind])


def balancing_gradient(model, turns) -> dict[str, torch.Tensor]:
    """Gradient of the load-balancing loss of some turns, by the plain model, each turn a row of its own."""
    rows = [torch.tensor([*turn.prompt_ids, *turn.completion_ids]) for turn in turns]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model.model(input_ids=ids, attention_mask=mask, output_router_logits=True).router_logits
    model.zero_grad()
    load_balancing_loss_func(logits, 4, 2, mask).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_of_many(call: int, index: int, prompt: str) -> str:
    """Every episode searches twice and answers."""
    return "<think>k</think>" + ("<answer>1</answer>" if call == 2 else f"<search>{'xy'[call]}</search>")


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_the_scale_of_load_balancing_does_not_depend_on_the_parts(kind, loss_type, tmp_path, tokenizer):
    """Eight equal episodes have no advantage and are balanced alike in any part: their gradient is that of the plain model."""
    model = moe(kind)
    equal = Dataset.from_dict({"prompt": ["q1?"] * 2, "secret": ["1"] * 2})
    settings = {"loss_type": loss_type, "router_aux_loss_coef": 0.7, "entropy_coef": 0.0}
    forwarded = 0  # by one episode: its turns, each as wide as the longest, which is how experts are forwarded
    for parts in (1, 2, 4, 8):
        budget = None if parts == 1 else forwarded * 8 // parts
        recorder, played = one_step(
            tmp_path / str(parts), model, tokenizer, equal, one_of_many, max_tokens_per_micro_batch=budget, **settings
        )
        turns = played[0].turns
        forwarded = len(turns) * max(len(turn.prompt_ids) + len(turn.completion_ids) for turn in turns)
        assert recorder.logs[0].get("micro_batch/parts", 1) == parts
        plain = balancing_gradient(model, [turn for trajectory in played for turn in trajectory.turns])
        expected = {name: 0.7 * gradient for name, gradient in plain.items()}
        assert_same_tensors({name: recorder.gradients[0][name] for name in expected}, expected, 1e-4)


@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_load_balancing_in_parts_is_their_mean_by_forwarded_tokens(entropy_coef, tmp_path, tokenizer):
    """As near as the product of two means lets it come; and no other term is in its way."""
    model = moe("qwen3_moe")
    runs = {}
    for coefficient in (0.7, 0.0):
        runs[coefficient] = one_step(
            tmp_path / str(coefficient), model, tokenizer, loss_type="grpo", router_aux_loss_coef=coefficient,
            max_tokens_per_micro_batch=70, entropy_coef=entropy_coef, layout="per_turn",
        )  # fmt: skip
    (recorder, played), (without, _) = runs[0.7], runs[0.0]
    parts = recorder.parts
    assert len(parts) > 2 and sorted(episode for part in parts for episode in part) == list(range(8))
    expected: dict[str, torch.Tensor] = {}
    tokens = [sum(len(turn.prompt_ids) + len(turn.completion_ids) for turn in t.turns) for t in played]
    for part in parts:
        share = sum(tokens[i] for i in part) / sum(tokens)
        plain = balancing_gradient(model, [turn for i in part for turn in played[i].turns])
        for name, gradient in plain.items():
            expected[name] = expected.get(name, 0.0) + 0.7 * share * gradient
    actual = {name: recorder.gradients[0][name] - without.gradients[0][name] for name in expected}
    assert_same_tensors(actual, expected, 1e-3)


def test_a_trajectory_is_not_cut_where_experts_are_balanced(tmp_path, tokenizer, caplog):
    """And it runs turn by turn, which is said when the trainer is built."""
    settings = {"router_aux_loss_coef": 0.7, "max_tokens_per_micro_batch": 1}
    parts, played = one_step(tmp_path, moe("qwen3_moe"), tokenizer, **settings)
    assert parts.logs[0]["micro_batch/parts"] == len(played)
    said = [record.getMessage() for record in caplog.records]
    (of_pass,) = [text for text in said if "A pass must forward" in text]
    assert "a trajectory, which is not cut since experts are balanced within a pass (router_aux_loss_coef)," in of_pass
    (of_layout,) = [text for text in said if "layout='per_turn' instead of 'packed'" in text]
    assert "since the load balancing of experts (router_aux_loss_coef=0.7) takes no tree" in of_layout
    caplog.clear()
    one_step(tmp_path / "off", moe("qwen3_moe"), tokenizer, router_aux_loss_coef=0.0)
    assert "instead of 'packed'" not in caplog.text


def test_the_layout_of_the_paper_is_refused_with_load_balancing(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"layout='paper' does not go with the load balancing of experts.*0\.7"):
        one_step(tmp_path, moe("qwen3_moe"), tokenizer, router_aux_loss_coef=0.7, layout="paper")
