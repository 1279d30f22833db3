"""Folders written by img2dataset: shards of samples, each with a table of the outcome of every download.

00000.tar  00000.parquet  00000_stats.json                      --output_format webdataset
00000/000000000.jpg .txt .json  00000.parquet  ...              --output_format files
00000.parquet with a column jpg  00000_stats.json               --output_format parquet
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from connector.corpora.file_state import FileState
from connector.corpora.items import LONGEST_FIELD, PassedOver, Remark, Unit
from connector.corpora.manifest import ManifestRow, Shards, placed
from connector.corpora.opening import listed, parquet_source
from connector.corpora.parquet_manifest import BATCH_PICTURES, records
from connector.corpora.picture_files import file_without_use, is_apple_double_file, is_image_name, passed_over
from connector.corpora.samples import METADATA, TEXTS, Sample, samples
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.resources import raise_lack
from connector.safe_text import printable, redacted, without_secrets

SUCCESS = "success"
MOST_MISSING = 100  # numbers between shards, for each shard that is there
# Fields about the download, which become rejects instead of payload.
BOOKKEEPING = ("status", "error_message", "exif")
PICTURES = ("jpg", "png", "webp")  # columns of `--output_format parquet`, by `--encode_format`


class Img2Dataset(Shards):
    """A folder that img2dataset wrote. Every failed download is a reject with its reason."""

    format = "img2dataset"

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        return path.is_dir() and any(
            re.fullmatch(r"\d+_stats\.json", entry.name)
            or (re.fullmatch(r"\d+\.parquet", entry.name) and _holds_samples(entry))
            for entry in listed(path)
        )

    @override
    def total(self) -> int | None:
        try:
            return sum(int(pq.read_metadata(parquet_source(self._table(shard))).num_rows) for shard in self._shards())
        except (OSError, ValueError, pa.ArrowException):
            return None  # a table is missing or broken; iterating yields the reject

    @override
    def units(self) -> Iterator[Unit]:
        """Each shard is a unit, and what else is in the folder is the last one."""
        for shard in self._shards():
            files = self.path / f"{shard}.tar", self.path / shard, self._table(shard)
            yield Unit(shard, files=tuple(map(FileState.of, files)))
        yield Unit(_OTHER_FILES, files=(FileState.of(self.path),))

    @override
    def rows_of(self, unit: Unit) -> Iterator[ManifestRow | Reject | PassedOver | Remark]:
        """Yield the samples of a shard, followed by its failed downloads."""
        if unit.name == _OTHER_FILES:
            yield from self._other_files()
            return
        arrived = set()  # keys of one shard, 10,000 by default
        position, reached = 0, 0
        for row in self._samples(unit.name):
            if not isinstance(row, PassedOver) and row.position > position:
                position, reached = row.position, reached + 1
            if isinstance(row, ManifestRow):
                arrived.add(row.fields["key"])
                kept = {name: value for name, value in row.fields.items() if name not in BOOKKEEPING}
                yield replace(row, fields=kept, reached=reached)
            else:
                yield placed(row, reached)
                if isinstance(row, Reject):
                    arrived.add(row.key)  # downloaded, but rejected
        for failed in self._failures(unit.name, arrived):
            reached += failed.position > 0
            yield placed(failed, reached)

    def _other_files(self) -> Iterator[PassedOver | Remark]:
        for entry in sorted(listed(self.path)):
            if not _SHARD.fullmatch(entry.name):
                yield from passed_over(entry, 0)
        if missing := self._missing():
            yield Remark(
                f"{self.path}: img2dataset numbers its shards without gaps; download again what is missing, among it "
                f"{', '.join(missing[:3])}, or add --format webdataset for archives that were chosen; missing shards",
                len(missing),
            )
            for shard in missing:
                yield PassedOver(printable(str(self.path / shard)), may_hide=True, counted=False)

    def _missing(self) -> list[str]:
        """Return the shards between the first and the last of which nothing is there."""
        shards = self._shards()
        numbers = {int(shard) for shard in shards}
        between = range(min(numbers), max(numbers))
        if len(between) > MOST_MISSING * len(numbers):  # these are no numbers that were counted up
            return []
        return [f"{number:0{len(shards[0])}d}" for number in between if number not in numbers]

    def _shards(self) -> list[str]:
        stems = {match[1] for entry in self.path.iterdir() if (match := _SHARD.fullmatch(entry.name))}
        if not stems:
            raise CorpusError(f"corpus {self.path}: expected shards such as 00000.tar or 00000.parquet, found none")
        return sorted(stems, key=lambda stem: (len(stem), stem))

    def _table(self, shard: str) -> Path:
        return self.path / f"{shard}.parquet"

    def _samples(self, shard: str) -> Iterator[ManifestRow | Reject | PassedOver]:
        archive, folder = self.path / f"{shard}.tar", self.path / shard
        if not archive.is_file():
            yield from files(folder) if folder.is_dir() else _pictures(self._table(shard))
            return
        yield from samples(archive)
        if folder.exists():
            yield from passed_over(folder, 0)

    def _failures(self, shard: str, arrived: set[Any]) -> Iterator[Reject]:
        """Yield what the table of a shard has and the shard has not; what is wrong with the table has position 0."""
        table, position = self._table(shard), 0
        try:
            with pq.ParquetFile(parquet_source(table)) as file:
                if missing := {"key", "status"} - set(file.schema_arrow.names):
                    raise ValueError(f"expected the columns {', '.join(sorted(missing))}")
                columns = [
                    name for name in ("key", "status", "error_message", "url") if name in file.schema_arrow.names
                ]
                for batch in file.iter_batches(batch_size=1024, columns=columns):
                    for record in records(batch):
                        position += 1
                        if record.get("key") in arrived and record.get("status") == SUCCESS:
                            continue
                        yield _failure(table, position, record)
        except FileNotFoundError:
            detail = f"expected {table.name}, which img2dataset writes last; failed downloads of this shard are unknown"
            yield Reject(str(table), 0, "read", Reason.SHARD_UNFINISHED, detail)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise_lack(error, f"reading {table}")
            yield Reject(str(table), 0, "read", Reason.SHARD_TABLE_UNREADABLE, printable(str(error)))


def files(folder: Path) -> Iterator[ManifestRow | Reject | PassedOver]:
    """Yield the samples of a folder of files, counted by their position; the file stem is the key."""
    sample: Sample | None = None
    position = 0
    try:
        paths = sorted(folder.iterdir(), key=lambda entry: (entry.stem, entry.suffix))
        folders = {path for path in paths if path.is_dir()}
    except OSError as error:
        raise_lack(error, f"reading {folder}")
        yield Reject(printable(str(folder)), 0, "read", Reason.FOLDER_UNREADABLE, printable(str(error)))
        return
    for path in paths:
        kind = path.suffix.lower()
        if path in folders:
            yield from passed_over(path, position)
            continue
        is_image = is_image_name(path.name)
        if is_apple_double_file(path) or not (is_image or kind in TEXTS or kind == METADATA):
            yield file_without_use(path, folder, position)
            continue
        if sample is None or sample.key != path.stem:
            if sample:
                yield from sample.rows()
            position += 1
            sample = Sample(folder, position, path.stem)
        if is_image:
            sample.take_image(path.name)
        else:
            _take_text(sample, path, kind)
    if sample:
        yield from sample.rows()


def _pictures(table: Path) -> Iterator[ManifestRow | Reject | PassedOver]:
    """Yield the samples of a table that holds the pictures itself."""
    position = 0
    try:
        with pq.ParquetFile(parquet_source(table)) as file:
            if (kind := _picture_column(file.schema_arrow)) is None:
                return
            for batch in file.iter_batches(BATCH_PICTURES):
                for record in records(batch):
                    position += 1
                    if record[kind] is None or not isinstance(record["key"], str):
                        continue  # a failed download
                    sample = Sample(table, position, record["key"])
                    sample.take_image(f"{sample.key}.{kind}", record[kind])
                    if isinstance(text := record.get("txt"), str):
                        sample.take_text(f"{sample.key}.txt", ".txt", text.encode("utf-8", "surrogatepass"))
                    elif text is not None:
                        sample.refuse(Reason.CAPTION_NOT_TEXT, f"expected a text in the column txt: {text}", ".txt")
                    sample.fields = {name: value for name, value in record.items() if name not in (kind, "txt")}
                    yield from sample.rows()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise_lack(error, f"reading {table}")  # otherwise the reject comes with the failed downloads


def _picture_column(schema: pa.Schema) -> str | None:
    """Return the column of pictures of a table of `--output_format parquet`, named by their format."""
    return next((name for name in PICTURES if {name, "key", "status"} <= set(schema.names)), None)


def _take_text(sample: Sample, path: Path, kind: str) -> None:
    try:
        if not path.is_file():
            raise ValueError("expected a regular file")
        if (size := path.stat().st_size) > LONGEST_FIELD:
            raise ValueError(f"{size} bytes, expected at most {LONGEST_FIELD}")
        sample.take_text(path.name, kind, path.read_bytes())
    except (OSError, ValueError) as error:
        raise_lack(error, f"reading {path}")
        sample.refuse(Reason.ROW_UNREADABLE, f"{path.name}: {error}", kind)


# Status values of img2dataset. Any other status goes into the detail of the reject.
FAILURES = {"failed_to_download": Reason.FAILED_TO_DOWNLOAD, "failed_to_resize": Reason.FAILED_TO_RESIZE}
_OTHER_FILES = "other files"  # no name of a shard
_SHARD = re.compile(r"(\d+)(?:\.tar|\.parquet|_stats\.json)?")


def _holds_samples(table: Path) -> bool:
    """Whether a table is of a shard: its pictures are beside it, or in a column."""
    if table.with_suffix(".tar").is_file() or table.with_suffix("").is_dir():
        return True
    try:
        return _picture_column(pq.read_schema(parquet_source(table))) is not None
    except (OSError, ValueError, pa.ArrowException):
        return False


def _failure(table: Path, position: int, record: Any) -> Reject:
    key, status = printable(str(record.get("key"))), record.get("status")
    if status == SUCCESS:
        detail = "the table lists the download as successful, but the shard does not hold the image"
        return Reject(str(table), position, "read", Reason.IMAGE_MISSING, detail, key, "image")
    reason = FAILURES.get(str(status), Reason.DOWNLOAD_FAILED)
    address = redacted(url) if isinstance(url := record.get("url"), str) else "(no URL)"
    detail = printable(f"{without_secrets(str(record.get('error_message') or status))}: {address}")
    return Reject(str(table), position, "read", reason, detail, key, "image")
