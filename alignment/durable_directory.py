"""Durable directories: complete on disk, or absent; made by one process at a time."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from filelock import FileLock, Timeout

from alignment.durable import sync_directory, write_durably
from alignment.object_storage import is_remote


@contextmanager
def new_directory(path: Path, *, last: str = "") -> Iterator[Path]:
    """Yield a temporary directory, which is renamed to `path` when the block ends and removed when it raises.

    Of several processes that make the same directory one works at a time: the first wins, the others wait for it and
    get an error. What a killed process left is removed first.

    In object storage there is no such rename: the files are put there when the block ends, `last` at the end, without
    which nothing is taken for whole. No other process is kept out.

    Raises:
        FileExistsError: `path` exists and is not an empty directory; in object storage, `last` is in it.
    """
    if is_remote(path):
        with _new_prefix(path, last) as building:
            yield building
        return
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with lock:
        try:
            with _building(path) as building:
                yield building
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def _new_prefix(path: Path, last: str) -> Iterator[Path]:
    if (path / last).exists():
        raise FileExistsError(path)
    with TemporaryDirectory(prefix="modalign-") as building:
        yield Path(building)
        if (path / last).exists():
            raise FileExistsError(path)
        files = [file for file in Path(building).rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: (file.name == last, file)):
            write_durably(path / file.relative_to(building).as_posix(), file.read_bytes())


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left that made the directory `path`, unless one is at work there."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    if not Path(lock.lock_file).exists():
        return
    with suppress(Timeout), lock:
        for leftover in _leftovers(path):
            shutil.rmtree(leftover, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def _building(path: Path) -> Iterator[Path]:
    for leftover in _leftovers(path):
        shutil.rmtree(leftover, ignore_errors=True)
    _check_free(path)
    building = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
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


def _leftovers(path: Path) -> list[Path]:
    """Return the temporary directories of `path`. Under its lock they belong to processes that were killed.

    The 32 digits of their names tell them from what people named `.NAME.old.tmp`.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.tmp")
    return [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name) and entry.is_dir()]


def _check_free(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(path)
