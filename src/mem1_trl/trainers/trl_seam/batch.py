"""The only file that knows TRL's private methods. It wraps them with `super()` and checks that they are what we rely on."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trl
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.data_utils import is_conversational

from ...rollout.generation import GenerateHook
from ...rollout.prefix_cache import PrefixCache
from ...rollout.stopping import Completion, StopTexts, finish_completion
from ...update.layout_model import LayoutModel
from ...update.layouts import resolve_layout
from ...update.micro_batches import bins_within
from ...update.row_batch import RowBatch
from ...update.rows import Row, build_row
from ..bitsandbytes_cpu import keep_trainable
from ..checkpoints import RunState, checkpoint_to_resume, mark_complete, mark_incomplete, replay_shuffles
from ..refusals import refuse_parts
from ..skip_failed_episodes import skip_rows
from .contract import check_trl
from .helpers import _has_rows, instance_attribute, row_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

    from ...configs import Mem1GRPOConfig
    from ...rollout.settings import AgentSettings
    from ...trajectory import Trajectory


logger = get_logger(__name__)


REFERENCE_FILE = "mem1_reference.pt"

_SUSPICIOUS_DIFFERENCE = 1.0  # nats; half precision stays well below


@dataclass(frozen=True, slots=True)
class BoundStructure:
    """
    The structure of the rows TRL is working on: `(B, C)` tensors over the completion part, beside TRL's own.

    Attributes:
        tool_mask (`torch.Tensor`): 1 on sampled tokens.
        turn_ids (`torch.Tensor`): Turn of each token.
        parent_offsets (`torch.Tensor`): Distance to the predecessor of each token.
    """

    tool_mask: torch.Tensor
    turn_ids: torch.Tensor
    parent_offsets: torch.Tensor

    @classmethod
    def from_rows(cls, rows: list[Row], length: int, device: torch.device) -> BoundStructure:
        """Pad the structure of rows to `length`."""
        shape = (len(rows), length)
        tool_mask, turn_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        parent_offsets = torch.ones(shape, dtype=torch.long)
        for index, row in enumerate(rows):
            size = len(row.completion_ids)
            tool_mask[index, :size] = torch.tensor(row.tool_mask)
            turn_ids[index, :size] = torch.tensor(row.turn_ids)
            parent_offsets[index, :size] = torch.tensor(row.parent_offsets)
        return cls(tool_mask.to(device), turn_ids.to(device), parent_offsets.to(device))

    def row_batch(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> RowBatch:
        """Join with TRL's `(B, P + C)` tensors."""
        prompt = input_ids.shape[1] - self.tool_mask.shape[1]

        def widen(x: torch.Tensor, value: int) -> torch.Tensor:
            return torch.nn.functional.pad(x, (prompt, 0), value=value)

        sampled = widen(self.tool_mask, 0).bool() & attention_mask.bool()
        return RowBatch(input_ids, attention_mask, sampled, widen(self.turn_ids, 0), widen(self.parent_offsets, 1))


class _Restore(TrainerCallback):
    """Restores the part of a resumed run that `Trainer` does not know of."""

    def __init__(self, trainer: TrajectoryTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.restore_run()


class _SkipIdleSteps(TrainerCallback):
    """A step from which every episode was left out changes nothing, though momentum and weight decay would."""

    def __init__(self, trainer: TrajectoryTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.step_is_idle:
            for module in self.trainer.trained_modules:
                module.zero_grad(set_to_none=True)
        self.trainer.step_is_idle = True


class TrajectoryTrainer(GRPOTrainer):
    """
    `GRPOTrainer` whose rows are trajectories. Subclasses say what an episode is and what is learned from it.

    They implement [`~TrajectoryTrainer.prepare_rows`], [`~TrajectoryTrainer.run_episodes`] and
    [`~TrajectoryTrainer.completions_for_rewards`], and may extend [`~TrajectoryTrainer.extend_batch`],
    [`~TrajectoryTrainer.extra_loss`], [`~TrajectoryTrainer.save_extra`] and [`~TrajectoryTrainer.load_extra`].
    """

    args: Mem1GRPOConfig
    model: PreTrainedModel
    environments: list[Any] | None  # type: ignore[assignment]
    max_completion_length: int

    def __init__(self, *args: Any, **kwargs: Any):
        check_trl()
        self._bound: BoundStructure | list[Row] | None = None
        self._rows: list[dict[str, Any]] = []
        self._trajectories: list[Trajectory] = []
        self._local_rewards: torch.Tensor | None = None
        self._last_logps: torch.Tensor | None = None
        self.last_readout: torch.Tensor | None = None
        self._in_loss = False
        self._left_out: list[bool] = []
        self.step_is_idle = True
        self._resumed_from: str | None = None
        self._train_sampler: Any = None
        self._response_template: Any = None
        super().__init__(*args, **kwargs)
        self.add_callback(_Restore(self))
        self.add_callback(_SkipIdleSteps(self))
        keep_trainable(self.model)
        refuse_parts(self.args, self.is_deepspeed_enabled, self.is_fsdp_enabled)
        self.layout = resolve_layout(self.model, self.args.layout)
        if self.aux_loss_enabled and self.layout == "packed":
            # TRL hands the attention mask to the load-balancing loss, which takes no 4-D one
            self.layout = "per_turn"
        self.stop_texts = StopTexts(self.tokenizer)
        self._prefix_cache = PrefixCache(self.tokenizer.pad_token_id) if self.args.prefix_cache else None
        # Set here and not passed: TRL warns that the argument is experimental, which is for us to worry about
        self.rollout_func = self._rollout

    # What subclasses implement

    def prepare_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Start the episodes of dataset rows and return the rows with the prompts that the agent reads."""
        raise NotImplementedError

    def run_episodes(self, rows: list[dict[str, Any]], prompt_ids: list[list[int]]) -> list[Trajectory]:
        """Play the episodes that [`~TrajectoryTrainer.prepare_rows`] started."""
        raise NotImplementedError

    def completions_for_rewards(self, trajectories: list[Trajectory], conversational: bool) -> list[Any]:
        """What reward functions and the completion table see of each trajectory: a text or a list of messages."""
        raise NotImplementedError

    def encode_prompts(self, prompts: list[Any]) -> list[list[int]]:
        """Token ids of the prompts of the rows that [`~TrajectoryTrainer.prepare_rows`] gave, in their order."""
        prompt_ids, *_ = self._tokenize_prompts(prompts)
        return [list(ids) for ids in prompt_ids]

    @property
    def episode_environments(self) -> list[Any] | None:
        """The environment of each running episode, for reward functions, or `None`."""
        return None

    @property
    def kl_in_loss(self) -> bool:
        """Whether TRL's loss adds the KL penalty of weight `beta`."""
        return True

    @property
    def policy_frozen(self) -> bool:
        """Whether the policy's loss is only measured at this step; then [`~TrajectoryTrainer.extra_loss`] trains something."""
        return False

    @property
    def trained_modules(self) -> list[torch.nn.Module]:
        """What an optimizer step moves."""
        return [self.model]

    @property
    def hidden_readout(self) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.nn.Module] | None:
        """
        A function of the policy's hidden states `(N, L, H)` and the backbone that gives them, or `None`.

        Evaluated in the forward pass of the policy's loss; [`~TrajectoryTrainer.extra_loss`] finds it in `last_readout`,
        shape `(B, C)`.
        """
        return None

    def extend_batch(self, batch: dict[str, Any], trajectories: list[Trajectory], rewards: torch.Tensor) -> None:
        """Add to the batch that TRL has built. `rewards` has shape `(B,)`; NaN where nothing scored a trajectory."""

    def rewarded(self, trajectories: list[Trajectory]) -> None:
        """Called when the trajectories of a generation batch have their rewards."""

    def extra_loss(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """A loss on top of the policy's, scaled for gradient accumulation, or `None`."""
        return None

    def save_extra(self, directory: str) -> None:
        """Write what a checkpoint needs besides TRL's own files."""

    def load_extra(self, directory: str) -> None:
        """Read what [`~TrajectoryTrainer.save_extra`] wrote."""

    # What subclasses use

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._tokenizer

    @property
    def mode(self) -> str:
        """`"train"` or `"eval"`, the key of TRL's metric dictionaries."""
        return "train" if self.model.training else "eval"

    def log_metric(self, name: str, value: float) -> None:
        """Add a value to the metrics of the current logging step, where it is averaged over calls."""
        self._metrics[self.mode][name].append(value)

    def token_normalizer(self, batch: dict[str, Any]) -> torch.Tensor:
        """
        Generated tokens that one optimizer step of this process averages over, as in TRL's `"dapo"` loss.

        Sums over micro-batches divided by it do not depend on how trajectories are split into micro-batches or processes.
        """
        total = batch["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if self.mode == "train":
            total = total * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return total

    def row_batch(self, batch: dict[str, Any]) -> RowBatch:
        """The rows of a batch with their tree structure."""
        input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        return self._structure(batch).row_batch(input_ids, attention_mask)

    def sampled_mask(self, batch: dict[str, Any]) -> torch.Tensor:
        """1 on the tokens that are trained, shape `(B, C)`."""
        return batch["completion_mask"] * batch["tool_mask"]

    def policy_logps(self, batch: dict[str, Any]) -> torch.Tensor:
        """Log-probs of the current policy, without gradient, shape `(B, C)`."""
        rows = self.row_batch(batch)
        size = self.args.per_device_train_batch_size if self.mode == "train" else self.args.per_device_eval_batch_size
        with torch.no_grad(), self._binding(self._structure(batch)):
            logps, *_ = self._get_per_token_logps_and_entropies(
                self.model, rows.input_ids, rows.attention_mask, batch["completion_ids"].shape[1], batch_size=size
            )
        return logps

    def generate_turn(self, prompts: list[list[int]], stops: list[list[str]]) -> list[Completion]:
        """
        One completion for each context, by whatever backend TRL is configured with.

        Args:
            prompts (`list[list[int]]`):
                Token ids of the contexts.
            stops (`list[list[str]]`):
                Stop strings of each.

        Returns:
            `list[Completion]`: Cut at the first complete action.
        """
        wanted = len(prompts)
        if self._generates_together:
            # Every process takes part in every call, with equally many prompts: those that ran out send dummies
            most = int(self.accelerator.gather(torch.tensor([wanted], device=self.accelerator.device)).max())
            prompts = [*prompts, *([[self.eos_token_ids[0]]] * (most - wanted))]
            stops = [*stops, *([[]] * (most - wanted))]
        if self.use_vllm:
            with self._vllm_stops(stops):
                ids, logprobs = super()._generate_single_turn(prompts, None, {}, 1)
        else:
            model = self.accelerator.unwrap_model(self.model_wrapped)
            # Only where no other process has to take part in a call of the model
            cache = None if self._generates_together else self._prefix_cache
            hook = GenerateHook(model, self.stop_texts, stops, self.temperature, self.eos_token_ids, cache)
            training = model.training
            with self._greedy_in_eval(), instance_attribute(model, "generate", hook):
                ids, logprobs = super()._generate_single_turn(prompts, None, {}, 1)
            model.train(training)  # TRL's continuous batching leaves a model that is evaluated in training mode
            if logprobs is None and hook.logprobs is not None:
                logprobs = [row[: len(kept)] for row, kept in zip(hook.logprobs, ids)]
        rows = zip(ids, logprobs or [None] * len(ids), stops)
        truncated = not self.decoding.samples_from_policy
        completions = [finish_completion(*row, self.stop_texts, self.eos_token_ids, truncated) for row in rows]
        return completions[:wanted]

    @property
    def decoding(self) -> AgentSettings:
        """How the next token is chosen at the moment: in an evaluation at `eval_temperature`."""
        training = {"temperature": self.args.temperature} if self.mode == "train" else {}
        return self.args.agent_settings(**training)

    def any_process(self, flag: bool) -> bool:
        """Whether `flag` is true in some process; asked only if the backend generates for all processes together."""
        if not self._generates_together:
            return flag
        return bool(self.accelerator.gather(torch.tensor([flag], device=self.accelerator.device)).any())

    # The wrapped methods

    @property
    def _generates_together(self) -> bool:
        """Whether one call of the generation backend is collective over processes."""
        if self.accelerator.num_processes == 1:
            return False
        if self.use_vllm:
            return self.vllm_mode == "server" or self.vllm_tensor_parallel_size > 1
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    @contextmanager
    def _vllm_stops(self, stops: list[list[str]]) -> Iterator[None]:
        """Pass stop strings to vLLM, which takes one set for all prompts; what differs is cut afterwards."""
        backend = self.vllm_generation
        own = dict(backend.generation_kwargs or {})
        union = sorted({stop for row in stops for stop in row})
        extra: dict[str, Any] = {}
        if union:
            extra = {"stop": [*own.get("stop", []), *union], "include_stop_str_in_output": True}
        temperature = backend.temperature
        if self.mode == "eval" and self.args.eval_temperature is not None:
            temperature = self.args.eval_temperature
        with (
            instance_attribute(backend, "generation_kwargs", {**own, **extra}),
            instance_attribute(backend, "temperature", temperature),
        ):
            yield

    @contextmanager
    def _greedy_in_eval(self) -> Iterator[None]:
        """Use `eval_temperature` while TRL evaluates."""
        if self.mode == "train" or self.args.eval_temperature is None:
            yield
            return
        changes = self.decoding.decoding_options()
        config = self.generation_config
        before = {name: getattr(config, name) for name in changes}
        kwargs = dict(self.generation_kwargs)
        try:
            config.update(**changes)
            self.generation_kwargs = {**kwargs, **changes}
            yield
        finally:
            config.update(**before)
            self.generation_kwargs = kwargs

    def _rollout(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's `rollout_func`: plays the episodes and hands TRL one row for each."""
        try:
            with instance_attribute(self.tokenizer, "response_template", self._response_template):
                prompt_ids = self.encode_prompts(prompts)
                self._trajectories = self.run_episodes(self._rows, prompt_ids)
        finally:
            if self._prefix_cache is not None:  # the weights are about to change
                self._prefix_cache.clear()
        self._left_out, logprobs_missing = self._find_left_out()
        start = self.accelerator.process_index * len(self._trajectories)
        rows = [
            self._empty_row(list(ids[:1])) if left_out else build_row(trajectory, self.layout)
            for trajectory, ids, left_out in zip(self._trajectories, prompt_ids, self._left_out[start:])
        ]
        self._bound = rows
        logprobs = [row.logprobs for row in rows]
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "env_mask": [row.tool_mask for row in rows],
            "logprobs": None if logprobs_missing else logprobs,
            "trajectories": self._trajectories,
        }

    def _find_left_out(self) -> tuple[list[bool], bool]:
        """
        Which rows of all processes are no part of the update: failed episodes, and with "drop_group" their groups. And whether
        the sampler gave no log-probs somewhere, so that all processes build the same batch.
        """
        known = [
            (t.error is not None, any(turn.logprobs is None for turn in t.turns if t.error is None))
            for t in self._trajectories
        ]
        known = self.gather_records(known)
        failed, missing = [row[0] for row in known], any(row[1] for row in known)
        if self.mode == "eval" or self.args.on_environment_error != "drop_group":
            return failed, missing
        size = self.num_generations or 1
        groups = [any(failed[start : start + size]) for start in range(0, len(failed), size)]
        self.log_metric("environment/dropped_groups", sum(groups))
        return [groups[index // size] for index in range(len(failed))], missing

    def _empty_row(self, prompt_ids: list[int]) -> Row:
        """A row in place of one that is left out, as short as can be: TRL wants a token, which no loss counts."""
        return Row(prompt_ids, [self.eos_token_ids[0]], [0], [0], [1], [0.0])

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        # TRL would parse each row as one turn, which it is not
        self._response_template = getattr(self.tokenizer, "response_template", None)
        with instance_attribute(self.tokenizer, "response_template", None):
            outputs = super()._generate(prompts)
        if len(outputs) != 8:
            raise ImportError(
                f"trl {trl.__version__} does not fit this version of mem1-trl: `_generate` gives {len(outputs)} values "
                "instead of 8; install a TRL release that README.md lists as tested."
            )
        self._correct_length_metrics()
        self.environments = self.episode_environments
        completions = self.completions_for_rewards(self._trajectories, is_conversational({"prompt": prompts[0]}))
        return (*outputs[:3], completions, *outputs[4:])

    def _correct_length_metrics(self) -> None:
        """
        TRL takes a completion without end-of-sequence token for truncated; here a closed action ends one too.

        Episodes that failed have no length.
        """
        device = self.accelerator.device
        lengths = torch.tensor([t.num_generated_tokens for t in self._trajectories], device=device)
        cut = torch.tensor([_is_truncated(t) for t in self._trajectories], device=device)
        sound = torch.tensor([t.error is None for t in self._trajectories], device=device)
        sound = self.accelerator.gather(sound)
        lengths, cut = self.accelerator.gather(lengths).float()[sound], self.accelerator.gather(cut)[sound]
        if not len(lengths):
            lengths, cut = lengths.new_zeros(1), cut.new_zeros(1)
        ended = lengths[~cut] if (~cut).any() else torch.zeros(1, device=device)
        metrics = self._metrics[self.mode]
        for name, value in (
            ("mean_length", lengths.mean()),
            ("min_length", lengths.min()),
            ("max_length", lengths.max()),
            ("clipped_ratio", cut.float().mean()),
            ("mean_terminated_length", ended.mean()),
            ("min_terminated_length", ended.min()),
            ("max_terminated_length", ended.max()),
        ):
            metrics[f"completions/{name}"][-1:] = [value.item()]

    def _calculate_rewards(
        self, inputs: list[Any], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        sampled = [[i for turn in t.turns for i in turn.completion_ids] for t in self._trajectories]
        failed = [trajectory.error is not None for trajectory in self._trajectories]
        functions = (
            [skip_rows(function, failed) for function in self.reward_funcs] if any(failed) else self.reward_funcs
        )
        with instance_attribute(self, "reward_funcs", functions):
            per_function = super()._calculate_rewards(inputs, prompts, completions, sampled)
        left_out = torch.tensor(self._left_out, device=per_function.device)
        per_function[left_out] = torch.nan
        rewards = (per_function * self.reward_weights.to(per_function.device)).nansum(dim=1)
        rewards[per_function.isnan().all(dim=1)] = torch.nan
        if rewards.isnan().all() and not left_out.any() and self.state.global_step == 0:
            raise ValueError(
                "Nothing scored any trajectory of the first batch, so there is nothing to learn from: check that the data set "
                "has the columns that the rewards read, such as `answers`."
            )
        start = self.accelerator.process_index * len(prompts)
        self._local_rewards = rewards[start : start + len(prompts)]
        for trajectory, reward in zip(self._trajectories, self._local_rewards.tolist(), strict=True):
            trajectory.reward = None if reward != reward else reward
        return per_function

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.environments = None  # TRL would reset those of the last batch
        self._rows = self.prepare_rows([dict(row) for row in inputs])
        mask_truncated, self.mask_truncated_completions = self.mask_truncated_completions, False
        try:
            batch = super()._generate_and_score_completions(self._rows)
            structure = self._structure(None, batch["completion_ids"].shape[1])
        finally:
            self.mask_truncated_completions = mask_truncated
            self._bound = None
        batch["turn_ids"], batch["parent_offsets"] = structure.turn_ids, structure.parent_offsets
        if any(self._left_out):
            kept = self._left_out.count(False)
            batch["row_scale"] = torch.tensor(
                len(self._left_out) / max(kept, 1), device=batch["completion_ids"].device
            )
        if mask_truncated:
            # TRL recognises truncation by a missing end-of-sequence token, so it is done here
            cut = torch.tensor([_is_truncated(t) for t in self._trajectories], device=batch["completion_ids"].device)
            batch["completion_mask"] = batch["completion_mask"] * (~cut)[:, None]
            batch["num_items_in_batch"] = self.accelerator.gather(self.sampled_mask(batch).sum()).sum()
        assert self._local_rewards is not None
        self.extend_batch(batch, self._trajectories, self._local_rewards)
        self.rewarded(self._trajectories)
        self._rows, self._trajectories = [], []
        return batch

    def _structure(self, batch: dict[str, Any] | None, length: int = 0) -> BoundStructure:
        if batch is not None:
            return BoundStructure(batch["tool_mask"], batch["turn_ids"], batch["parent_offsets"])
        if isinstance(self._bound, BoundStructure):
            return self._bound
        if self._bound is None:
            raise RuntimeError("Log-probs were asked for outside of a batch: use `mem1_trl.score_trajectories`.")
        return BoundStructure.from_rows(self._bound, length, self.accelerator.device)

    @contextmanager
    def _binding(self, structure: BoundStructure) -> Iterator[None]:
        with instance_attribute(self, "_bound", structure):
            yield

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        rows = self._structure(None, logits_to_keep).row_batch(input_ids, attention_mask)
        readout, backbone = (self._in_loss and self.hidden_readout) or (None, None)
        stand_in = LayoutModel(model, self.accelerator.unwrap_model(model), rows, self.layout, readout, backbone)
        outputs = super()._get_per_token_logps_and_entropies(
            stand_in, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        self._last_logps = outputs[0].detach()
        self.last_readout = torch.cat(stand_in.read)[:, -logits_to_keep:] if stand_in.read else None
        return outputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if self.mode == "train":
            self.step_is_idle = self.step_is_idle and bool(inputs.get("idle", False))
        parts = row_chunks(inputs, len(inputs["completion_ids"]) // int(inputs.get("parts", 1)))
        # Losses that average over the rows of a micro-batch average over its parts, too; the others sum over tokens
        share = 1 / len(parts) if self.loss_type in _ROW_MEANS else 1.0
        done = torch.zeros((), device=inputs["completion_ids"].device)
        for part in parts[:-1]:
            # The gradient of a part is added now, so that its activations can go; the last part's is Trainer's business
            with self.accelerator.no_sync(model):
                loss = self._loss_of_part(model, part, share)
                with torch.autocast(loss.device.type, enabled=False):
                    self.accelerator.backward(loss)
            done += loss.detach()
        return self._loss_of_part(model, parts[-1], share) + done

    def _loss_of_part(self, model: Any, inputs: dict[str, Any], share: float) -> torch.Tensor:
        beta = self.beta if self.kl_in_loss else 0.0
        if "row_scale" in inputs and self.loss_type in _ROW_MEANS:
            # The mean over rows counts those that were left out; advantages and KL are what the loss is linear in
            inputs = {**inputs, "advantages": inputs["advantages"] * inputs["row_scale"]}
            beta = beta * inputs["row_scale"].item()
        gradient = torch.is_grad_enabled() and not self.policy_frozen
        binding = self._binding(self._structure(inputs))
        with (
            binding,
            instance_attribute(self, "beta", beta),
            instance_attribute(self, "_in_loss", True),
            torch.set_grad_enabled(gradient),
        ):
            loss = super()._compute_loss(model, inputs)
        loss = loss if share == 1.0 else share * loss
        self._log_sampler_difference(inputs)
        extra = self.extra_loss(inputs)
        return loss if extra is None else loss + extra

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.mode == "train" and self._buffered_inputs is not before:
            assert self._buffered_inputs is not None
            window = min(self.args.gradient_accumulation_steps, len(self._buffered_inputs))
            for start in range(0, len(self._buffered_inputs), window):
                chosen = slice(start, start + window)
                self._buffered_inputs[chosen] = self._rearranged(self._buffered_inputs[chosen])
                self._mark_idle(self._buffered_inputs[chosen])
            inputs = self._buffered_inputs[self._step % (self.args.steps_per_generation or 1)]
        return inputs

    def _mark_idle(self, batches: list[dict[str, Any]]) -> None:
        """Say in the micro-batches of an optimizer step whether all of them, of all processes, train nothing."""
        if "row_scale" not in batches[0]:
            return
        tokens = torch.stack([self.sampled_mask(batch).sum() for batch in batches]).sum()
        idle = self.accelerator.gather(tokens.reshape(1)).sum() == 0
        for batch in batches:
            batch["idle"] = idle
        if idle:
            logger.warning("Every episode of a step was left out of the update, so the step changes nothing.")

    def _rearranged(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        The micro-batches of one optimizer step, of all processes, with trajectories exchanged until all weigh about the same.

        The step trains on the same trajectories, in micro-batches of as many rows. One turn is left as TRL shuffled it.
        """
        processes, budget = self.accelerator.num_processes, self.args.max_tokens_per_micro_batch
        if budget is None and processes * len(batches) == 1:
            return batches
        merged = {key: _join([batch[key] for batch in batches]) for key in batches[0]}
        if processes > 1:
            merged = {key: self._gather_rows(key, value) for key, value in merged.items()}
        if int(merged["turn_ids"].max()) == 0:
            return batches
        lengths = (merged["prompt_mask"].sum(1) + merged["completion_mask"].sum(1)).tolist()
        bins = bins_within(lengths, processes * len(batches), budget)
        loads = [sum(lengths[row] for part in parts for row in part) for parts in bins]
        self.log_metric("micro_batch/tokens_max_over_mean", max(loads) * len(loads) / max(sum(loads), 1))
        self.log_metric("micro_batch/parts", len(bins[0]))
        arranged = []
        for index in range(len(batches)):
            parts = bins[index * processes + self.accelerator.process_index]
            rows = torch.tensor([row for part in parts for row in part], device=merged["prompt_ids"].device)
            batch = {key: value[rows] if _has_rows(value) else value for key, value in merged.items()}
            arranged.append({**batch, "parts": torch.tensor(len(parts))})
        return arranged

    def _gather_rows(self, key: str, value: Any) -> Any:
        """A tensor of the batch with the rows of all processes, padded to the widest as TRL pads it."""
        if not _has_rows(value):
            return value
        if value.ndim > 1:
            filler = {"prompt_ids": self.tokenizer.pad_token_id, "completion_ids": self.tokenizer.pad_token_id}
            value = self.accelerator.pad_across_processes(
                value,
                dim=1,
                pad_index=filler.get(key, 1 if key == "parent_offsets" else 0),
                pad_first=key.startswith("prompt"),
            )
        return self.accelerator.gather(value.contiguous())

    def _log_sampler_difference(self, inputs: dict[str, Any]) -> None:
        """
        Largest difference between the log-prob a token was sampled with and the one the update gives it.

        Only before the first step on a batch, when both are of the same weights. It measures what is left of numerical noise
        and of differences between the sampler and the trainer; a context that does not match shows as nats.
        """
        sampled = inputs.get("sampling_per_token_logps")
        slices = self.args.steps_per_generation or 1
        before_first_step = min(slices, self.args.gradient_accumulation_steps)
        fresh = self.mode == "eval" or self._step % (slices * self.num_iterations) < before_first_step
        if sampled is None or not fresh or self._last_logps is None:
            return
        mask = self.sampled_mask(inputs).bool() & ~sampled.isnan()
        gap = (self._last_logps - sampled).abs().masked_fill(~mask, 0.0).amax()
        largest = self.accelerator.gather(gap.reshape(1)).max().item()
        self.log_metric("sampling/max_logp_difference", largest)
        if largest > _SUSPICIOUS_DIFFERENCE and self.layout == "packed" and not self.use_vllm:
            logger.warning_once(
                f"A token was sampled with a log-prob {largest:.2f} nats away from what the update computes. Within one "
                "library that is more than rounding: use layout='per_turn', and report the model to mem1-trl."
            )

    # Checkpoints

    @contextmanager
    def saving_one_adapter(self, output_dir: str | None) -> Iterator[None]:
        """Leave the frozen adapter that TRL keeps as a reference out of what is saved; only a checkpoint needs it."""
        adapters = getattr(self.model, "peft_config", {})
        if "ref" not in adapters or re.fullmatch(r"checkpoint-\d+", Path(output_dir or "").name):
            yield
            return
        kept = [name for name in adapters if name != "ref"]
        with instance_attribute(
            self.model, "save_pretrained", partial(self.model.save_pretrained, selected_adapters=kept)
        ):
            yield

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Train, from the beginning or from a checkpoint.

        A resumed run goes on as if it had never stopped: with the same optimizer, schedules, random states and order of the
        data in all epochs, and in the middle of a generation batch if that is where it was.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint of this run, or `True` for the latest one that was written to its end.
            args, kwargs (*optional*):
                As in [`~transformers.Trainer.train`].

        Raises:
            `ValueError`: If there is no such checkpoint, or the run ended while it was written.
        """
        self._resumed_from = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        return super().train(self._resumed_from, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        directory = f"{self._get_output_dir(trial=trial)}/checkpoint-{self.state.global_step}"
        if self.args.should_save:
            mark_incomplete(directory)
        self.accelerator.wait_for_everyone()
        self._run_state().save(directory, self.accelerator.process_index)
        save_state = self.state.save_to_json

        def finish(path: str) -> None:
            """The trainer's state is written last, before old checkpoints are deleted and this one is pushed."""
            save_state(path)
            self.save_extra(directory)
            if self._reference_moves:
                reference = self.accelerator.unwrap_model(self.ref_model)
                torch.save(reference.state_dict(), f"{directory}/{REFERENCE_FILE}")
            self.accelerator.wait_for_everyone()
            mark_complete(directory, self.state.global_step)

        with instance_attribute(self.state, "save_to_json", finish):
            super()._save_checkpoint(model, trial)
        if not self.args.should_save:
            self.accelerator.wait_for_everyone()

    @property
    def _reference_moves(self) -> bool:
        """Whether the reference model follows the policy, and its weights are whole in this process."""
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return self.args.sync_ref_model and self.ref_model is not None and not sharded

    def _run_state(self) -> RunState:
        generate_every = (self.args.steps_per_generation or 1) * self.num_iterations
        return RunState(
            micro_step=self._step,
            buffer=None if self._step % generate_every == 0 else self._buffered_inputs,
            metrics={name: list(values) for name, values in self._metrics["train"].items()},
            loss=float(self._tr_loss),
            last_logged=self._globalstep_last_logged,
            entropy=[float(self.entropy_coef), float(self._last_world_entropy)],
        )

    def restore_run(self) -> None:
        """Go on where the checkpoint was; called when `Trainer` has restored its own part and is about to begin."""
        if self._resumed_from is None:
            return
        if self.is_deepspeed_enabled:  # which loads its own part of a checkpoint elsewhere than `Trainer` does
            self.load_extra(self._resumed_from)
        replay_shuffles(self._train_sampler, int(self.state.epoch or 0))
        if self._reference_moves:
            path = f"{self._resumed_from}/{REFERENCE_FILE}"
            weights = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(weights)
        state = RunState.load(self._resumed_from, self.accelerator.process_index, self.accelerator.device)
        if state is None:
            logger.warning(
                "The checkpoint is of a run with fewer processes, so this one goes on with other random numbers."
            )
            return
        self._step = state.micro_step
        self._buffered_inputs = state.buffer  # type: ignore[assignment]
        self._metrics["train"].update(state.metrics)
        self._tr_loss += state.loss
        self._globalstep_last_logged = state.last_logged
        if self.use_adaptive_entropy:
            self.entropy_coef, self._last_world_entropy = state.entropy

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._train_sampler = super()._get_train_sampler(*args, **kwargs)
        return self._train_sampler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.load_extra(resume_from_checkpoint)

    def gather_records(self, records: list[Any]) -> list[Any]:
        """Concatenate a list of plain objects over processes."""
        return gather_object(records)


# Loss types of TRL that are a mean over the rows of a micro-batch
_ROW_MEANS = ("grpo", "sapo", "dr_grpo", "luspo")


def _join(values: list[Any]) -> Any:
    """Rows of several micro-batches in one; what belongs to the whole batch stays as it is."""
    return torch.cat(values) if _has_rows(values[0]) else values[0]


def _is_truncated(trajectory: Trajectory) -> bool:
    return trajectory.stop_reason == "truncated"
