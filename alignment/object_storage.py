"""Paths in object storage, `s3://`, `gs://`, `az://` or another file system of fsspec, with the methods of `Path`.

`located` returns a `Path` for a path and a `RemotePath` for a URL. A `RemotePath` has the methods of `Path` that
modalign uses, and no others. It is no `os.PathLike`: code that needs a file on this machine raises a `TypeError`, and
never takes the URL for the name of a local file.

An object is written whole or not at all. It is read by ranges, and one that changes or breaks off while it is read is
an error. What is about one object, that it is missing or may not be read, is an `OSError` as of a file. What is about
the storage, such as that it does not answer, is a `StorageError`: no row is refused for it.
"""

import errno
import io
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any, NamedTuple, TypeGuard, cast

from typing_extensions import Buffer, override

from alignment.errors import StorageError
from alignment.storages import denied, file_system, translated

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # of which a file may name objects
# Of fsspec's file systems, those of this machine, those that cannot list, and those that wrap another one.
NOT_STORAGE = (
    *("asynclocal", "asyncwrapper", "blockcache", "cached", "data", "dir", "file", "filecache", "ftp", "generic"),
    *("git", "github", "gitlab", "hf", "http", "https", "jupyter", "libarchive", "local", "reference"),
    *("simplecache", "smb", "tar", "zip"),
)
READ_AHEAD = 4 << 20  # bytes of a request where an object is read from its beginning to its end
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_ONE_SLASH = re.compile(rf"({'|'.join(SCHEMES)}):/?[^/]", re.IGNORECASE)
_QUERY = re.compile(r"\?.*=", re.DOTALL)
_VERSION = re.compile(r"[^?]*\?(versionId|versionid|generation|snapshot)=[^&]*", re.DOTALL)


class ObjectStatus(NamedTuple):
    """What the storage says of a name: the size of the object in bytes, and when it was written; 0: it does not say."""

    st_size: int
    st_mtime_ns: int
    is_directory: bool


def is_url(place: object) -> bool:
    """Whether a text is a URL such as `s3://bucket/key`; a drive of Windows is a single letter."""
    return isinstance(place, str) and _URL.match(place) is not None


def located(place: "Path | str | RemotePath") -> Path:
    """Return the absolute path of a place. Of a URL of object storage it is a `RemotePath`.

    It is typed as `Path`, whose methods it has as far as modalign uses them.

    Raises:
        StorageError: the URL holds a password or a signature, or is of no object storage.
        MissingPackageError: the package for it is not installed.
    """
    if is_remote(place):
        return place
    if not is_url(place):
        if match := _ONE_SLASH.match(str(place)):
            raise StorageError(
                f"{place}: expected two slashes behind the scheme, as {match[1].lower()}://BUCKET/KEY; a directory of "
                f"this name is ./{place}",
                code="storage-url",
            )
        return Path(str(place)).absolute()
    return cast(Path, RemotePath.at(str(place)))


def is_remote(place: object) -> TypeGuard[Path]:
    """Whether this is a path in object storage."""
    return isinstance(place, RemotePath)


def as_remote(place: object) -> "RemotePath | None":
    """Return this place as what it is, if it is in object storage; None: it is a path of this machine."""
    return place if isinstance(place, RemotePath) else None


def snapshot(path: Path) -> Path:
    """Return a path that, in object storage, is asked and listed once; see `RemotePath.snapshot`."""
    return cast(Path, remote.snapshot()) if (remote := as_remote(path)) else path


def joined(folder: Path, name: str) -> Path:
    """Return the path `name` below `folder`; a name that is a URL of object storage is itself the place.

    Raises:
        StorageError: the URL holds a password or a signature.
        MissingPackageError: the package for it is not installed.
    """
    match = _URL.match(name)
    remote = as_remote(folder)
    if match and (match[1].lower() in SCHEMES or (remote and remote.scheme == match[1])):
        return located(name)
    return folder / name


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """An object, or the common beginning of the names of objects, which takes the place of a directory.

    Attributes:
        scheme: of the URL.
        key: bucket and name of the object.
        listed: what the listing said in which this path was found.
        entries: what is in the directory, of a `snapshot`.
    """

    scheme: str
    key: PurePosixPath
    listed: ObjectStatus | None = field(default=None, compare=False)
    entries: "tuple[RemotePath, ...] | None" = field(default=None, compare=False)

    @classmethod
    def at(cls, url: str) -> "RemotePath":
        """Return the path of a URL."""
        match = _URL.match(url)
        scheme, rest = (match[1].lower(), match[2]) if match else ("", "")
        bucket = rest.partition("/")[0]
        if scheme in NOT_STORAGE or not bucket.strip("."):
            shown = "***" if "@" in rest else bucket
            raise StorageError(
                f"{scheme}://{shown}: expected a path, or a URL of object storage such as s3://BUCKET/KEY, "
                "gs://BUCKET/KEY or az://CONTAINER/KEY; download what is elsewhere",
                code="storage-url",
            )
        if _VERSION.fullmatch(rest) and not ("@" in bucket or ":" in bucket):
            raise StorageError(
                f"{scheme}://{rest}: expected the URL of an object without a version, because the newest one is read; "
                "copy the version to a name of its own",
                code="storage-url",
            )
        if "@" in bucket or ":" in bucket or _QUERY.search(rest):
            raise StorageError(
                f"{scheme}://***: expected a URL without user, password, port and signature, because SQL, cards and "
                "logs name it; give credentials by the environment, such as AWS_PROFILE or AWS_ACCESS_KEY_ID, and a "
                "server of your own by AWS_ENDPOINT_URL",
                code="storage-url",
            )
        file_system(scheme)
        return cls(scheme, PurePosixPath(rest))

    # Names, as of `PurePosixPath`

    @override
    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    @override
    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __truediv__(self, name: "str | PurePosixPath") -> "RemotePath":
        key = self.key / str(name).lstrip("/")
        if ".." in key.parts and (plain := PurePosixPath(normpath(key))).parts[0] == self.key.parts[0]:
            key = plain  # a storage follows no .., and none leads out of the bucket
        return RemotePath(self.scheme, key)

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self.key.stem

    @property
    def suffix(self) -> str:
        """The suffix of the last part."""
        return self.key.suffix

    @property
    def parent(self) -> "RemotePath":
        """The directory; of a bucket, itself."""
        return RemotePath(self.scheme, self.key.parent) if len(self.key.parts) > 1 else self

    def with_name(self, name: str) -> "RemotePath":
        """Return the path of another object beside this one."""
        return RemotePath(self.scheme, self.key.with_name(name))

    def with_suffix(self, suffix: str) -> "RemotePath":
        """Return the path with another suffix."""
        return RemotePath(self.scheme, self.key.with_suffix(suffix))

    def relative_to(self, other: "RemotePath") -> PurePosixPath:
        """Return the names below the directory `other`; raises a `ValueError` if this path is not below it."""
        if not self.is_relative_to(other):
            raise ValueError(f"{self} is not below {other}")
        return self.key.relative_to(other.key)

    def is_relative_to(self, other: object) -> bool:
        """Whether this path is `other` or below it."""
        return isinstance(other, RemotePath) and other.scheme == self.scheme and self.key.is_relative_to(other.key)

    def as_posix(self) -> str:
        """Return the URL."""
        return str(self)

    def absolute(self) -> "RemotePath":
        """Return this path."""
        return self

    def resolve(self) -> "RemotePath":
        """Return this path: object storage has no links."""
        return self

    # Questions

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below it."""
        return self._status() is not None

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        status = self._status()
        return status is not None and not status.is_directory

    def is_dir(self) -> bool:
        """Whether there are objects below this name."""
        status = self._status()
        return status is not None and status.is_directory

    def is_symlink(self) -> bool:
        """No object is a link."""
        return False

    def stat(self) -> ObjectStatus:
        """Return what is known of the object; raises a `FileNotFoundError` if there is none."""
        if (status := self._status()) is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self))
        return status

    def _status(self) -> ObjectStatus | None:
        if self.listed is not None:
            return self.listed
        try:
            with self._translated():
                return _status_of(self._files.info(self._name))
        except FileNotFoundError:
            return None

    def iterdir(self) -> "Iterator[RemotePath]":
        """Yield what is in the directory, from one listing; each entry remembers what the listing said of it.

        Raises:
            FileNotFoundError: there is nothing below this name.
        """
        if self.entries is not None:
            yield from self.entries
            return
        with self._translated():
            entries = self._files.ls(self._name, detail=True)
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            # What consoles make for an empty folder is an object of the folder's own name.
            if name and str(entry["name"]).strip("/") != str(self.key).strip("/"):
                yield RemotePath(self.scheme, self.key / name, _status_of(entry))

    def snapshot(self) -> "RemotePath":
        """Return this path with what is there now: it is asked and listed once, whatever is called."""
        status = self._status()
        is_directory = status is not None and status.is_directory
        return replace(self, listed=status, entries=tuple(self.iterdir()) if is_directory else None)

    def glob(self, pattern: str) -> "Iterator[RemotePath]":
        """Yield what matches a pattern of names such as `*/card.json`; a slash at its end asks for directories."""
        first, _, rest = pattern.partition("/")
        for entry in self._entries():
            if not fnmatchcase(entry.name, first) or ("/" in pattern and not entry.is_dir()):
                continue
            if not rest:
                yield entry
            elif any(character in rest for character in "*?["):
                yield from entry.glob(rest)
            elif (entry / rest).exists():
                yield entry / rest

    def below(self) -> "Iterator[RemotePath]":
        """Yield all objects below this name by their order, from one listing."""
        with self._translated():
            found = self._files.find(self._name, detail=True)
        top = self._name.rstrip("/") + "/"
        for name, entry in sorted(found.items()):
            if name.startswith(top) and not name.endswith("/"):
                yield RemotePath(self.scheme, self.key / name.removeprefix(top), _status_of(entry))

    def beside(self, beginning: str) -> "list[RemotePath]":
        """Return the objects in this path's directory whose names begin so, from a listing of these alone."""
        with self._translated():
            found = self._files.find(self.parent._name, maxdepth=1, prefix=beginning, detail=True)
        paths = [self.with_name(name.rpartition("/")[2]) for name in sorted(found)]
        return [path for path in paths if path.name.startswith(beginning)]

    def _entries(self) -> "list[RemotePath]":
        try:
            return sorted(self.iterdir())
        except FileNotFoundError:
            return []

    # Content

    def open(
        self, mode: str = "r", *, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> Any:
        """Open the object for reading, `rb` or `r`.

        Raises:
            FileNotFoundError, PermissionError: as of a file.
            StorageError: the storage does not answer.
        """
        stream = io.BufferedReader(self.ranges(read_ahead=True), 1 << 16)
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding or "utf-8", errors, newline)

    def ranges(self, *, read_ahead: bool = False) -> "RemoteFile":
        """Open the object for reading here and there: a request for each range, as Parquet needs it."""
        cache_type = {"cache_type": "readahead", "block_size": READ_AHEAD} if read_ahead else {"cache_type": "none"}
        with self._translated():
            return RemoteFile(self, self._files.open(self._name, "rb", **cache_type))

    def read_bytes(self) -> bytes:
        """Return the content of the object, all of one version of it."""
        with self.ranges() as file:
            return file.read()

    def beginning(self, most: int) -> bytes:
        """Return the first `most` bytes, in one request; fewer are the whole object."""
        with self._translated():
            try:
                return bytes(self._files.cat_file(self._name, start=0, end=most))
            except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError):
                raise
            except OSError:  # there is no range in an empty object
                if _status_of(self._files.info(self._name)).st_size == 0:
                    return b""
                raise

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content of the object as a text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: Buffer) -> None:
        """Put the object whole: readers see the old one or the new one."""
        try:
            with self._translated():
                self._files.pipe_file(self._name, bytes(content))
        except PermissionError as error:
            raise denied(self, "written") from error

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        with self._translated():
            try:
                self._files.rm_file(self._name)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def clear(self) -> None:
        """Delete all objects below this name."""
        for path in self.below():
            path.unlink(missing_ok=True)

    def rmdir(self) -> None:
        """Do nothing: a directory goes with what is below it."""

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a directory is there once an object is below it."""

    @property
    def _files(self) -> Any:
        return file_system(self.scheme)

    @property
    def _name(self) -> str:
        return str(self._files._strip_protocol(str(self)))

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self.scheme, self.key.parts[0], str(self))


class RemoteFile(io.RawIOBase):
    """An object that is open for reading. It ends where its listing says, or reading it is an error."""

    def __init__(self, path: RemotePath, file: Any):
        super().__init__()
        self._path, self._file = path, file
        self.length = int(file.size)

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    @override
    def tell(self) -> int:
        return int(self._file.tell())

    @override
    def read(self, size: int = -1) -> bytes:
        left = max(0, self.length - self.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        parts = []
        while wanted:
            with self._path._translated():
                part = bytes(self._file.read(wanted))
            if not part:
                raise StorageError(
                    f"{self._path} breaks off at byte {self.tell():,}, expected {self.length:,}; run the same command "
                    "again",
                    code="object-cut",
                )
            parts.append(part)
            wanted -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @override
    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def check_reachable(path: Path) -> None:
    """Raise a `StorageError` if the storage of a URL does not answer, or does not show what is there."""
    try:
        path.exists()
    except PermissionError as error:
        raise denied(path, "read") from error


def _status_of(entry: Any) -> ObjectStatus:
    if entry["type"] == "directory":
        return ObjectStatus(0, 0, is_directory=True)
    moments = (entry.get(name) for name in ("LastModified", "last_modified", "mtime", "updated", "created"))
    written = next((moment for moment in moments if isinstance(moment, datetime)), None)
    return ObjectStatus(int(entry["size"] or 0), int(written.timestamp() * 1e9) if written else 0, is_directory=False)
