"""What the scripts here share: their options, and the tools of long experiments."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `long_runs`, shared with the other examples

from example_options import count, rate
from long_runs import (
    UNFINISHED,
    Deadline,
    Record,
    finish,
    is_done,
    quiet,
    read_lines,
    scalar_control,
    steps_of,
    supervised,
    write_json,
)
from model import BASE

TOGETHER = 25

__all__ = [
    "TOGETHER",
    "UNFINISHED",
    "Deadline",
    "Record",
    "add_options",
    "count",
    "finish",
    "is_done",
    "quiet",
    "rate",
    "read_lines",
    "scalar_control",
    "steps_of",
    "supervised",
    "write_json",
]


def add_options(parser, output_dir):
    parser.add_argument("--base", type=Path, default=BASE, help="folder of the unpacked model, see model.py")
    parser.add_argument("--output_dir", type=Path, default=output_dir)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long; the next start goes on")
    parser.add_argument("--together", type=count, default=TOGETHER, help="episodes that are played at once")
