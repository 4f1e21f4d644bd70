"""A failing environment in one process does not hang the other, and both train on the same. Launched by torchrun itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "failing_rank.py"


@pytest.mark.slow
def test_failures_of_one_process_are_the_business_of_all(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(tmp_path / "record")], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"record.{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == second["processes"] == 2
    assert first["weights"] == pytest.approx(second["weights"], rel=1e-12)
    steps = [log for log in first["log"] if "loss" in log]
    assert len(steps) == 3
    # Eight episodes a batch in two groups, of which one is played by each process
    assert [log["episode/stop_reason/error"] for log in steps] == [0.5, 0.0, 0.0]
    assert [log["environment/dropped_groups"] for log in steps] == [1.0, 1.0, 0.0]
    assert [log["environment/error_rate"] > 0 for log in steps] == [True, True, False]
    assert steps[1]["environment/restarts"] == 4.0 and steps[2]["environment/restarts"] == 4.0
    assert all(log["reward"] is not None for log in steps)
