"""Tests of loading what was trained: as the class it was saved as, an adapter too, or it is said before training."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.helpers import oracle_logprobs, tiny_model
from support.image_models import IMAGE_MODELS, tiny_image_model
from support.ppo_helpers import LORA
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, trainer_arguments
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mem1_trl import Mem1Agent, Mem1GRPOConfig, Mem1GRPOTrainer, Mem1PPOConfig, Mem1PPOTrainer, score_trajectories
from mem1_trl.hub.load_model import load_model


def odd_reward(completion_ids, **kwargs) -> list[float]:
    """A number that differs between completions, so that there is something to learn."""
    return [float(sum(ids) % 11) for ids in completion_ids]


def make(tmp_path, model, name="PPO", settings=None, **kwargs):
    trainer, config = {"GRPO": (Mem1GRPOTrainer, Mem1GRPOConfig), "PPO": (Mem1PPOTrainer, Mem1PPOConfig)}[name]
    settings = {"max_turns": 2, "max_observation_length": 40, "max_steps": 1, **(settings or {})}
    settings |= {"num_generations": 2} if name == "GRPO" else {}
    return trainer(
        model=model,
        args=config(**trainer_arguments(tmp_path / "run", **settings)),
        train_dataset=lookup_dataset(),
        environment_factory=LookupEnvironment,
        protocol=SHORT,
        reward_funcs=odd_reward,
        **kwargs,
    )


def plain_logits(model):
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("model_type", IMAGE_MODELS)
def test_a_model_that_also_reads_images_is_trained_on_text_and_loaded(tmp_path, tokenizer, model_type):
    """By the call of its model card; with a critic from a path, and the tokenizer that lies beside the model."""
    tiny_image_model(model_type).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    trainer = make(tmp_path, str(tmp_path / "start"), value_model=str(tmp_path / "start"))
    before = plain_logits(trainer.model)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    agent = Mem1Agent.from_pretrained(str(tmp_path / "model"))
    assert type(agent.model) is type(trainer.model)
    assert torch.equal(plain_logits(agent.model), plain_logits(trainer.model))
    assert not torch.equal(plain_logits(agent.model), before)
    trajectory = agent.run("q1?", LookupEnvironment(), secret="1")
    oracle = oracle_logprobs(agent.model, trajectory)
    for scored, turn, expected in zip(
        score_trajectories(agent.model, [trajectory])[0], trajectory.turns, oracle, strict=True
    ):
        assert torch.allclose(scored, expected, atol=1e-4)
        assert turn.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_so_is_its_adapter(tmp_path, tokenizer):
    tiny_image_model("qwen2_5_vl").save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    trainer = make(tmp_path, str(tmp_path / "start"), "GRPO", peft_config=LORA)
    with torch.no_grad():
        for key, parameter in trainer.model.named_parameters():
            if "lora_B" in key:
                parameter.normal_()
    trainer.save_model(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "config.json").exists()
    agent = Mem1Agent.from_pretrained(str(tmp_path / "adapter"))
    assert type(agent.model.get_base_model()).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert torch.allclose(plain_logits(agent.model), plain_logits(trainer.model), atol=1e-5)
    assert not torch.allclose(plain_logits(agent.model), plain_logits(load_model(tmp_path / "start")), atol=1e-2)


def test_a_plain_language_model_is_loaded_as_before(tmp_path):
    model = tiny_model("qwen3")
    model.save_pretrained(tmp_path / "named")
    assert torch.equal(plain_logits(load_model(tmp_path / "named")), plain_logits(model))
    model.config.architectures = ["SomebodysQwen"]  # a name that transformers does not know
    model.config.save_pretrained(tmp_path / "named")
    loaded = load_model(tmp_path / "named", dtype=torch.bfloat16)
    assert type(loaded) is type(model) and loaded.dtype == torch.bfloat16


def test_an_adapter_without_the_name_of_its_model_is_announced_and_refused(tmp_path, actor, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = make(tmp_path, actor, "GRPO", peft_config=LORA, processing_class=tokenizer)
    assert "`Mem1Agent.from_pretrained` will not load what is trained here: an adapter is saved without" in caplog.text
    trainer.save_model(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match="must name the model it was trained on, got none: load both by hand"):
        Mem1Agent.from_pretrained(str(tmp_path / "adapter"))


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


def test_a_class_that_nobody_knows_is_announced(tmp_path, tokenizer, caplog):
    config = OwnConfig(**tiny_model("llama").config.to_diff_dict())
    with caplog.at_level(logging.WARNING):
        make(tmp_path, OwnModel(config), "GRPO", processing_class=tokenizer)
    assert "OwnModel is not a class of transformers, nor registered with AutoModelForCausalLM" in caplog.text


def test_nothing_is_announced_of_a_model_that_can_be_loaded(tmp_path, actor_path, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        make(tmp_path, actor_path, "GRPO", processing_class=tokenizer, peft_config=LORA)
    assert "will not load" not in caplog.text


def test_a_tokenizer_is_asked_for_where_none_can_be_loaded(tmp_path, actor):
    with pytest.raises(ValueError, match="`processing_class` must be passed for a model that was made in memory"):
        make(tmp_path, actor, "GRPO")


def test_an_adapter_is_loaded_on_the_class_of_its_base(tmp_path):
    model = tiny_image_model("smolvlm")
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    base = get_peft_model(load_model(str(tmp_path / "base")), config)
    base.save_pretrained(tmp_path / "adapter")
    again = load_model(str(tmp_path / "adapter"))
    assert type(again.get_base_model()) is type(model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, base(input_ids=ids).logits, atol=1e-6)
        assert not torch.allclose(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-3)


@pytest.mark.parametrize("name", ["GRPO", "PPO"])
def test_an_adapter_of_another_name_is_loaded_from_the_folder_of_its_run(tmp_path, actor_path, tokenizer, name):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), LORA, adapter_name="memory")
    trainer = make(tmp_path, model, name, settings={"beta": 0.0}, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    saved = trainer.args.output_dir
    again = Mem1Agent.from_pretrained(saved)
    assert torch.equal(plain_logits(again.model), plain_logits(trainer.model))
    model.add_adapter("other", LORA)
    model.save_pretrained(saved)
    with pytest.raises(
        ValueError, match=r"must hold one adapter, but it holds 'memory', 'other': pass the folder of one of them\."
    ):
        load_model(saved)
    named = load_model(f"{saved}/memory")
    assert torch.equal(plain_logits(named), plain_logits(again.model))


def test_a_checkpoint_is_no_adapter_of_the_folder_around_it(tmp_path, actor_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(actor_path), LORA)
    model.save_pretrained(tmp_path / "checkpoint-10")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        Mem1Agent.from_pretrained(str(tmp_path))
    model.save_pretrained(tmp_path / "checkpoint-10" / "ref")
    assert load_model(str(tmp_path / "checkpoint-10")).active_adapters == ["default"]


def test_an_adapter_is_loaded_on_the_revision_that_it_was_trained_on(tmp_path, actor_path, tokenizer, monkeypatch):
    config = Mem1GRPOConfig(
        **trainer_arguments(tmp_path / "run", num_generations=2), model_init_kwargs={"revision": "v1"}
    )
    trainer = Mem1GRPOTrainer(
        str(actor_path), args=config, train_dataset=lookup_dataset(), processing_class=tokenizer,
        environment_factory=LookupEnvironment, peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.save_model(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["revision"] == "v1"
    asked = []
    plain = PreTrainedModel.from_pretrained.__func__

    def load(kind, path, *args, **kwargs):
        asked.append((str(path), kwargs.get("revision")))
        return plain(kind, path, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(load))
    load_model(str(tmp_path / "saved"))
    assert asked == [(str(actor_path), "v1")]


def test_an_adapter_of_a_model_with_more_tokens_than_its_base_is_loaded(tmp_path, actor_path, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(actor_path)
    rows = model.get_input_embeddings().weight.shape[0] + 7
    model.resize_token_embeddings(rows)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "saved")
    loaded = load_model(str(tmp_path / "saved")).eval()
    ids = torch.tensor([[3, 5, rows - 1]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits[..., : rows - 7], adapted(ids).logits[..., : rows - 7])
