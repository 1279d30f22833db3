"""Directories of tests in memory: it waits for no disk, and a killed process loses nothing there."""

import os
import shutil
from pathlib import Path

MEMORY = Path("/dev/shm")


def memory(free: int) -> Path | None:
    """Return where directories lie in memory, if that may be written and has `free` bytes left; None otherwise."""
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > free
    return MEMORY if roomy else None


def process_name(prefix: str, parent: Path) -> str:
    """Return a name in `parent` for directories of this process: `prefix` and its number.

    Directories of that prefix whose process has ended are removed: a killed one removes nothing itself.
    """
    for path in parent.glob(f"{prefix}[0-9]*"):
        if not _is_alive(int(path.name.removeprefix(prefix).split("-")[0])):
            shutil.rmtree(path, ignore_errors=True)
    return f"{prefix}{os.getpid()}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
