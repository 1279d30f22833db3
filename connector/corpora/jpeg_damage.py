"""Whether a JPEG is whole: its segments, its restart marks, and whether its data reaches to the last pixel.

A decoder fills what it misses with grey and says nothing. So does one whose file was cut and closed by an end mark, as
tools do that repair files and cameras that lose power.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

# Bytes in a row that are zero. Data of some compressions never holds as many; a lost block of a disk or download does.
LOST_BLOCK = bytes(512)

SCAN_END = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
RESTART = re.compile(rb"\xff([\xd0-\xd7])")
STANDALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # frames coded by Huffman tables
TABLES, SCAN, RESTARTS, END = 0xC4, 0xDA, 0xDD, 0xD9

GREY = (127, 128)  # of blocks without data; CMYK is inverted
ROWS_AT_ONCE = 64
FEWEST_UNITS, MOST_UNITS = 16, 128  # units of blocks in grey that are looked for in the data


class JpegScan(NamedTuple):
    """A scan: entropy-coded data of an image, and what was declared before it.

    Attributes:
        marker, frame: of the frame: its kind, and its header.
        interval: units of blocks between restart marks; 0: there are none.
        tables: Huffman tables by class (upper four bits: 0 DC, 1 AC) and number: 16 counts of codes, then symbols.
        header: of the scan.
        start, end: of the data in the file.
    """

    marker: int
    frame: bytes
    interval: int
    tables: Mapping[int, bytes]
    header: bytes
    start: int
    end: int

    @property
    def components(self) -> list[tuple[int, int]]:
        """Number and tables of each component."""
        count = self.header[0]
        return [(self.header[1 + 2 * number], self.header[2 + 2 * number]) for number in range(count)]

    @property
    def sampling(self) -> dict[int, tuple[int, int]]:
        """Blocks across and down in a unit, by the number of the component."""
        return {self.frame[6 + 3 * n]: divmod(self.frame[7 + 3 * n], 16) for n in range(self.frame[5])}

    @property
    def is_whole_image(self) -> bool:
        """Whether it has data of every block, of all components, of an image whose size is declared."""
        first, last, approximation = self.spectrum
        of_all_blocks = self.marker in SEQUENTIAL or (
            self.marker == PROGRESSIVE and first == last == 0 and not approximation >> 4
        )
        return of_all_blocks and min(self.size) > 0 and len(self.components) == self.frame[5]

    @property
    def spectrum(self) -> tuple[int, int, int]:
        """First and last coefficient of the blocks, and which of their bits."""
        first, last, approximation = self.header[1 + 2 * self.header[0] : 4 + 2 * self.header[0]]
        return first, last, approximation

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int.from_bytes(self.frame[3:5]), int.from_bytes(self.frame[1:3])

    @property
    def unit(self) -> tuple[int, int]:
        """Width and height of a unit of blocks in pixels. A single component has units of one block."""
        if len(self.components) == 1:
            return 8, 8
        across, down = zip(*self.sampling.values(), strict=True)
        return 8 * max(across), 8 * max(down)

    @property
    def blank_unit(self) -> str:
        """The bits of a unit of blocks that are as the ones before; empty if the tables have no such code."""
        bits = ""
        for number, tables in self.components:
            across, down = self.sampling[number] if len(self.components) > 1 else (1, 1)
            needed = (tables >> 4,) if self.marker == PROGRESSIVE else (tables >> 4, 16 | tables & 15)
            codes = [_zero_code(self.tables.get(table, b"")) for table in needed]
            if not all(codes):
                return ""
            bits += "".join(codes) * across * down
        return bits


def check_jpeg(content: bytes) -> None:
    """Check the segments of a JPEG and the marks in its data.

    Raises:
        ValueError: the file is not whole.
    """
    for scan in _scans(content):
        data = content[scan.start : scan.end]
        restarts = [found[1][0] - 0xD0 for found in RESTART.finditer(data)]
        expected = _restarts(scan) if scan.interval and scan.is_whole_image else 0
        if restarts != [number % 8 for number in range(len(restarts))] or len(restarts) < expected:
            raise ValueError("parts of the image are missing: its restart marks are not in order or not all there")
        if not _zeros_are_flat(scan):
            check_no_lost_block(data, scan.start)


def check_decoded(content: bytes, image: Image.Image) -> None:
    """Check that the data of a JPEG, without restart marks, reaches to the last row of the decoded image.

    An image may well end in the grey of blocks without data. Then its data ends in the code of such blocks, over and
    over.

    Raises:
        ValueError: rows are missing.
    """
    rows = _grey_rows(image)
    scan = next(_scans(content), None) if rows else None
    if scan is None or scan.interval or not scan.is_whole_image or not scan.blank_unit:
        return
    (width, height), (unit_width, unit_height) = scan.size, scan.unit
    missing = rows * height // image.height  # the decoder may have scaled it down
    units = min(missing // unit_height * -(-width // unit_width), MOST_UNITS)
    if units < FEWEST_UNITS:
        return
    # The last units may be cut off by the edge, so that half of them are enough.
    blank = scan.blank_unit * (units // 2)
    last = content[scan.start : scan.end].replace(b"\xff\0", b"\xff")[-len(blank) :]  # eight times as many bits
    if blank not in "".join(f"{byte:08b}" for byte in last):
        raise ValueError(f"the data ends {missing} of {height} rows before the end of the image")


def check_no_lost_block(data: bytes, start: int) -> None:
    """Raise a `ValueError` if compressed data, from byte `start` of a file on, holds a `LOST_BLOCK`."""
    if (at := data.find(LOST_BLOCK)) >= 0:
        raise ValueError(f"the compressed data holds {len(LOST_BLOCK)} zeros or more from byte {start + at} on")


def _scans(content: bytes) -> Iterator[JpegScan]:
    """Yield the scans of the first image; raises a `ValueError` if the file ends before its end mark."""
    at, kind, frame, interval, tables = 2, 0, b"", 0, dict[int, bytes]()
    while True:
        at = content.find(b"\xff", at)
        while 0 <= at < len(content) and content[at] == 0xFF:
            at += 1
        if not 0 < at < len(content):
            raise ValueError("the file ends before its end mark (EOI)")
        marker, start, at = content[at], at + 1, at + 1
        if marker == END:
            return
        if marker in STANDALONE:
            continue
        at = start + int.from_bytes(content[start : start + 2])
        if not start + 2 <= at <= len(content):
            raise ValueError(f"segment {marker:02x} at byte {start} goes on behind the end of the file")
        segment = content[start + 2 : at]
        if marker in FRAMES:
            kind, frame = marker, segment
        elif marker == TABLES:
            tables = tables | dict(_tables(segment))
        elif marker == RESTARTS:
            interval = int.from_bytes(segment[:2])
        elif marker == SCAN:
            if (end := SCAN_END.search(content, at)) is None:
                raise ValueError("the file ends before its end mark (EOI)")
            yield JpegScan(kind, frame, interval, tables, segment, at, end.start())
            at = end.start()


def _tables(segment: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 17 < len(segment):
        end = at + 17 + sum(segment[at + 1 : at + 17])
        yield segment[at], segment[at + 1 : end]
        at = end


def _zero_code(table: bytes) -> str:
    """Return the bits that a Huffman table gives to symbol 0; empty if it has none.

    In a DC table, symbol 0 means as the block before; in an AC table, that the rest of a block is zero.
    """
    code, at = 0, 16
    for length, count in enumerate(table[:16], start=1):
        if (place := table[at : at + count].find(0)) >= 0:
            return f"{code + place:0{length}b}"
        code, at = (code + count) << 1, at + count
    return ""


def _restarts(scan: JpegScan) -> int:
    """Return how many restart marks a scan of the whole image has."""
    (width, height), (unit_width, unit_height) = scan.size, scan.unit
    units = -(-width // unit_width) * -(-height // unit_height)
    return -(-units // scan.interval) - 1


def _zeros_are_flat(scan: JpegScan) -> bool:
    """Whether many zeros in a scan may be a blank area."""
    first, last, approximation = scan.spectrum
    tables = [tables & 0x0F for _, tables in scan.components]
    of_dc_or_refining = first == last == 0 or approximation >> 4 > 0
    # Only a table whose first code ends a block makes blank areas of zeros.
    return of_dc_or_refining or all(
        16 | number not in scan.tables or scan.tables[16 | number][16] & 0x0F == 0 for number in tables
    )


def _grey_rows(image: Image.Image) -> int:
    """Count the rows at the end of a decoded image that are of one colour, if it is that of blocks without data."""
    last = np.asarray(image.crop((image.width - 1, image.height - 1, image.width, image.height)))
    if not np.isin(last, GREY).all():
        return 0
    count = 0
    while count < image.height:
        top = max(0, image.height - count - ROWS_AT_ONCE) if count else image.height - 1
        strip = np.asarray(image.crop((0, top, image.width, image.height - count)))
        other = np.flatnonzero((strip != last).reshape(len(strip), -1).any(axis=1))
        if len(other):
            return count + len(strip) - 1 - int(other[-1])
        count += len(strip)
    return count
