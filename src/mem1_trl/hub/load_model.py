"""A model as it was trained, whatever its class: what can be trained can be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from peft import PeftConfig, PeftModel, load_peft_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import find_adapter_config_file

from ..saved_files import find_adapter, place_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_model(path_or_id: str, **model_init_kwargs: Any) -> PreTrainedModel:
    """
    Load a model of the class that its configuration names.

    `AutoModelForCausalLM` knows no class for models that read images, too, such as Qwen2.5-VL, although they can be trained on text.

    Args:
        path_or_id (`str`):
            A directory with a model or an adapter, or the id of one on the Hub. In a directory an adapter may have a name of its own, which
            PEFT makes a folder of.
        model_init_kwargs (*optional*):
            Passed to [`~transformers.PreTrainedModel.from_pretrained`].

    Raises:
        `ValueError`: If it is an adapter that does not name the model it was trained on, or one of several in a directory.

    Returns:
        [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]: The model, which can generate.
    """
    where = place_of(model_init_kwargs)
    if Path(path_or_id).is_dir():
        path_or_id = str(find_adapter(path_or_id) or path_or_id)
    if find_adapter_config_file(path_or_id, **where) is not None:
        adapter = PeftConfig.from_pretrained(path_or_id, **where)
        base = adapter.base_model_name_or_path
        if not base:
            raise ValueError(
                f"The adapter {path_or_id} must name the model it was trained on, got none: load both by hand, "
                "`Mem1Agent(PeftModel.from_pretrained(model, path), tokenizer)`."
            )
        of_base = {name: value for name, value in model_init_kwargs.items() if name != "revision"}
        if adapter.revision is not None:
            of_base["revision"] = adapter.revision
        model = load_model(base, **of_base)
        _resize_as_saved(model, load_peft_weights(path_or_id, device="cpu", **where))
        return PeftModel.from_pretrained(model, path_or_id, **where)  # type: ignore[return-value]
    config = AutoConfig.from_pretrained(
        path_or_id, trust_remote_code=bool(model_init_kwargs.get("trust_remote_code")), **where
    )
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    # Code of the model's own repository may name a class for models that read images and none for others
    own = getattr(config, "auto_map", None) or {}
    unnamed = AutoModelForImageTextToText if AutoModelForImageTextToText.__name__ in own else AutoModelForCausalLM
    kind: Any = next((kind for kind in named if hasattr(kind, "generate")), unnamed)
    return kind.from_pretrained(path_or_id, **model_init_kwargs)


def _resize_as_saved(model: PreTrainedModel, saved: dict[str, torch.Tensor]) -> None:
    """Give a model as many tokens as the embeddings that were saved with its adapter, if some were."""
    embeddings: Any = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    rows = next((tensor.shape[0] for key, tensor in saved.items() if key.endswith(f"{name}.weight")), None)
    if rows is not None and rows != embeddings.weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)  # the values are those that were saved


def why_not_loadable(model: Any) -> str | None:
    """Why [`load_model`] cannot load what a model will be saved as, or `None` if it can."""
    adapters = getattr(model, "peft_config", {})
    plain = getattr(model, "get_base_model", lambda: model)()
    named = getattr(plain, "name_or_path", None)
    if adapters and not (named or all(adapter.base_model_name_or_path for adapter in adapters.values())):
        return "an adapter is saved without the model below it, and this one was made in memory: save it and pass the path"
    kind, config = type(plain), plain.config
    if getattr(transformers, kind.__name__, None) is kind or getattr(config, "auto_map", None):
        return None
    if type(config) in AutoModelForCausalLM._model_mapping:
        return None
    return f"{kind.__name__} is not a class of transformers, nor registered with AutoModelForCausalLM: register it"
