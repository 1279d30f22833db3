"""Files of lines, cut into units: ranges of bytes that end where a line does."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from connector.corpora.bounded_lines import BLOCK
from connector.corpora.file_state import FileState
from connector.corpora.items import Unit
from connector.corpora.manifest import ManifestRow
from connector.corpora.opening import opened

UNIT_BYTES = 16 << 20
UNIT_LINES = 4096  # as many pictures take an encoder minutes, and workers share a corpus that has several units
COUNTED_BYTES = 1 << 16  # that are read before it is seen whether there are so many


class LineTally:
    """Counts the lines of blocks of bytes that follow each other. The last line may lack its end."""

    def __init__(self) -> None:
        self.size = 0
        self._ends = 0
        self._last = b"\n"

    def take(self, block: bytes) -> None:
        """Count the next block."""
        self.size += len(block)
        self._ends += block.count(b"\n")
        self._last = block[-1:] or self._last

    @property
    def at_line_end(self) -> bool:
        """Whether the last line has its end."""
        return self._last == b"\n"

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return self._ends + (not self.at_line_end)


def line_units(
    path: Path,
    begins_anew: Callable[[Unit], ManifestRow | None],
    *,
    header: int = 0,
) -> Iterator[Unit]:
    """Cut a file into units of some `UNIT_BYTES` or `UNIT_LINES`, in one read.

    Args:
        path: the file.
        begins_anew: see `connector.corpora.manifest.Manifest`.
        header: how many rows at the beginning of the file are none.
    """
    state = FileState.of(path)
    start = before = lines = 0
    with opened(path) as file:
        while start < state.size:
            file.seek(start)
            of_unit = LineTally()
            while of_unit.size < UNIT_BYTES and of_unit.lines < UNIT_LINES:
                if not _take(file, of_unit, min(COUNTED_BYTES, UNIT_BYTES - of_unit.size)):
                    break
            while not of_unit.at_line_end and _take_line(file, of_unit):
                pass
            while start + of_unit.size < state.size:
                at = start + of_unit.size, before + of_unit.lines - (0 if start else header), lines + of_unit.lines
                row = begins_anew(Unit("rest", None, (state,), at[0], state.size, at[1], at[2]))
                if row is None or row.line is None:
                    _take(file, of_unit, state.size - at[0])
                    break
                while lines + of_unit.lines + 1 < row.line:
                    _take_line(file, of_unit)
                if lines + of_unit.lines + 1 == row.line:  # otherwise it begins after a lone carriage return
                    break
            rows, stop = of_unit.lines - (0 if start else header), start + of_unit.size
            yield Unit(f"bytes {start}-{stop}", rows, (state,), start, stop, before, lines)
            start, before, lines = stop, before + rows, lines + of_unit.lines


def _take(file: IO[bytes], tally: LineTally, size: int) -> bool:
    """Count the next `size` bytes, fewer at the end of the file; False: there are none."""
    before = tally.size
    while size and (block := file.read(min(size, BLOCK))):
        size -= len(block)
        tally.take(block)
    return tally.size > before


def _take_line(file: IO[bytes], tally: LineTally) -> bool:
    """Count the rest of the line; False at the end of the file."""
    while block := file.readline(BLOCK):
        tally.take(block)
        if block.endswith(b"\n"):
            return True
    return False


@contextmanager
def opened_within(path: Path, unit: Unit | None) -> Iterator[IO[bytes]]:
    """Open a file of lines in binary mode, or those bytes of it alone that are a unit.

    Raises:
        CorpusError: it cannot be read.
    """
    with opened(path) as file:
        if unit is None or not unit.files:
            yield file
        else:
            file.seek(unit.start)
            yield io.BufferedReader(_Bytes(file, unit.stop - unit.start), BLOCK)


class _Bytes(io.RawIOBase):
    """The next `size` bytes of an open file."""

    def __init__(self, file: IO[bytes], size: int):
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(min(len(buffer), self._left))
        buffer[: len(block)] = block
        self._left -= len(block)
        return len(block)
