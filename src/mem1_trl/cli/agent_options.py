"""What commands that play an agent share: which model it is, where it runs, and how it decodes."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ..context_rules.named import import_rule
from ..json_text import read_json
from ..protocol.presets import PRESETS
from ..rollout.settings import AgentSettings, setting, unread
from .model_check import check_model
from .options import CommandError, naming_options

if TYPE_CHECKING:
    from ..agent import Mem1Agent
    from ..protocol.protocol import Mem1Protocol


def _saved(name: str) -> Any:
    """A field of [`AgentSettings`] that is not set, which takes the value saved with the model."""
    own = next(one for one in fields(AgentSettings) if one.name == name)
    return setting(name, default=None, help=f"{own.metadata['help']} Default: as saved with the model.")


@dataclass
class AgentArguments:
    """
    Arguments about an agent.

    Parameters:
        model_name_or_path (`str`):
            Path or id of a causal language model.
        context, context_kwargs, max_completion_length, max_observation_length, max_context_length, memory_top_k, temperature, top_p, min_p,
        repetition_penalty, conversational (*optional*):
            As in [`AgentSettings`]. `None` takes what was saved with the model (`mem1_agent.json`), else the default there.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        device (`str`, *optional*):
            Where the model runs. `None` takes a GPU if there is one.
        endpoint (`str`, *optional*):
            Address of a server that runs the model, such as `http://localhost:8000/v1`; then `model_name_or_path` gives the
            tokenizer, the protocol and the saved settings only.
        endpoint_model (`str`, *optional*):
            Name of the model at the server. `None` takes `model_name_or_path`.
        backend (`str`, *optional*):
            How the server is spoken to: `"completions"` or `"chat"`, see [`Mem1Agent`]. `None` takes completions if it offers them.
        batch_size (`int`, *optional*, defaults to `32`):
            Episodes played at once.
    """

    model_name_or_path: str = field(kw_only=True, metadata={"help": "Path or id of a causal language model."})
    context: str | None = _saved("context")
    context_kwargs: dict | str | None = _saved("context_kwargs")  # noqa: RUF009  # the type that TRL's own have
    max_completion_length: int | None = _saved("max_completion_length")
    max_observation_length: int | None = _saved("max_observation_length")
    max_context_length: int | None = _saved("max_context_length")
    memory_top_k: int | None = _saved("memory_top_k")
    temperature: float | None = _saved("temperature")
    top_p: float | None = _saved("top_p")
    min_p: float | None = _saved("min_p")
    repetition_penalty: float | None = _saved("repetition_penalty")
    conversational: bool | None = _saved("conversational")
    dtype: str = field(
        default="auto",
        metadata={"help": "Data type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    device: str | None = field(
        default=None, metadata={"help": "Where the model runs. `None` takes a GPU if there is one."}
    )
    endpoint: str | None = field(
        default=None,
        metadata={
            "help": "Address of a server that runs the model, such as http://localhost:8000/v1; then model_name_or_path gives "
            "the tokenizer, the protocol and the saved settings only."
        },
    )
    endpoint_model: str | None = field(
        default=None,
        metadata={"help": "Name of the model at the server. `None` takes model_name_or_path."},
    )
    backend: str | None = field(
        default=None,
        metadata={
            "help": "How the server is spoken to: raw contexts as in training, or chat messages. `None` takes completions if it "
            "offers them.",
            "choices": ["completions", "chat"],
        },
    )
    batch_size: int = field(default=32, metadata={"help": "Episodes played at once."})

    def check_endpoint(self) -> None:
        """Raise `ValueError` for options that are about a server, without one, or about a model that runs here, beside one."""
        if self.endpoint is None and (self.backend or self.endpoint_model):
            name = "backend" if self.backend else "endpoint_model"
            raise ValueError(f"{name} is about a server: give its address with --endpoint, or leave {name} out")
        if self.endpoint is not None and (self.device is not None or self.dtype != "auto"):
            name = "dtype" if self.device is None else "device"
            raise ValueError(
                f"{name} is about a model that runs here, and endpoint is a server: leave out one of them"
            )

    def settings(self, sampled: bool = False) -> AgentSettings:
        """
        The settings of the agent: what was saved with the model, and what was given.

        Args:
            sampled (`bool`, *optional*, defaults to `False`):
                Whether a request may bring a temperature, which gives others an effect.

        Raises:
            `CommandError`: If a value is out of its range, or has no effect.
        """
        from ..hub.agent_settings import load_agent_settings

        given = self.given()
        try:
            found = (load_agent_settings(self.model_name_or_path) or AgentSettings()).changed(given)
        except ValueError as error:
            raise CommandError(str(error)) from None
        in_use = dataclasses.replace(found, temperature=found.temperature or 1.0) if sampled else found
        for name, (because, how) in unread(in_use).items():
            if given.get(name) not in (None, getattr(AgentSettings(), name)):
                raise CommandError(f"{name}={given[name]!r} {because}: {how}, or leave {name} out")
        return found

    def given(self) -> dict[str, Any]:
        """Fields of [`AgentSettings`] that were set, but for two names that mean something else here."""
        others = ("top_k", "environment")  # passages of one search, and an import path
        names = [one.name for one in fields(AgentSettings) if one.name not in others and hasattr(self, one.name)]
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        try:
            if isinstance(self.context_kwargs, str):
                with contextlib.suppress(ValueError):  # it stays a text, which is refused below
                    found["context_kwargs"] = read_json(self.context_kwargs)
            if self.context is not None:
                import_rule(self.context)
        except ValueError as error:
            raise CommandError(str(error)) from None
        if not isinstance(found.get("context_kwargs", {}), dict):
            raise CommandError(
                f"context_kwargs must be a JSON object such as '{{\"every\": 4}}', got {self.context_kwargs!r}"
            )
        return found


def chosen_protocol(options: Any) -> Mem1Protocol:
    """The protocol that was asked for, or the one that was saved with the model."""
    from ..hub.agent_settings import saved_protocol

    check_model(options.model_name_or_path)
    try:
        return options.chosen_protocol() or saved_protocol(options.model_name_or_path)
    except FileNotFoundError:
        raise CommandError(
            f"there is no mem1_protocol.json at {options.protocol or options.model_name_or_path!r}: check the path, or say how "
            f"the model is spoken to with --protocol ({', '.join(PRESETS)}, or a directory)"
        ) from None


def open_agent(options: AgentArguments, protocol: Mem1Protocol, **overrides: Any) -> Mem1Agent:
    """The agent: a model that is loaded here, or that a server runs."""
    import torch
    from transformers.utils import logging

    from ..agent import Mem1Agent

    logging.disable_progress_bar()
    budgets = {name: value for name, value in options.given().items() if name != "max_turns"} | overrides
    if options.endpoint is not None:
        try:
            with naming_options({"`client` must be a client, or the address": "endpoint must be the address"}):
                return Mem1Agent.from_pretrained(
                    options.model_name_or_path,
                    protocol,
                    model=options.endpoint_model,
                    client=options.endpoint,
                    backend=options.backend,
                    batch_size=options.batch_size,
                    **budgets,
                )
        except ValueError as error:
            raise CommandError(str(error)) from None
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each unknown kind has its own
        reason = str(error).splitlines()[0]
        raise CommandError(
            f"device must be one that this machine has, such as cpu, got {device!r}: {reason}"
        ) from None
    return Mem1Agent.from_pretrained(
        options.model_name_or_path,
        protocol,
        model_init_kwargs={"dtype": options.dtype, "device_map": device},
        batch_size=options.batch_size,
        **budgets,
    )
