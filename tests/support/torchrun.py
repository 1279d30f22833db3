"""Scripts under torch's launcher, in two processes on the CPU."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(*command: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with one thread a process, no GPU and this tree's code; return it with its output."""
    ours = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    variables = {**os.environ, **ours, **(environment or {})}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=variables, timeout=240)
