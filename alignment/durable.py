"""Durable files: complete on disk, or absent."""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignment.object_storage import as_remote


def write_durably(path: Path, content: Any, *, temporary: Path | None = None) -> None:
    """Replace the file at `path` by `content` (bytes) atomically: after a power cut it is the old or the new one.

    It keeps the mode of the old one. It is written as `temporary` first, another name in its directory, by default its
    own with `.tmp`: two processes must not write one file at once under that. An object is put whole.
    """
    if remote := as_remote(path):
        remote.write_bytes(content)
        return
    temporary = temporary or path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no directories
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
