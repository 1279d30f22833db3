"""The command line with the fake encoders, for tests that run it in a process of their own.

    python -m tests.support.launcher [--signal NAME --before|--after POINT:N] ARGS

runs `modalign ARGS`; with a point, the process sends itself the signal before or after call N, from 0, of that
method. Sets and pushes go in small steps, so that a short run has many of them.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from itertools import count
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import stamina

from alignment.sets.writer import SetWriter
from connector.cli import main as cli
from connector.encoding import loading
from connector.provenance.artifacts import Artifacts
from connector.provenance.ledger import Ledger
from connector.provenance.releases import Releases
from connector.push import batches as set_push
from connector.push import ingest
from connector.releases import reconcile, verify
from connector.stores import qdrant_readiness
from connector.stores.contract import Store
from connector.stores.edge import EdgeStore

SHARD_ROWS, BATCH_POINTS, FLUSH_POINTS = 16, 8, 16
QUICK_POLL_SECONDS = 0.02
POINTS: Mapping[str, tuple[Any, str]] = {
    "append": (SetWriter, "append"),
    "finish": (SetWriter, "finish"),
    "record_set": (Artifacts, "record_set"),
    "create": (EdgeStore, "create"),
    "upsert": (Store, "upsert"),
    "flush": (EdgeStore, "flush"),
    "write_ledger": (Ledger, "write"),
    "ready": (EdgeStore, "ready"),
    "set_aliases": (EdgeStore, "set_aliases"),
    "change": (Releases, "change"),
}
# Of a deletion and a repair.
REMOVAL_POINTS: Mapping[str, tuple[Any, str]] = {
    "drop_rows": (SetWriter, "drop"),
    "add_tombstones": (Ledger, "add_tombstones"),
    "count_out": (Ledger, "count_out"),
    "remove_tombstones": (Ledger, "remove_tombstones"),
    "delete_points": (EdgeStore, "delete"),
}
# Of files: what makes one durable, and what makes a directory whole.
FILE_POINTS: Mapping[str, tuple[Any, str]] = {"sync": (os, "fsync"), "rename": (Path, "rename")}


def main(arguments: Sequence[str]) -> None:
    """Run `modalign` with `arguments`, after the options of this launcher."""
    # Whoever runs the tests in the background has them ignore Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rest = list(arguments)
    options = {}
    while rest and rest[0] in ("--signal", "--before", "--after"):
        options[rest[0]] = rest[1]
        del rest[:2]
    for when in ("--before", "--after"):
        if when in options:
            point, _, number = options[when].partition(":")
            _arm(point, int(number), signal.Signals[options["--signal"]], after=when == "--after")
    setattr(loading, "entry_points", _entry_points)  # noqa: B010  the module does not export it
    for module in (set_push, reconcile, verify):
        setattr(module, "BATCH_POINTS", BATCH_POINTS)  # noqa: B010  the modules do not export it
    set_push.FLUSH_POINTS = FLUSH_POINTS
    qdrant_readiness.POLL_SECONDS = QUICK_POLL_SECONDS
    if rest and rest[0] == "encode":
        rest += ["--shard-size", str(SHARD_ROWS), "--batch-size", "4"]
    setattr(ingest, "SHARD_ROWS", SHARD_ROWS)  # noqa: B010  nor these
    setattr(ingest, "BATCH_ITEMS", 4)  # noqa: B010
    stamina.set_testing(True, attempts=3)  # a server that went away stays away
    sys.argv = ["modalign", *rest]
    cli.main()


def child(arguments: Sequence[str], environment: Mapping[str, str], output: Path, ready: Event) -> None:
    """Run `main` in a child process: its own process group, its output in `output`.out and `output`.err."""
    os.setsid()
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output.with_suffix(suffix), os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
    # A child of the fork server knows no files of ours.
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    os.environ.update(environment)
    ready.set()
    main(arguments)


def _entry_points(*, group: str) -> list[EntryPoint]:
    from tests.support.fakes import fake_entry_points  # loads torch, which few commands need

    return fake_entry_points(group=group)


def _arm(point: str, number: int, kind: signal.Signals, *, after: bool) -> None:
    owner, method = {**POINTS, **REMOVAL_POINTS, **FILE_POINTS}[point]
    original = getattr(owner, method)
    calls = count()

    def armed(*args: Any, **options: Any) -> Any:
        due = next(calls) == number
        if due and not after:
            os.kill(os.getpid(), kind)
        result = original(*args, **options)
        if due and after:
            os.kill(os.getpid(), kind)
        return result

    setattr(owner, method, armed)


if __name__ == "__main__":
    main(sys.argv[1:])
