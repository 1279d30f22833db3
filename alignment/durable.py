"""Durable files and directories: complete on disk, or absent."""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

# Suffix of temporary directories. One not modified for this long was left by a killed process.
BUILDING, ABANDONED_SECONDS = ".tmp", 3600


def write_durably(path: Path, content: Any) -> None:
    """Replace the file at `path` by `content` (bytes) atomically: after a power cut it is the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory, which is renamed to `path` when the block ends and removed when it raises.

    If several processes make the same directory, the first wins and the others get an error.

    Raises:
        FileExistsError: `path` exists and is not an empty directory.
    """
    path = path.absolute()
    _check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*{BUILDING}"):
        with suppress(FileNotFoundError):  # whoever fills it may be ready just now
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    building = path.with_name(f".{path.name}.{uuid4().hex}{BUILDING}")
    building.mkdir()
    try:
        yield building
        _check_free(path)
        if path.exists():
            path.rmdir()  # an empty one, which not every system replaces
        building.rename(path)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(path) from None
        raise
    sync_directory(path.parent)


def _check_free(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(path)


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
