"""`merge_adapter`: episodes are played by weights that hold the adapter, the update trains it beside them, and no weight drifts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from support.helpers import tiny_model
from support.trainer_helpers import SHORT, LookupEnvironment, copy_parameters, lookup_dataset, odd, trainer_arguments

from mem1_trl import Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.trainers.merged_adapter import merged_adapter, why_not_merged

IDS = torch.arange(2, 42).view(2, 20)


def adapted(**settings: Any) -> Any:
    """A tiny model with an adapter that changes what it computes."""
    torch.manual_seed(0)
    config = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False, **settings}
    tied = "lm_head" in config["target_modules"]
    model = get_peft_model(tiny_model("llama", tie_word_embeddings=tied), LoraConfig(task_type="CAUSAL_LM", **config))
    return model.eval()


def trainer_of(path, tokenizer, model, **more):
    return Mem1GRPOTrainer(
        model=model,
        args=Mem1GRPOConfig(**trainer_arguments(path, **{"num_generations": 2, "max_steps": 2, "learning_rate": 1e-2, **more})),
        train_dataset=lookup_dataset(),
        processing_class=tokenizer,
        environment_factory=LookupEnvironment,
        reward_funcs=odd,
        protocol=SHORT,
    )  # fmt: skip


def test_a_merged_model_computes_the_same_and_is_given_back_bit_for_bit():
    model = adapted()
    before = copy_parameters(model)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        with model.disable_adapter():
            assert not torch.allclose(model(input_ids=IDS).logits, expected, atol=1e-2), "the adapter does something"
        for _ in range(3):
            with merged_adapter(model):
                plain = [module for module in model.modules() if isinstance(module, Linear)]
                assert plain and all(module.merged for module in plain)
                torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)
            assert not any(module.merged for module in plain)
        assert torch.equal(model(input_ids=IDS).logits, expected)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_an_error_on_the_way_leaves_no_weight_merged():
    model = adapted()
    before = copy_parameters(model)
    with pytest.raises(KeyboardInterrupt), merged_adapter(model):
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not any(module.merged for module in model.modules() if isinstance(module, Linear))


def test_episodes_are_played_merged_and_the_update_is_the_same(tmp_path, tokenizer):
    """In two runs from one seed, the same episodes, losses and adapters; merged only while tokens are sampled."""
    model, runs = adapted(), {}
    for merge in (False, True):
        trainer = trainer_of(tmp_path / str(merge), tokenizer, copy.deepcopy(model), merge_adapter=merge)
        base = {name: value for name, value in copy_parameters(trainer.model).items() if "lora_" not in name}
        layer: Any = next(module for module in trainer.model.modules() if isinstance(module, Linear))
        seen: dict[bool, set[bool]] = {True: set(), False: set()}
        layer.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen[torch.is_grad_enabled()].add(module.merged)
        )
        played = []
        play = trainer.player.play
        trainer.player.play = lambda episodes, play=play, played=played: played.append(play(episodes)) or played[-1]
        trainer.train()
        now = dict(trainer.model.named_parameters())
        assert all(torch.equal(now[name], value) for name, value in base.items()), "the weights below did not move"
        assert True not in seen[True] and (True in seen[False]) == merge
        ids = [[turn.completion_ids for turn in one.turns] for batch in played for one in batch]
        adapter = torch.cat([value.detach().flatten() for name, value in now.items() if "lora_" in name])
        gaps = [log["sampling/max_logp_difference"] for log in trainer.state.log_history if "loss" in log]
        runs[merge] = ids, adapter, gaps
    assert runs[True][0] == runs[False][0]
    torch.testing.assert_close(runs[True][1], runs[False][1], atol=1e-4, rtol=1e-3)
    start = torch.cat([value.detach().flatten() for name, value in model.named_parameters() if "lora_" in name])
    assert (runs[True][1] - start).abs().max() > 1e-3, "the adapter was trained"
    assert max(runs[True][2]) < 1e-4


REFUSED = {
    "no adapter": (lambda: tiny_model("llama"), "the model has no adapter"),
    "half precision": (lambda: adapted().to(torch.bfloat16), "its weights are torch.bfloat16, in which small changes are lost"),
    "a variant": (lambda: adapted(use_dora=True), "its adapter is a variant of LoRA"),
    "an embedding": (lambda: adapted(target_modules=["embed_tokens"]), "a layer is a peft.tuners.lora.layer.Embedding, and only"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_merged_is_said_before_the_first_episode(tmp_path, tokenizer, kind):
    make, reason = REFUSED[kind]
    with pytest.raises(
        ValueError, match=f"merge_adapter=True needs a LoRA adapter on whole float32 weights, but {reason}"
    ):
        trainer_of(tmp_path, tokenizer, make(), merge_adapter=True)


def test_a_weight_that_something_else_reads_is_not_merged():
    model = adapted(target_modules=["lm_head"])
    assert why_not_merged(model) == "a weight that the adapter changes is that of another layer, too"


def test_what_is_merged_already_stays_so():
    model = adapted()
    model.merge_adapter()
    assert why_not_merged(model) == "an adapter is merged already"


def test_autocast_is_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="but it computes in bf16, in which small changes are lost: leave it False"):
        trainer_of(tmp_path, tokenizer, adapted(), merge_adapter=True, bf16=True)
