"""Manifests that users make, JSONL, CSV and Parquet: rows with the columns that `Columns` names."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from alignment.errors import StorageError
from alignment.object_storage import joined
from alignment.value_kinds import kind_of
from connector.corpora.bounded_lines import LineTooLongError, bounded_lines, count_lines
from connector.corpora.columns import Columns
from connector.corpora.items import PassedOver, Remark, Unit
from connector.corpora.line_ranges import line_units, opened_within
from connector.corpora.manifest import Manifest, ManifestRow
from connector.corpora.opening import check_utf8, opened, why_not_utf8
from connector.corpora.picture_files import with_suffix
from connector.corpora.row_checks import RowError, parse_json
from connector.rejects import Reason, Reject, at_line
from connector.safe_text import printable

ROWS_PROBED = 1000  # of a file without a header, to see which columns it has


@dataclass(frozen=True, slots=True)
class Table(Manifest):
    """A manifest with a column each for keys, images, captions and groups; all others become payload.

    Attributes:
        images: folder that paths of images are relative to; None: the folder of the file.
        key, image, caption, group: columns, see `connector.corpora.columns.Columns`.
    """

    images: Path | None = None
    key: str | None = None
    image: str | None = None
    caption: tuple[str, ...] = ()
    group: str | None = None

    @property
    def columns(self) -> Columns:
        """The columns that were named, and the usual ones for the rest."""
        return Columns.of(self.key, self.image, self.caption, self.group)

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Yield the names of the columns as they are met, of some formats in each row again."""

    @abstractmethod
    def records(self, columns: Columns) -> Iterator[ManifestRow | Reject | PassedOver | Remark]:
        """Yield the rows with the fields that the file has.

        Raises:
            CorpusError: the file has not these columns.
        """

    @override
    def rows(self) -> Iterator[ManifestRow | Reject | PassedOver | Remark]:
        """Yield the rows with our own names of fields, and say at the end how many have no group."""
        columns, without_group = self.columns, 0
        for row in self.records(columns):
            if not isinstance(row, ManifestRow):
                yield row
                continue
            named = self.named(columns, row)
            without_group += _is_missing(named.fields.get("group"))
            yield named
        if without_group and self.group is not None:
            text = f"{self.path}: each row without a value in the column {self.group!r} is in a group of its own, that "
            yield Remark(f"{text}of its key", without_group)

    def named(self, columns: Columns, row: ManifestRow) -> ManifestRow:
        """Return a row with our own names of fields, and the path of its image."""
        fields = columns.fields(row.fields)
        if isinstance(image := fields.get("image"), str) and image:
            fields["image"] = self._picture_of(row, image)
        return replace(row, fields=fields, columns=columns)

    def _picture_of(self, row: ManifestRow, image: str) -> str | RowError:
        """Return the path or URL of the picture that a row names, or why it cannot be used."""
        try:
            path = joined(self.images or (row.source or self.path).parent, image)
        except StorageError as error:
            return RowError(Reason.PATH_UNSAFE, str(error))
        found = path if row.picture is not None else with_suffix(path)
        return found if isinstance(found, RowError) else str(found)


def _is_missing(value: Any) -> bool:
    return value in (None, "") or (isinstance(value, float) and math.isnan(value))


class JsonLines(Table):
    """A JSONL manifest: one JSON object a line."""

    format = "jsonl"
    suffixes = (".jsonl", ".ndjson")

    @override
    def records(self, columns: Columns) -> Iterator[ManifestRow | Reject]:
        """Yield a row per line; blank lines are skipped."""
        if self.unit is None:
            self._check(columns)
        for row in self._lines():
            if isinstance(row, ManifestRow) and (wrong := columns.misspelt(row.fields)):
                yield self._unreadable(row.position, wrong)
            else:
                yield row

    @override
    def units(self) -> Iterator[Unit]:
        self._check(self.columns)
        yield from line_units(self.path, self.begins_anew)

    @override
    def names(self) -> Iterator[str]:
        for row in self._lines():
            yield from row.fields if isinstance(row, ManifestRow) else ()

    @override
    def total(self) -> int:
        with opened(self.path) as file:
            return count_lines(file)

    def _check(self, columns: Columns) -> None:
        """Raise a `CorpusError` if the file is not UTF-8, or lacks columns that every file needs or that were named.

        The rows at the beginning show which there are. A misspelt column is the fault of its row.
        """
        check_utf8(self.path)
        names: dict[str, None] = {}
        for row, _ in zip(self._lines(), range(ROWS_PROBED), strict=False):
            names.update(dict.fromkeys(row.fields) if isinstance(row, ManifestRow) else {})
        if names and not columns.fit(list(names)):
            columns.check(self.path, list(names))

    def _lines(self) -> Iterator[ManifestRow | Reject]:
        before = self.unit.lines if self.unit else 0
        with opened_within(self.path, self.unit) as file:
            for position, line in enumerate(bounded_lines(file, before), start=before + 1):
                if isinstance(line, LineTooLongError):
                    yield Reject(str(self.path), position, "read", Reason.LINE_TOO_LONG, str(line))
                    continue
                if not line.strip():
                    continue
                try:
                    fields: Any = parse_json(line.decode("utf-8-sig" if position == 1 else "utf-8"))
                    if not isinstance(fields, dict):
                        raise ValueError(f"expected a JSON object, got {kind_of(fields)}")
                except UnicodeDecodeError:
                    yield self._unreadable(position, why_not_utf8(line, str(self.path)))
                except ValueError as error:
                    yield self._unreadable(position, str(error))
                else:
                    yield ManifestRow(position, fields, line=position)

    def _unreadable(self, position: int, detail: str) -> Reject:
        return Reject(str(self.path), position, "read", Reason.ROW_UNREADABLE, at_line(position, printable(detail)))
