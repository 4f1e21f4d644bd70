"""Tiny random models that read images beside text, as the texts of these tests use them: without any."""

from __future__ import annotations

from typing import Any

import torch
from support.helpers import VOCAB
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_PATCHES = {**_VISION, "image_size": 16, "patch_size": 4}
_SECTIONS = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
# The last ids of the vocabulary, which the tokenizer of the tests does not use
_IMAGE, _VIDEO, _BEGIN, _END = range(VOCAB - 4, VOCAB)

IMAGE_MODELS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "text_config": {**_TEXT, "rope_parameters": _SECTIONS},
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
        },
        "image_token_id": _IMAGE,
        "video_token_id": _VIDEO,
        "vision_start_token_id": _BEGIN,
        "vision_end_token_id": _END,
    },
    "gemma3": {
        "text_config": {**_TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
        "vision_config": _PATCHES,
        "mm_tokens_per_image": 4,
        "image_token_index": _IMAGE,
        "boi_token_index": _BEGIN,
        "eoi_token_index": _END,
    },
    "gemma4": {
        "text_config": {
            **_TEXT,
            "head_dim": 8,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB,
            "sliding_window": 16,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {**_VISION, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8},
        "audio_config": None,
        "image_token_id": _IMAGE,
        "video_token_id": _VIDEO,
        "boi_token_id": _BEGIN,
        "eoi_token_id": _END,
    },
    "smolvlm": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": _PATCHES,
        "image_token_id": _IMAGE,
        "scale_factor": 2,
    },
    "idefics3": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": _PATCHES,
        "image_token_id": _IMAGE,
        "scale_factor": 2,
    },
}


def tiny_image_model(model_type: str) -> PreTrainedModel:
    """A random model of one of `IMAGE_MODELS`, in float32."""
    config = AutoConfig.for_model(model_type, **IMAGE_MODELS[model_type])
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
