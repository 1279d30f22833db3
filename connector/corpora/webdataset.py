"""WebDataset: samples in tar archives, read in one pass."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from alignment.object_storage import located
from connector.corpora.file_state import FileState
from connector.corpora.items import PassedOver, Unit
from connector.corpora.manifest import ManifestRow, Shards
from connector.corpora.opening import listed
from connector.corpora.picture_files import ARCHIVE_SUFFIXES, passed_over
from connector.corpora.samples import KeyRule, samples
from connector.corpora.tar_members import SUFFIXES, is_archive
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.safe_text import printable

MOST_SHARDS = 1_000_000
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class WebDataset(Shards):
    """Samples in an archive, a folder of archives, or archives by a pattern such as `train-{0000..0099}.tar`.

    Attributes:
        key_rule: where the key of a sample ends in the names of its members. None: at the first dot; a name that has
            no plain suffix then is a reject.
    """

    format = "webdataset"

    key_rule: KeyRule | None = None

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        if path.is_dir():
            return any(is_archive(entry) for entry in listed(path))
        return is_archive(path)

    @override
    def total(self) -> None:
        """Archives have no table of contents."""

    @override
    def units(self) -> Iterator[Unit]:
        """Each archive is a unit, and what else is in their folder is the last one."""
        for archive in self.shards():
            yield Unit(str(archive), files=(FileState.of(archive),))
        if self.path.is_dir():
            yield Unit("other files", files=(FileState.of(self.path),))

    @override
    def rows_of(self, unit: Unit) -> Iterator[ManifestRow | Reject | PassedOver]:
        (archive,) = (file.path for file in unit.files)
        if archive == self.path and archive.is_dir():
            yield from self._other_files()
        elif archive.is_file():
            yield from samples(archive, self.key_rule)
        else:
            yield Reject(str(archive), 0, "read", Reason.ARCHIVE_MISSING, f"expected an archive at {archive}")

    def _other_files(self) -> Iterator[Reject | PassedOver]:
        for entry in sorted(listed(self.path)):
            if is_archive(entry):
                continue
            if entry.name.lower().endswith(ARCHIVE_SUFFIXES) and entry.is_file():
                detail = f"expected an archive ending in {', '.join(SUFFIXES)}; pack it again as one of these"
                yield Reject(printable(str(entry)), 0, "read", Reason.ARCHIVE_UNREADABLE, detail)
            else:
                yield from passed_over(entry, 0)

    def shards(self) -> list[Path]:
        """Return the archives in order.

        Raises:
            CorpusError: none exists.
        """
        if self.path.is_dir():
            archives = sorted(entry for entry in self.path.iterdir() if is_archive(entry))
        else:
            archives = expanded(self.path)
        if not any(archive.is_file() for archive in archives):
            raise CorpusError(f"corpus {self.path}: expected archives ending in {', '.join(SUFFIXES)}, found none")
        return archives


def expanded(path: Path) -> list[Path]:
    """Expand each range such as `{0..9}` in a path; a path without one is returned alone.

    >>> [path.name for path in expanded(Path("a-{08..10}.tar"))]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    match = RANGE.search(str(path))
    if not match:
        return [path]
    start, stop = int(match[1]), int(match[2])
    if not 0 <= stop - start < MOST_SHARDS:
        raise CorpusError(f"corpus {path}: expected a range of 1 to {MOST_SHARDS} archives, got {match[0]}")
    paths = (f"{number:0{len(match[1])}d}" for number in range(start, stop + 1))
    before, after = str(path)[: match.start()], str(path)[match.end() :]
    return [expansion for number in paths for expansion in expanded(located(f"{before}{number}{after}"))]
