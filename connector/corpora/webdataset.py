"""WebDataset: samples in tar archives, read in one pass."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from alignment.object_storage import located
from connector.corpora.items import PassedOver
from connector.corpora.manifest import Manifest, ManifestRow, placed
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
class WebDataset(Manifest):
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
    def rows(self) -> Iterator[ManifestRow | Reject | PassedOver]:
        """Yield the samples of each archive, then what else is in their folder."""
        position = 0
        for archive in self.shards():
            if not archive.is_file():
                detail = f"expected an archive at {archive}"
                yield Reject(str(archive), 0, "read", Reason.ARCHIVE_MISSING, detail, reached=position)
                continue
            before = position
            for row in samples(archive, self.key_rule):
                position = before + row.position
                yield placed(row, position)
        for entry in sorted(listed(self.path)):
            if is_archive(entry):
                continue
            if entry.name.lower().endswith(ARCHIVE_SUFFIXES) and entry.is_file():
                detail = f"expected an archive ending in {', '.join(SUFFIXES)}; pack it again as one of these"
                yield Reject(printable(str(entry)), 0, "read", Reason.ARCHIVE_UNREADABLE, detail, reached=position)
            else:
                yield from passed_over(entry, position)

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

    >>> [str(path) for path in expanded(Path("a-{08..10}.tar"))]
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
