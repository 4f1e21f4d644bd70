"""Tests of loading what was trained: models of other classes than causal language models, and adapters."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.helpers import VOCAB
from support.trainer_helpers import SHORT, LookupEnvironment, lookup_dataset, trainer_arguments
from transformers import AutoConfig, AutoModelForImageTextToText

from mem1_trl import Mem1Agent, Mem1GRPOConfig, Mem1GRPOTrainer
from mem1_trl.hub.load_model import load_model

TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
SIGLIP = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
IMAGE = VOCAB - 1

KINDS = {
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
        "vision_config": VISION, "image_token_id": IMAGE, "video_token_id": IMAGE - 1,
    },
    "gemma3": {
        "text_config": {**TEXT, "head_dim": 8, "sliding_window": 512, "query_pre_attn_scalar": 8}, "vision_config": SIGLIP,
        "image_token_index": IMAGE, "mm_tokens_per_image": 4,
    },
    "smolvlm": {
        "text_config": {"model_type": "llama", **TEXT}, "vision_config": SIGLIP, "image_token_id": IMAGE, "pad_token_id": 0,
    },
}  # fmt: skip


def make(tmp_path, kind, tokenizer, **kwargs):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **KINDS[kind]), dtype=torch.float32)
    return Mem1GRPOTrainer(
        model,
        args=Mem1GRPOConfig(**trainer_arguments(
            tmp_path, max_turns=2, max_observation_length=40, num_generations=4, max_steps=1, max_context_length=200,
        )),
        train_dataset=lookup_dataset(), environment_factory=LookupEnvironment, protocol=SHORT, processing_class=tokenizer,
        **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_trained_on_text_is_loaded(tmp_path, tokenizer, kind):
    """The model card's own call, for models that read images, too: the class and every logit are those of the trained model."""
    trainer = make(tmp_path / "run", kind, tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    agent = Mem1Agent.from_pretrained(str(tmp_path / "model"))
    assert type(agent.model).__name__ == type(trainer.model).__name__
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        assert torch.allclose(agent.model(input_ids=ids).logits, expected, atol=1e-5)
    trajectory = agent.run("q1?", LookupEnvironment(), secret="1")
    assert trajectory.turns and trajectory.error is None


def test_an_adapter_is_loaded_on_the_class_of_its_base(tmp_path, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model("smolvlm", **KINDS["smolvlm"]))
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
