"""Lines of text files with a bounded length, so that a file without line ends does not fill the memory."""

from collections.abc import Iterator
from typing import IO, AnyStr

LONGEST_LINE = 1 << 25  # characters, or bytes of a binary file: twice the longest caption
BLOCK = 1 << 20  # bytes per read where nothing is kept


class LineTooLongError(ValueError):
    """A line that is longer than `LONGEST_LINE`."""


def bounded_lines(file: IO[AnyStr], before: int = 0) -> Iterator[AnyStr | LineTooLongError]:
    """Yield the lines of an open file. A line that is too long is skipped, and its error is yielded instead.

    `before` lines of the file come before those that are read.
    """
    number = before
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        length = len(line)
        while not _ends(line) and (line := file.readline(BLOCK)):
            length += len(line)
        yield LineTooLongError(f"line {number} has a length of {length}, expected at most {LONGEST_LINE}")


class RecordLines:
    """The lines of a CSV file for `csv.reader`, with a bounded length of each record.

    Call `begin` before each record. Iteration raises a `LineTooLongError` for a line or record that is too long, and
    can be continued after it.

    Attributes:
        number: of the last line that was read, from 1.
        of_record: the lines of the current record so far; a line that is too long is empty.
    """

    def __init__(self, file: IO[str]):
        self.number = 0
        self.of_record: list[str] = []
        self._lines = bounded_lines(file)
        self._length = 0

    @property
    def first(self) -> int:
        """The number of the first line of the current record."""
        return self.number - len(self.of_record) + 1

    def begin(self) -> None:
        """Begin a new record."""
        self._length = 0
        self.of_record = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self.of_record.append("" if isinstance(line, LineTooLongError) else line)
        if isinstance(line, LineTooLongError):
            raise line
        self._length += len(line)
        if self._length > LONGEST_LINE:
            raise LineTooLongError(
                f"the record that reaches line {self.number} has a length of {self._length} so far, expected at most "
                f"{LONGEST_LINE}; look for a quote that is never closed"
            )
        return line


def count_lines(file: IO[bytes]) -> int:
    """Count the lines of an open file, of any length."""
    count, last = 0, b"\n"
    while block := file.read(BLOCK):
        count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def _ends(line: str | bytes) -> bool:
    return line.endswith(("\n", "\r")) if isinstance(line, str) else line.endswith(b"\n")
