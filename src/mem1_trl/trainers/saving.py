"""What is saved next to a model so that it is run as it was trained, and how a trainer starts from it."""

from __future__ import annotations

import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.logging import get_logger
from peft import PeftModel
from transformers import AutoTokenizer
from transformers.utils import CONFIG_NAME

from ..hub.agent_settings import find_protocol, load_agent_settings
from ..hub.load_model import why_not_loadable
from ..hub.model_card import CardFacts
from ..json_text import as_json, read_json_object
from ..protocol.presets import named_protocol
from ..protocol.protocol import Mem1Protocol
from ..rollout.settings import AgentSettings
from ..saved_files import place_of
from ..update.critic.critic import BACKBONE_DIRECTORY
from ..update.critic.optimizer import OPTIMIZER_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

    from .mem1 import Mem1Trainer

logger = get_logger(__name__)

# Settings of a run that its card reports, where they exist
_CARD_SETTINGS = (
    "learning_rate",
    "value_learning_rate",
    "lr_scheduler_type",
    "max_steps",
    "num_train_epochs",
    "generation_batch_size",
    "num_generations",
    "num_iterations",
    "beta",
    "kl_in_reward",
    "gamma",
    "lam",
    "vf_coef",
    "critic_warmup_steps",
    "temperature",
    "layout",
    "seed",
)

_ADAPTER = "adapter_config.json"
_DAMAGED = "resume from another checkpoint."
_WHOLE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_OF_ADAPTERS = frozenset({
    "peft_type", "r", "lora_alpha", "alpha", "target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "modules_to_save",
    "trainable_token_indices", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias", "lora_bias",
})  # fmt: skip
"""Settings of PEFT without which the weights of an adapter do not fit or mean something else; dropout and initialization may change."""

MEM1_CITATION = textwrap.dedent("""\
    @article{zhou2025mem1,
        title        = {{MEM1: Learning to Synergize Memory and Reasoning for Efficient Long-Horizon Agents}},
        author       = {Zijian Zhou and Ao Qu and Zhaoxuan Wu and Sunghwan Kim and Alok Prakash and Daniela Rus and Jinhua Zhao and Bryan Kian Hsiang Low and Paul Pu Liang},
        year         = 2025,
        eprint       = {arXiv:2506.15841},
    }""")


def model_source(model: Any) -> str | None:
    """Path or id that a model was loaded from, or `None`; of a model in memory only a directory, so that no server is asked."""
    if isinstance(model, str):
        return model
    source = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return source if source and Path(source).is_dir() else None


def starting_protocol(protocol: Any, model: Any, args: Any) -> Mem1Protocol:
    """
    The protocol of a run: the one that is passed, or named, else the one saved next to the model, else the default.

    Raises:
        `TypeError`: If something else is passed.
        `ValueError`: If a name is neither that of a preset nor a directory.
    """
    if isinstance(protocol, str):
        return named_protocol(protocol)
    if protocol is not None:
        if not isinstance(protocol, Mem1Protocol):
            raise TypeError(
                f"`protocol` must be a Mem1Protocol, the name of a preset, or None for the one saved with the model, got a {type(protocol).__name__}."
            )
        return protocol
    source = model_source(model)
    saved = None if source is None else find_protocol(source, **_place(model, args))
    if saved is None:
        return Mem1Protocol()
    logger.info(f"The protocol saved with {source} is used; pass `protocol=Mem1Protocol()` for the default tags.")
    return saved


def starting_tokenizer(tokenizer: Any, model: Any, args: Any) -> Any:
    """
    The tokenizer of a run: the one that is passed, else the one beside the model.

    TRL would load a processor for a model that also reads images.

    Raises:
        `ValueError`: If none is passed for a model that was made in memory.
    """
    if tokenizer is not None:
        return tokenizer
    source = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
    if not source:
        raise ValueError(
            "`processing_class` must be passed for a model that was made in memory, got None: pass its tokenizer."
        )
    return AutoTokenizer.from_pretrained(
        source,
        **_place(model, args),
        truncation_side="left",
        padding_side="left",
        trust_remote_code=args.trust_remote_code,
    )


def warn_of_what_cannot_be_loaded(model: Any) -> None:
    """Log one line before training if [`Mem1Agent.from_pretrained`] cannot load what will be saved."""
    reason = why_not_loadable(model)
    if reason is not None:
        logger.warning(f"`Mem1Agent.from_pretrained` will not load what is trained here: {reason}.")


def saved_settings(model: Any, args: Any) -> AgentSettings | None:
    """The agent settings saved next to the model that a run starts from, if there are any."""
    source = model_source(model)
    return None if source is None else load_agent_settings(source, **_place(model, args))


def _place(model: Any, args: Any) -> dict[str, Any]:
    """What says from where a model comes that the trainer loads, so that whatever lies beside it is of the same revision."""
    return place_of(args.model_init_kwargs) if isinstance(model, str) else {}


def refuse_other_settings(checkpoint: str, protocol: Mem1Protocol, settings: AgentSettings) -> None:
    """
    Raise if a checkpoint was written by a run that spoke to the model in another way.

    Args:
        checkpoint (`str`):
            Its directory.
        protocol ([`Mem1Protocol`]), settings ([`AgentSettings`]):
            Those of this run.

    Raises:
        `ValueError`: Naming the fields that differ.
    """
    different: list[str] = []
    saved_protocol, saved = find_protocol(checkpoint), load_agent_settings(checkpoint)
    if saved_protocol is not None and saved_protocol != protocol:
        mine, theirs = protocol.to_dict(), saved_protocol.to_dict()
        different += [f"protocol.{name}" for name in mine if mine[name] != theirs[name]]
    if saved is not None:
        settings = AgentSettings.from_dict(as_json(settings.to_dict()))  # a tuple is a list in the file
        pairs = saved.differences(settings)
        different += [f"{name} ({theirs!r} there, {mine!r} here)" for name, (theirs, mine) in pairs.items()]
    if different:
        raise ValueError(
            f"{checkpoint} must be resumed with the settings it was trained with, got another {', another '.join(different)}: "
            "restore them, or start a new run from its weights (`model=`)."
        )


def refuse_other_adapter(checkpoint: str, model: Any) -> None:
    """
    Raise if a checkpoint was written by a run with another adapter, or none, whose weights would not fit or mean something else.

    Args:
        checkpoint (`str`):
            Its directory.
        model (`Any`):
            The policy of this run.

    Raises:
        `ValueError`: Naming the fields that differ.
    """
    folder = Path(checkpoint)
    here = {name: _shape_of_adapter(config.to_dict()) for name, config in getattr(model, "peft_config", {}).items()}
    is_adapter = (folder / _ADAPTER).is_file()
    if is_adapter and not here:
        there = _shape_of_adapter(read_json_object(folder / _ADAPTER, _DAMAGED))
        raise ValueError(
            f"{checkpoint} is of a {_kind(there)} run with {_listed(there)}, got none: pass that `peft_config`."
        )
    if here and not is_adapter and any((folder / name).is_file() for name in _WHOLE_WEIGHTS):
        mine = next(iter(here.values()))
        raise ValueError(
            f"{checkpoint} is of a run without an adapter, got {_kind(mine)} with {_listed(mine)}: leave out `peft_config`, or start a new "
            "run from its weights (`model=`)."
        )
    for name, mine in here.items():
        file = folder / ("" if name == "default" else name) / _ADAPTER
        if not file.is_file():
            continue
        theirs = _shape_of_adapter(read_json_object(file, _DAMAGED))
        different = [key for key in mine if key in theirs and mine[key] != theirs[key]]
        if different:
            raise ValueError(
                f"{checkpoint} is of a {_kind(theirs)} run with {_listed(theirs, different)}, got {_listed(mine, different)}: restore it, or start a new "
                "run from its weights."
            )


def refuse_other_critic(saved: Path, backbone: PreTrainedModel | None, follows: bool) -> None:
    """
    Raise if a checkpoint was written by a run with another kind of critic, whose weights would not fit.

    Args:
        saved (`Path`):
            Directory of the critic in the checkpoint.
        backbone ([`~transformers.PreTrainedModel`] or `None`):
            That of this run's critic; `None` if it is a head of the policy.
        follows (`bool`):
            Whether this run's critic has an optimizer of its own, beside one that was given for the policy.

    Raises:
        `ValueError`: Naming what differs.
    """
    kinds = {True: "a critic of its own", False: "the critic value_model='shared'"}
    there, here = (saved / BACKBONE_DIRECTORY).is_dir(), backbone is not None
    if there != here:
        raise ValueError(
            f"{saved} is of a run with {kinds[there]}, got {kinds[here]}: pass the `value_model` of that run."
        )
    if (saved / OPTIMIZER_FILE).is_file() != follows:
        words = {True: "optimizers=(optimizer, ...)", False: "no `optimizers`"}
        raise ValueError(
            f"{saved} is of a run with {words[not follows]}, got {words[follows]}: a run goes on with the optimizers that it began with."
        )
    config = saved / BACKBONE_DIRECTORY / CONFIG_NAME
    if backbone is not None and config.is_file():
        sizes = read_json_object(config, _DAMAGED)
        different = [
            f"{name}={sizes[name]!r} there, {mine!r} here"
            for name in ("hidden_size", "num_hidden_layers", "vocab_size")
            if name in sizes and (mine := getattr(backbone.config, name, None)) != sizes[name]
        ]
        if different:
            raise ValueError(
                f"{saved} is of a run with another critic ({'; '.join(different)}): pass the `value_model` of that run."
            )


def _shape_of_adapter(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of an adapter that say which weights it has and what they do; modules that are listed have no order."""
    found = {name: config[name] for name in sorted(_OF_ADAPTERS) if name in config}
    if config.get("peft_type") == "ADALORA":
        del found["rank_pattern"]  # which its training changes
    return {
        name: sorted(value, key=str) if isinstance(value, (list, tuple, set)) else as_json(value)
        for name, value in found.items()
    }


def _kind(adapter: dict[str, Any]) -> str:
    return str(adapter.get("peft_type", "LORA")).rsplit(".")[-1].replace("LORA", "LoRA")


def _listed(adapter: dict[str, Any], names: Iterable[str] = ("r", "lora_alpha")) -> str:
    return ", ".join(f"{name}={adapter[name]!r}" for name in names if name in adapter) or "its settings"


def card_facts(trainer: Mem1Trainer, evaluation: dict[str, float] | None) -> CardFacts:
    """What the model card of a trainer says beyond TRL's."""
    environment = actions = None
    if trainer.pool is not None:
        environment, actions = trainer.pool.example()
    adapter = isinstance(trainer.model, PeftModel)
    return CardFacts(
        trainer_name=trainer._name,
        citation=trainer._paper["citation"],
        paper=(trainer._paper["title"], trainer._paper["id"]),
        source=trainer.hub_model_id or str(trainer.args.output_dir),
        environment=environment,
        environment_names=trainer.pool.names if trainer.pool is not None else (),
        turn=[] if actions is None else actions.describe(),
        settings=trainer.agent_settings(),
        training={name: getattr(trainer.args, name) for name in _CARD_SETTINGS if hasattr(trainer.args, name)},
        log_history=trainer.state.log_history,
        evaluation=evaluation,
        adapter=adapter,
        versions={"PEFT": version("peft")} if adapter else {},
    )
