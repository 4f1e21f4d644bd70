"""`mem1 report RUN_DIR`"""

from __future__ import annotations

from collections.abc import Sequence

from .options import Parser


def run(args: Sequence[str]) -> None:
    """Write a report and print where it is."""
    parser = Parser(
        prog="mem1 report",
        description="Write what a run found as one HTML page that needs no network, with its plots as PNG files beside it.",
    )
    parser.add_argument(
        "run_dir",
        metavar="RUN_DIR",
        nargs="+",
        help="one directory or more, with evaluation/*.json and, if a trainer wrote one, trainer_state.json; also in subdirectories",
    )
    parser.add_argument(
        "-o",
        "--output",
        help="the page, if it ends in .html, else a directory for report.html (default: the folder report in RUN_DIR; of several, in the folder "
        "that holds them all if that lies in the working directory, else in the working directory)",
    )
    parser.add_argument(
        "--max_trajectories",
        type=int,
        default=50,
        help="most episodes that the page shows of each evaluation; metrics are over all of them (default: %(default)s)",
    )
    parser.add_argument(
        "--baseline",
        metavar="AGENT",
        help="agent that the others are compared with, task by task, such as 'MEM1 before RL'; or a training run, by its folder, with "
        "which the others are compared after each evaluation that they made on their way (default: none)",
    )
    options = parser.parse_args(args)

    from ..report import report

    print(report(options.run_dir, options.output, options.max_trajectories, options.baseline))
