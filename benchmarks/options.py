"""The command line that every benchmark has; what libraries print is silenced on import."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
warnings.filterwarnings("ignore", category=FutureWarning)  # about names that transformers and TRL use themselves
warnings.filterwarnings("ignore", message=".*pin_memory.*")

import torch
from timing import Timing


def parse_arguments(
    document: str, add: Callable[[argparse.ArgumentParser], None] | None = None, **defaults: Any
) -> argparse.Namespace:
    """
    Arguments that every benchmark takes, and those of its own; threads, clock and noise are set as a side effect.

    Args:
        document (`str`):
            The script's docstring.
        add (`Callable[[argparse.ArgumentParser], None]`, *optional*):
            Adds the script's own arguments.
        defaults:
            Other defaults for the common arguments, such as `repeats=9`.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, seconds: does it run? The times mean nothing"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions of each variant")
    parser.add_argument("--threads", type=int, default=None, help="threads of PyTorch (default: PyTorch's own choice)")
    parser.add_argument("--device", default="cpu", help="'cpu' or 'cuda'")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="time to report; 'cpu' (of all threads and children) for a machine that others use too",
    )
    parser.add_argument("--output", type=Path, default=None, help="JSON file (default: benchmarks/results/NAME.json)")
    if add is not None:
        add(parser)
    parser.set_defaults(**defaults)
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    if args.device.split(":")[0] not in ("cpu", "cuda"):
        parser.error(f"--device must be cpu or cuda, got {args.device}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device")
    if args.clock == "cpu" and args.device != "cpu":
        parser.error("--clock cpu does not see the work of a GPU: use wall")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    Timing.clock = args.clock
    if args.smoke:
        args.repeats = min(args.repeats, 2)
    quiet()
    return args


def quiet() -> None:
    """Silence what libraries print while they are measured."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
