"""Lines of text files, none longer than a bound: a file that has lost its line ends must not fill the memory."""

from collections.abc import Iterator
from typing import IO, AnyStr

LONGEST_LINE = 1 << 25  # characters, or bytes of a binary file: twice the longest caption
BLOCK = 1 << 20  # bytes that are read at a time where nothing is kept


class LineTooLongError(ValueError):
    """A line that is longer than `LONGEST_LINE`."""


def bounded_lines(file: IO[AnyStr]) -> Iterator[AnyStr | LineTooLongError]:
    """Yield the lines of an open file; in place of one that is too long, which is passed over, the error."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        length = len(line)
        while not _ends(line) and (line := file.readline(BLOCK)):
            length += len(line)
        yield LineTooLongError(f"line {number} has a length of {length}, expected {LONGEST_LINE} at most")


class RecordLines:
    """The lines of a CSV file, for `csv.reader`: of a record that goes over many lines, not too many.

    Call `begin` before each record. What is too long is raised where it stands; reading goes on after it.
    """

    def __init__(self, file: IO[str]):
        self._lines = bounded_lines(file)
        self._number = self._length = 0

    def begin(self) -> None:
        """Begin a record."""
        self._length = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._number += 1
        if isinstance(line, LineTooLongError):
            raise line
        self._length += len(line)
        if self._length > LONGEST_LINE:
            raise LineTooLongError(
                f"the record that goes on in line {self._number} has a length of {self._length} up to there, expected "
                f"{LONGEST_LINE} at most; look for a quote that is never closed"
            )
        return line


def count_lines(file: IO[bytes]) -> int:
    """Count the lines of an open file, however long they are."""
    count, last = 0, b"\n"
    while block := file.read(BLOCK):
        count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def _ends(line: str | bytes) -> bool:
    return line.endswith(("\n", "\r")) if isinstance(line, str) else line.endswith(b"\n")
