"""Whether a file is still the one that was looked at before."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from alignment.object_storage import is_remote, located
from connector.errors import CorpusChangedError


@dataclass(frozen=True, slots=True)
class FileState:
    """The size of a file or folder in bytes, and when it was modified, in ns; -1 and 0: it is not there.

    Adding a file to a folder, or taking one away, modifies the folder; not so in object storage, which tells times in
    whole seconds.
    """

    path: Path
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Look at the file."""
        try:
            stat = path.stat()
        except (OSError, ValueError):
            return cls(path, -1, 0)
        second = 1_000_000_000
        modified = stat.st_mtime_ns // second * second if is_remote(path) else stat.st_mtime_ns
        return cls(located(str(path)), stat.st_size, modified)  # which does not remember what a listing said

    def check(self) -> None:
        """Raise a `CorpusChangedError` if the file at the path is another one now."""
        if (now := FileState.of(self.path)) == self:
            return
        if now.size < 0:
            raise CorpusChangedError(
                f"{self.path} is not there, and was when the corpus was cut into units, with {self._in_words}; put it "
                "back, or mount it under this path where a worker reads it, and run again: what is done already stays"
            )
        raise CorpusChangedError(
            f"{self.path} has changed since the corpus was cut into units: expected {self._in_words}, got "
            f"{now._in_words}; leave it alone and run again, what is done already stays"
        )

    @property
    def _in_words(self) -> str:
        return "no file" if self.size < 0 else f"{self.size} bytes of {self._moment}"

    @property
    def _moment(self) -> str:
        return f"{datetime.fromtimestamp(self.modified / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
