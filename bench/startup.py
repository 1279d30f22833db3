"""`modalign --help` beside an empty Python."""

import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.row import Row, Sides


@contextmanager
def help_beside_nothing(runs: int) -> Iterator[Sides]:
    """Both start so many processes, one after the other."""
    modalign = str(Path(sysconfig.get_path("scripts")) / "modalign")

    def run(*command: str) -> None:
        for _ in range(runs):
            subprocess.run(command, check=True, capture_output=True)

    sides = Sides(lambda: run(modalign, "--help"), lambda: run(sys.executable, "-c", "pass"))
    sides.ours()  # what is on the disk is then in memory
    yield sides


ROWS = (
    Row(
        what="modalign --help",
        against="python -c pass",
        asked="Both start in a process of their own and end, five times a turn; neither prints to a terminal.",
        unit="time",
        goal=4.0,
        size=5,
        small=1,
        sides=help_beside_nothing,
    ),
)
