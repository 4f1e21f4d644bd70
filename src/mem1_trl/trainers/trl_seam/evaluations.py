"""
Evaluations that can be compared with those of other runs.

Wraps `_get_eval_sampler`, `get_eval_dataloader` and `get_test_dataloader`, for the order of the tasks, and `_determine_best_metric` and `_evaluate`, for
a metric that is `None`.
"""

from __future__ import annotations

from typing import Any

from accelerate.logging import get_logger
from datasets import IterableDataset

from .contract import check_values
from .helpers import instance_attribute
from .micro_batches import BalancedMicroBatches

logger = get_logger(__name__)


class OrderedEvaluations(BalancedMicroBatches):
    """Evaluates tasks in the order of the data set, and keeps the best model and the learning rate where an evaluation has no number for them."""

    def _get_eval_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """TRL shuffles evaluations by the seed of the run. In the order of the data set they can be compared task by task with those of other runs."""
        sampler = check_values("_get_eval_sampler", super()._get_eval_sampler(*args, **kwargs))
        sampler.shuffle = False
        return sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """A stream has no sampler, so that TRL shuffles the stream itself: it is given one that cannot be shuffled."""
        own: Any = self.eval_dataset
        stream = own if eval_dataset is None else own[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        if not isinstance(stream, IterableDataset):
            return check_values("get_eval_dataloader", super().get_eval_dataloader(eval_dataset))
        with (
            instance_attribute(stream, "shuffle", lambda *args, **kwargs: stream),
            # TRL reads a stream without workers, and none can be kept then
            instance_attribute(self.args, "dataloader_persistent_workers", False),
        ):
            return check_values("get_eval_dataloader", super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """`Trainer` would play each row of a stream once, whatever `num_generations_eval` says."""
        if isinstance(test_dataset, IterableDataset):
            return self.get_eval_dataloader(test_dataset)
        return super().get_test_dataloader(test_dataset)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A schedule that follows a metric takes no step without a number."""
        scheduler: Any = self.lr_scheduler
        step = scheduler.step

        def follow(metric: Any = None, *more: Any, **options: Any) -> None:
            if metric is not None:
                step(metric, *more, **options)

        # Only schedules that follow a metric take a step here
        with instance_attribute(scheduler, "step", follow):
            metrics: dict[str, Any] = check_values("_evaluate", super()._evaluate(*args, **kwargs))
        return metrics

    def _determine_best_metric(self, metrics: dict[str, Any], trial: Any) -> bool:
        name = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        if name in metrics and metrics[name] is None:
            logger.warning(
                f"metric_for_best_model={name!r} is None in this evaluation, since nothing gave it a number: it does not count as better."
            )
            return False
        return bool(check_values("_determine_best_metric", super()._determine_best_metric(metrics, trial)))
