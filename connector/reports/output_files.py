"""Files that a command writes where it is told to: complete or as before, and every error is noticed."""

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

from alignment.durable import write_durably
from alignment.object_storage import check_reachable, is_remote
from connector.errors import OutputError

LEFTOVER = re.compile(r"\.modalign\.[0-9a-f]{32}\.tmp")
MEMORY = "/dev/shm"  # noqa: S108  a file system as any other; nothing is made there that nobody asked for
LEFTOVER_SECONDS = 24 * 3600  # after which nobody writes a file any more


def claim_file(path: Path) -> None:
    """Check that a file in an existing directory can be written, before the work for it starts.

    Raises:
        OutputError: the file cannot be written.
    """
    if is_remote(path):
        check_reachable(path)
        return
    try:
        if path.is_dir():
            raise IsADirectoryError("expected a file, got a directory")
        if path.exists() and not path.is_file():
            raise OSError("expected a regular file")
        if path.exists():
            with path.open("ab"):
                pass
        with TemporaryFile(dir=path.parent):  # the only check that covers read-only disks and access lists
            pass
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}; name another file") from error


def write_file(path: Path, text: str) -> None:
    """Write a text; an older file is replaced atomically and keeps its mode. A device or a pipe gets the text.

    Of several processes that write one file the last wins. What a killed process left is removed by a later one.

    Raises:
        OutputError: the file cannot be written.
    """
    content = text.encode(errors="backslashreplace")  # names of files may be invalid Unicode
    if is_remote(path):
        write_durably(path, content)
        return
    try:
        # /dev/stdout is what a shell has opened, a file perhaps: replacing it would lose what others write there.
        opened = path.is_relative_to("/dev") and not path.is_relative_to(MEMORY)
        if opened or (path.exists() and not path.is_file()):
            with path.open("ab") as stream:
                stream.write(content)
                stream.raw.write(b"")  # a full device is noticed even where there is nothing to write
        else:
            target = path.resolve()  # of a link, the file behind it
            _remove_leftovers(target.parent)
            # A name that no file of the user has, and no other process.
            write_durably(target, content, temporary=target.with_name(f".modalign.{uuid4().hex}.tmp"))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}; name another file") from error


def _remove_leftovers(directory: Path) -> None:
    try:
        leftovers = [entry for entry in directory.iterdir() if LEFTOVER.fullmatch(entry.name)]
    except OSError:  # a directory that takes files and shows none
        return
    for leftover in leftovers:
        with suppress(OSError):  # it is somebody else's, or gone
            if leftover.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                leftover.unlink()


def append_line(path: Path, line: str) -> None:
    """Append a line, durably and as a whole: nothing of it stays if it does not fit.

    An object is read and put again with the line: of two processes that do so at once, one may lose its line.

    Raises:
        OutputError: the line cannot be written.
    """
    content = (line + "\n").encode(errors="backslashreplace")
    if is_remote(path):
        before = path.read_bytes() if path.exists() else b""
        write_durably(path, before + (b"\n" if before and not before.endswith(b"\n") else b"") + content)
        return
    try:
        if path.exists() and not path.is_file():
            raise OSError("expected a regular file")
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # lines of two processes do not mix; closing unlocks
            _append(descriptor, content)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutputError(f"{path} cannot be appended to: {error}") from error


def _append(descriptor: int, content: bytes) -> None:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":  # half a line of a process that was killed
        content = b"\n" + content
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
