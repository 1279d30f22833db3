"""One fit of an alignment at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from alignment.errors import AlignmentError


@contextmanager
def sole_fit(path: Path) -> Iterator[None]:
    """Reserve the directory `path` for the alignment that the block fits, before anything takes time.

    Raises:
        AlignmentError: another process is fitting it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.fit.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AlignmentError(
            f"another process is fitting alignment {path.name}; wait for it, or name another one with --alignment"
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
