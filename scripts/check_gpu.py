"""
Check on a machine with a GPU what the tests can check on a CPU only, in ten minutes, and write one JSON file.

    python scripts/check_gpu.py                          # or: make gpu-check
    python scripts/check_gpu.py --device cpu --short     # the same checks with the kernels of the CPU
    python scripts/check_gpu.py --only exactness

Each check is a number and what is expected of it: layouts against the plain model, two steps of each trainer, vLLM, quantized weights,
the time of an update. What differs is printed and written; what cannot be checked here is skipped with its reason. The exit status is
1 if something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parents[1]
sys.path[:0] = [
    str(ROOT / folder) for folder in ("tests", "scripts", "benchmarks")
]  # tiny models are those of the tests

import torch
from gpu_checks import backends, exactness, generation, speed, training
from gpu_checks.check import Check, Finding, Setting, outcomes
from report import system_information

PARTS = {
    "exactness": exactness,
    "generation": generation,
    "training": training,
    "backends": backends,
    "speed": speed,
}
MINUTES = 10.0


def check_system(setting: Setting) -> Finding:
    """What the numbers were measured on."""
    return Finding({"system": system_information(setting.device)})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--short", action="store_true", help="the smallest sizes: does everything run?")
    parser.add_argument("--only", choices=tuple(PARTS), nargs="+", default=list(PARTS))
    parser.add_argument("--match", nargs="+", default=[""], help="only checks whose name contains one of these texts")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for all checks together")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device")
    setting = Setting(args.device, args.short)
    checks = [check for part in args.only for check in PARTS[part].checks(args.short)]
    checks = [check for check in checks if any(text in check.name for text in args.match)]
    return run([Check("system", check_system), *checks], setting, 60 * args.minutes, args.output)


def run(checks: list[Check], setting: Setting, seconds: float, output: Path) -> int:
    """Make the checks, print a line for each, and write all to a file; 1 if something is not as expected."""
    began = time.perf_counter()
    found = []
    for one in outcomes(checks, setting, seconds):
        found.append(one)
        print(f"{one.name}: {one.outcome} ({one.seconds:.0f} s)", flush=True)
        for reason in one.reasons:
            print(f"    {reason}", flush=True)
    wrong = [one for one in found if one.outcome in ("different", "failed")]
    skipped = [one for one in found if one.outcome == "skipped"]
    record = {
        "device": setting.device,
        "short": setting.short,
        "seconds": round(time.perf_counter() - began, 1),
        "differs": [one.name for one in wrong],
        "skipped": [one.name for one in skipped],
        "checks": [one.to_dict() for one in found],
    }
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    kept = len(found) - len(wrong) - len(skipped)
    print(f"{kept} as expected, {len(wrong)} different, {len(skipped)} skipped; numbers in {output}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
