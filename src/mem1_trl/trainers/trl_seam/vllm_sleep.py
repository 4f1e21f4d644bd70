"""vLLM's sleep mode over a whole rollout: the engine is woken once and put to sleep once, and not in every turn."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .helpers import instance_attribute

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def awake(trainer: Any) -> Iterator[None]:
    """
    Keep TRL's vLLM engine awake while a rollout is played.

    With `vllm_enable_sleep_mode`, TRL puts the engine to sleep after each `generate`, which throws away weights and prefix cache: a
    rollout of six turns would push all weights six times. Here they are pushed once, before the first turn and in every process, since
    gathering sharded weights is a call that all processes make.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            Without vLLM in this process, or without sleep mode, nothing is done.
    """
    backend = getattr(trainer, "vllm_generation", None) if trainer.use_vllm else None
    if backend is None or trainer.vllm_mode != "colocate" or not getattr(backend, "enable_sleep_mode", False):
        yield
        return
    if backend._llm_weights_sleeping or trainer._last_loaded_step != trainer.state.global_step:
        backend.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step
    backend.llm.wake_up(tags=["kv_cache"])
    try:
        with instance_attribute(backend, "enable_sleep_mode", False):
            yield
    finally:
        backend.llm.sleep(level=2)
        backend._llm_weights_sleeping = True
