"""Runs `modalign` in child processes: tests kill them, stop them, and read what they printed."""

from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests.support import launcher

SECONDS = 120.0


@dataclass
class Runner:
    """Runs `modalign` in children of the fork server.

    Attributes:
        output: what the latest one prints goes to OUTPUT.out and OUTPUT.err.
    """

    processes: ForkServerContext
    output: Path

    def start(self, *arguments: str) -> Any:
        """Start it, with options of `tests.support.launcher` before; it has set itself up when this returns."""
        ready = self.processes.Event()
        process = self.processes.Process(target=launcher.child, args=(arguments, {}, self.output, ready))
        process.start()
        assert ready.wait(SECONDS)
        return process

    def finish(self, process: Any) -> int:
        """Wait for its end; return its exit code."""
        process.join(SECONDS)
        assert process.exitcode is not None, "it hangs"
        return int(process.exitcode)

    def run(self, *arguments: str) -> int:
        return self.finish(self.start(*arguments))

    @property
    def errors(self) -> str:
        return self.output.with_suffix(".err").read_text()
