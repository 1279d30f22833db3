"""Memory as a file system: it waits for no disk, and a killed process loses nothing there."""

import os
import shutil
from pathlib import Path

MEMORY = Path("/dev/shm")


def memory(free: int) -> Path | None:
    """Return where directories lie in memory, if that may be written and has `free` bytes left; None otherwise."""
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > free
    return MEMORY if roomy else None
