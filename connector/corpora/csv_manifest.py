"""CSV and TSV manifests, parsed strictly: a quote out of place refuses its rows instead of changing them."""

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from connector.corpora.bounded_lines import LineTooLongError, RecordLines
from connector.corpora.items import LONGEST_FIELD, PassedOver
from connector.corpora.manifest import Manifest, ManifestRow, beginning, check_columns, open_text
from connector.corpora.picture_files import is_image_name, is_unsupported_name
from connector.corpora.row_checks import RowError
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.safe_text import printable

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Csv(Manifest):
    """A CSV manifest (a TSV by its suffix) with a header.

    A quote that is never closed makes a parser read the rows after it as one field. Each of these lines is a reject.

    Attributes:
        quoting: whether quotes enclose fields. None: in a CSV, and not in a TSV, where a quote is a character.
    """

    format = "csv"
    suffixes = (".csv", ".tsv")

    quoting: bool | None = None

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        """Decide by the suffix, except for the tables of Flickr, which have their own reader."""
        return path.suffix.lower() in cls.suffixes and not beginning(path).startswith(b"image_name|")

    @override
    def rows(self) -> Iterator[ManifestRow | Reject | PassedOver]:
        """Yield a row per record; an empty field is missing."""
        records = self._records()
        header = next(records, [])
        if not isinstance(header, list):
            raise CorpusError(f"manifest {self.path}: cannot read the header: {header}")
        check_columns(self.path, header)
        position, warned = 0, self.quoting is not None or self._has_quotes
        within: list[str] = []
        for record in records:
            if isinstance(record, PassedOver):
                within.append(record.name)
                yield replace(record, position=position)
                continue
            position += 1
            if isinstance(record, RowError):
                yield Reject(str(self.path), position, "read", record.reason, printable(str(record)))
                continue
            if not warned and any(field.startswith('"') and field.endswith('"') for field in record if field != '"'):
                warned = True
                _log.warning("%s, row %d: quotes are kept; if they enclose fields, add --quoting", self.path, position)
            yield ManifestRow(
                position, {name: value for name, value in zip(header, record, strict=True) if value != ""}
            )
        if within:
            _log.warning(
                "%s: the text in quotes has lines that look like rows, and %d more texts have; they are read as text: "
                "close the quotes before lines that are rows",
                within[0],
                len(within) - 1,
            )

    @override
    def total(self) -> int:
        return max(0, sum(not isinstance(record, PassedOver) for record in self._records()) - 1)

    @property
    def _has_quotes(self) -> bool:
        return self._delimiter == "," if self.quoting is None else self.quoting

    @property
    def _delimiter(self) -> str:
        return "\t" if self.path.suffix.lower() == ".tsv" else ","

    def _records(self) -> Iterator[list[str] | RowError | PassedOver]:
        """Yield the header and the records. Of a record that is unreadable, yield an error for each of its lines."""
        csv.field_size_limit(LONGEST_FIELD)
        quoting: Any = csv.QUOTE_MINIMAL if self._has_quotes else csv.QUOTE_NONE
        header: list[str] = []
        with open_text(self.path) as file:
            lines = RecordLines(file)
            reader = csv.reader(lines, delimiter=self._delimiter, quoting=quoting, strict=True)
            while True:
                lines.begin()
                try:
                    record = next(reader)
                except StopIteration:
                    return
                except LineTooLongError as error:
                    yield from _unread(lines, str(error), Reason.LINE_TOO_LONG)
                    continue
                except csv.Error as error:
                    yield from _unread(lines, str(error))
                    continue
                if record and not header:
                    header = record
                    yield header
                elif record:
                    yield from self._checked(record, header, lines)

    def _checked(
        self, record: list[str], header: Sequence[str], lines: RecordLines
    ) -> Iterator[list[str] | RowError | PassedOver]:
        """Yield the record. One that seems to hold rows is refused, and nothing is pruned if one may hold some.

        A field may well have several lines, and one of them may look like a row of texts. It does not look like a row
        with the name of a picture in the column of the images.
        """
        within = [next(csv.reader([line], delimiter=self._delimiter)) for line in lines.of_record[1:]]
        rows = [fields for fields in within if len(fields) == len(header)]
        if len(record) != len(header):
            yield from _unread(lines, f"expected {len(header)} fields as in the header, got {len(record)}")
        elif "image" in header and any(_is_picture_name(fields[header.index("image")]) for fields in rows):
            yield from _unread(lines, "a field in quotes holds whole rows")
        else:
            if rows:
                first = lines.number - len(lines.of_record) + 1
                yield PassedOver(printable(f"{self.path}, line {first}"), may_hide=True, counted=False)
            yield record


def _unread(lines: RecordLines, detail: str, reason: Reason = Reason.ROW_UNREADABLE) -> Iterator[RowError]:
    """Yield the error of a record, and one more for each further line that was read with it."""
    first = lines.number - len(lines.of_record) + 1
    yield RowError(reason, detail if reason is Reason.LINE_TOO_LONG else f"line {first}: {detail}")
    for number in range(first + 1, lines.number + 1):
        detail = (
            f"line {number} was read as a part of the record in line {first}: look there for a quote that is not closed"
        )
        yield RowError(Reason.ROW_UNREADABLE, detail)


def _is_picture_name(name: str) -> bool:
    return is_image_name(name) or is_unsupported_name(name)
