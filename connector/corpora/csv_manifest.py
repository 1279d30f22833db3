"""CSV and TSV manifests, parsed strictly: a quote out of place refuses its rows instead of changing them."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from typing_extensions import override

from connector.corpora.bounded_lines import LineTooLongError, RecordLines
from connector.corpora.columns import Columns
from connector.corpora.file_state import FileState
from connector.corpora.items import LONGEST_FIELD, PassedOver, Remark, Unit
from connector.corpora.manifest import ManifestRow
from connector.corpora.opening import open_text, why_not_utf8
from connector.corpora.picture_files import is_image_name, is_unsupported_name
from connector.corpora.row_checks import RowError
from connector.corpora.tables import Table
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.safe_text import printable

DELIMITERS = (",", ";", "\t", "|")
# A first line of Excel's own that names the delimiter, such as `sep=;`.
_NAMES_DELIMITER = re.compile(r'"?sep=([^\w\s"]|\t)"?[\r\n]*', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Csv(Table):
    """A CSV manifest (a TSV by its suffix) with a header. Columns without a name are left out.

    Fields are separated by the first of `DELIMITERS` under which the header has the columns; in a TSV tabs come first.
    A line `sep=;` above the header names the delimiter instead.
    A quote that is never closed makes a parser read the rows after it as one field. Each of these lines is a reject.

    Attributes:
        quoting: whether quotes enclose fields. None: in a CSV, and not in a TSV, where a quote is a character.
    """

    format = "csv"
    suffixes = (".csv", ".tsv")

    quoting: bool | None = None

    @override
    def units(self) -> Iterator[Unit]:
        """The file is one unit: only a read of all before it tells whether a line is in a field in quotes."""
        yield Unit("whole", files=(FileState.of(self.path),))

    @override
    def names(self) -> Iterator[str]:
        return filter(None, self._header(self.columns)[1])

    @override
    def records(self, columns: Columns) -> Iterator[ManifestRow | Reject | PassedOver | Remark]:
        """Yield a row per record; an empty field is missing."""
        delimiter, header = self._header(columns)
        for name in map(self._value, header):
            if isinstance(name, RowError):
                raise CorpusError(f"manifest {self.path}, header: {name}")
        columns.check(self.path, [name for name in header if name])
        records = self._records(delimiter, columns)
        next(records)
        position, quoted, first_quoted, first_within, within = 0, 0, 0, "", 0
        may_be_quotes = self.quoting is None and not self._has_quotes
        for record in records:
            if isinstance(record, PassedOver):
                first_within, within = first_within or record.name, within + 1
                yield replace(record, position=position)
                continue
            position += 1
            if isinstance(record, RowError):
                yield Reject(str(self.path), position, "read", record.reason, printable(str(record)))
                continue
            if may_be_quotes and any(field != '"' and field[:1] == field[-1:] == '"' for field in record.fields):
                first_quoted, quoted = first_quoted or position, quoted + 1
            pairs = zip(header, record.fields, strict=True)
            fields = {name: self._value(value) for name, value in pairs if name and value != ""}
            yield ManifestRow(position, fields, line=record.line)
        if quoted:
            text = f"{self.path}: quotes at both ends of a field are kept; if they enclose fields, add --quoting; rows"
            yield Remark(text, quoted, f"row {first_quoted}")
        if unnamed := [str(number) for number, name in enumerate(header, start=1) if not name]:
            yield Remark(f"{self.path}: columns without a name are left out: {', '.join(unnamed)}")
        if within:
            text = "lines that look like rows are read as text, because quotes enclose them; close the quotes before "
            yield Remark(f"{text}lines that are rows; texts", within, first_within)

    @override
    def total(self) -> int:
        delimiter, _ = self._header(self.columns)
        return max(0, sum(not isinstance(entry, PassedOver) for entry in self._records(delimiter, self.columns)) - 1)

    def _value(self, text: str) -> str | RowError:
        """Return the text of a field, or why it cannot be read: bytes that are no UTF-8 are surrogates in it."""
        if text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text):
            return text
        detail = why_not_utf8(text.encode("utf-8", "surrogateescape"), str(self.path))
        return RowError(Reason.ROW_UNREADABLE, printable(detail))

    @property
    def _is_tsv(self) -> bool:
        return self.path.suffix.lower() == ".tsv"

    @property
    def _has_quotes(self) -> bool:
        return not self._is_tsv if self.quoting is None else self.quoting

    @property
    def _named_delimiter(self) -> str | None:
        """The delimiter that the first line names; None: it is a header."""
        with open_text(self.path) as file:
            match = _NAMES_DELIMITER.fullmatch(file.readline(len('"sep=;"\r\n')))
        return match[1] if match else None

    @property
    def _delimiters(self) -> tuple[str, ...]:
        """The delimiters to try, in this order."""
        if named := self._named_delimiter:
            return (named,)
        return tuple(sorted(DELIMITERS, key=lambda character: character != "\t")) if self._is_tsv else DELIMITERS

    def _header(self, columns: Columns) -> tuple[str, list[str]]:
        """Return the delimiter under which the header has the columns, and the header.

        Where none has, it is the one that finds most names.

        Raises:
            CorpusError: the header cannot be read.
        """
        headers: dict[str, list[str]] = {}
        fault: RowError | PassedOver | None = None
        for delimiter in self._delimiters:
            first = next(self._records(delimiter, columns), _Record(1, []))
            if not isinstance(first, _Record):
                fault = fault or first
                continue
            headers[delimiter] = header = first.fields
            if columns.fit(header):
                return delimiter, header
        if not headers:
            raise CorpusError(f"manifest {self.path}: cannot read the header: {fault}")
        return max(headers.items(), key=lambda found: len(found[1]))

    def _records(self, delimiter: str, columns: Columns) -> Iterator["_Record | RowError | PassedOver"]:
        """Yield the header and the records. Of a record that is unreadable, yield an error for each of its lines."""
        csv.field_size_limit(LONGEST_FIELD)
        quoting: Any = csv.QUOTE_MINIMAL if self._has_quotes else csv.QUOTE_NONE
        header: list[str] = []
        with open_text(self.path) as file:
            lines = RecordLines(file)
            if self._named_delimiter:
                next(lines)
            reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
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
                    yield _Record(lines.first, header)
                elif record:
                    within = [next(csv.reader([line], delimiter=delimiter), []) for line in lines.of_record[1:]]
                    rows = [row for row in within if len(row) == len(header)]
                    image = header.index(columns.image) if columns.image in header else None
                    yield from self._checked(record, header, rows, image, lines)

    def _checked(
        self, record: list[str], header: Sequence[str], rows: Sequence[list[str]], image: int | None, lines: RecordLines
    ) -> Iterator["_Record | RowError | PassedOver"]:
        """Yield the record. One that seems to hold rows is refused, and nothing is pruned if one may hold some.

        A field may well have several lines, and one of them may look like a row of texts. It does not look like a row
        with the name of a picture in the column of the images.

        Args:
            record: as it was parsed.
            header: names of the columns.
            rows: lines within the record that have as many fields.
            image: number of the column of images.
            lines: where the record was read.
        """
        if len(record) != len(header):
            yield from _unread(lines, f"expected {len(header)} fields as in the header, got {len(record)}")
        elif image is not None and any(_is_picture_name(fields[image]) for fields in rows):
            yield from _unread(lines, "a field in quotes holds whole rows")
        else:
            if rows:
                yield PassedOver(printable(f"{self.path}, line {lines.first}"), may_hide=True, counted=False)
            yield _Record(lines.first, record)


class _Record(NamedTuple):
    """The fields of a record, and the line in which it begins."""

    line: int
    fields: list[str]


def _unread(lines: RecordLines, detail: str, reason: Reason = Reason.ROW_UNREADABLE) -> Iterator[RowError]:
    """Yield the error of a record, and one more for each further line that was read with it."""
    first = lines.first
    yield RowError(reason, detail if reason is Reason.LINE_TOO_LONG else f"line {first}: {detail}")
    for number in range(first + 1, lines.number + 1):
        detail = (
            f"line {number} was read as a part of the record in line {first}: look there for a quote that is not closed"
        )
        yield RowError(Reason.ROW_UNREADABLE, detail)


def _is_picture_name(name: str) -> bool:
    return is_image_name(name) or is_unsupported_name(name)
