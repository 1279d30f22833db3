"""`modalign --help` against an empty Python."""

import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np

from bench.figure import Figure

# What both sides of a figure are asked.
ASKED = "Both start in a process of their own and end; neither prints to a terminal."

RUNS = 21


def figures() -> list[Figure]:
    """Measure."""
    modalign = str(Path(sysconfig.get_path("scripts")) / "modalign")
    durations: dict[str, list[float]] = {"help": [], "pass": []}
    for _ in range(RUNS):
        for name, command in (("help", [modalign, "--help"]), ("pass", [sys.executable, "-c", "pass"])):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            durations[name].append(time.perf_counter() - started)
    ratio = float(np.median(durations["help"]) / np.median(durations["pass"]))
    return [Figure("modalign --help, median time / python -c pass", ratio, 8, at_most=True)]
