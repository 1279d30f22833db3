"""Image files made by hand, byte by byte, of kinds that no writer at hand makes."""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return `image` as a file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """Return a PNG of unfiltered `rows`, with `chunks` before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[row * stride : (row + 1) * stride] for row in range(height))
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(raw)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(tags: Mapping[int, int | Sequence[int]], data: bytes, order: str = "<") -> bytes:
    """Return a TIFF of one strip. Tags are whole numbers or lists of them; the strip's own are added."""
    all_tags = {273: 8, 278: tags[257], 279: len(data), **tags}
    entries, extra = [], b""
    start = 8 + len(data) + len(data) % 2
    after = start + 2 + 12 * len(all_tags) + 4
    for tag, value in sorted(all_tags.items()):
        values = [value] if isinstance(value, int) else list(value)
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            entries.append(struct.pack(f"{order}HHII", tag, 4, len(values), after + len(extra)))
            extra += packed
        else:
            entries.append(struct.pack(f"{order}HHI", tag, 4, 1) + packed)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return magic + struct.pack(f"{order}I", start) + data + bytes(len(data) % 2) + directory + extra


def exif(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """Return EXIF of entries (tag, type, count, value or offset in 4 bytes)."""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(f"{order}HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    directory = struct.pack(f"{order}H", len(entries)) + body + bytes(4)
    return b"Exif\0\0" + magic + struct.pack(f"{order}I", 8) + directory
