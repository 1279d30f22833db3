"""Whether an image file is whole, as far as its format can tell: checksums, lengths and end marks.

Decoders fill what they miss with black or grey and say nothing. Some damage cannot be told from a picture: zeros are
black pixels in uncompressed formats (BMP, TGA, PPM, plain TIFF), and blank areas in WebP, AVIF and JPEG 2000.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from connector.corpora.jpeg_damage import check_jpeg, check_no_lost_block

PNG = b"\x89PNG\r\n\x1a\n"
# What decides about pixels. Text, colour profiles and animations are left out: they are unused, and a large or broken
# one would refuse the image.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row, and steps, of the seven passes of an interlaced PNG.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

ICON_PIXELS = 1024  # a side of a bitmap, which has a mask of its height below it

TIFF_NEEDED = frozenset({256, 257, 258, 259, 262, 273, 277, 279, 284, 320, 322, 323, 324, 325, 338, 339, 347, 530})
TIFF_TYPES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of a value
TIFF_DEFLATE, TIFF_WITHOUT_ZEROS = (8, 32_946), (5, 32_773)  # LZW, PackBits


def check_structure(content: bytes) -> bytes:
    """Return the bytes to decode `content` from, without metadata that could refuse the pixels.

    Reads headers, lengths, end marks and the checksums of chunks; the data itself is for `check_data`.

    Raises:
        ValueError: the file is not whole.
    """
    if content.startswith(PNG):
        return _png(content)
    if content.startswith(b"\xff\xd8\xff"):
        check_jpeg(content)
    elif content.startswith((b"GIF87a", b"GIF89a")):
        _gif(content)
    elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        _webp(content)
    elif content[4:8] == b"ftyp":
        _boxes(content)
    elif content.startswith(b"BM"):
        _bmp(content)
    elif content.startswith(b"\xff\x4f\xff\x51") or content[4:8] == b"jP  ":
        _jpeg2000(content)
    elif content.startswith((b"II*\0", b"MM\0*")):
        _tiff_directory(content)
    elif content.startswith(b"\0\0\1\0"):
        return _ico(content)
    return content


def check_data(content: bytes, tags: Mapping[int, Any]) -> None:
    """Check the compressed data of a PNG or a TIFF; its size must be known to be bounded.

    Args:
        content: the file, as `check_structure` returned it.
        tags: of the first image of a TIFF; empty for other formats.

    Raises:
        ValueError: data is missing or damaged.
    """
    if tags:
        _tiff(content, tags)
    elif content.startswith(PNG):
        data = [content[start:end] for kind, start, end in _png_chunks(content) if kind == b"IDAT"]
        _inflate(data, _png_size(content), "IDAT")


def _png(content: bytes) -> bytes:
    kept, kinds = [PNG], []
    for kind, start, end in _png_chunks(content):
        damaged = zlib.crc32(content[start - 4 : end]) != int.from_bytes(content[end : end + 4])
        if kind in PNG_CHUNKS and not (damaged and kind == b"eXIf"):
            if damaged:
                raise ValueError(f"the checksum of chunk {kind.decode()} at byte {start - 8} is wrong")
            kept.append(content[start - 8 : end + 4])
            kinds.append(kind)
    if kinds[:1] != [b"IHDR"] or len(kept[1]) != 25:
        raise ValueError("expected a PNG that begins with a chunk IHDR of 13 bytes")
    if b"IDAT" not in kinds:
        raise ValueError("expected a PNG with a chunk IDAT")
    return b"".join(kept)


def _png_chunks(content: bytes) -> Iterable[tuple[bytes, int, int]]:
    """Yield kind, start and end of the data of each chunk, up to IEND."""
    at, kind = len(PNG), b""
    while kind != b"IEND":
        if at + 12 > len(content):
            raise ValueError(f"the file ends at byte {len(content)}, before chunk IEND")
        length, kind = struct.unpack_from(">I4s", content, at)
        if not kind.isalpha():
            raise ValueError(f"expected a chunk at byte {at}, got {kind!r}")
        if at + 12 + length > len(content):
            raise ValueError(f"chunk {kind.decode()} at byte {at} goes on behind the end of the file")
        yield kind, at + 8, at + 8 + length
        at += 12 + length


def _png_size(content: bytes) -> int:
    """Return the number of bytes that the pixels of a PNG have before compression."""
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", content, 16)
    bits = depth * PNG_CHANNELS.get(colour, 1)
    size = 0
    for left, top, right, down in ADAM7 if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        size += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    return size


def _inflate(parts: Iterable[bytes], expected: int | None, what: str) -> None:
    """Inflate a zlib stream, and check that it has `expected` bytes or, if None, that it ends as it should."""
    stream, size = zlib.decompressobj(), 0
    try:
        # Slices, because zlib copies what it has not consumed at every call.
        for slice_ in (part[at : at + (1 << 16)] for part in parts for at in range(0, len(part), 1 << 16)):
            rest = slice_
            while rest and not stream.eof:
                size += len(stream.decompress(rest, 1 << 18))
                if expected is not None and size >= expected:
                    return
                rest = stream.unconsumed_tail
    except zlib.error as error:
        raise ValueError(f"{what} is damaged: {error}") from error
    if expected is not None:
        raise ValueError(f"{what} ends after {size} bytes of pixels, expected {expected}")
    if not stream.eof:
        raise ValueError(f"{what} ends after {size} bytes of pixels, before its end")


def _gif(content: bytes) -> None:
    try:
        at = 13 + _colour_table(content[10])
        while content[at] != 0x3B:
            if content[at] == 0x2C:
                at += 10 + _colour_table(content[at + 9]) + 1
            elif content[at] == 0x21:
                at += 2
            else:
                raise ValueError(f"expected a block at byte {at}, got {content[at]:#04x}")
            while length := content[at]:
                at += 1 + length
            at += 1
    except IndexError:
        raise ValueError(f"the file ends at byte {len(content)}, before its trailer") from None


def _colour_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp(content: bytes) -> None:
    end = 8 + int.from_bytes(content[4:8], "little")
    if end > len(content):
        raise ValueError(f"expected {end} bytes, got {len(content)}")
    at = 12
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", content, at)
        if at + 8 + length > end:
            raise ValueError(f"chunk {kind!r} at byte {at} goes on behind the end of the file")
        if kind == b"VP8L":
            check_no_lost_block(content[at + 8 : at + 8 + length], at + 8)
        at += 8 + length + length % 2


def webp_size(content: bytes) -> tuple[int, int] | None:
    """Return the width and height of a WebP, which `check_structure` has seen; None of another file."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return None
    if content[12:16] == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if content[12:16] == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", content.ljust(30, b"\0"), 26)
    return width & 0x3FFF, height & 0x3FFF


def _boxes(content: bytes) -> None:
    """Check the boxes of an ISO base media file, such as AVIF."""
    at = 0
    while at < len(content):
        length, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        header = 8
        if length == 1:
            length, header = int.from_bytes(content[at + 8 : at + 16]), 16
        elif length == 0:
            length = len(content) - at
        if length < header or at + length > len(content):
            raise ValueError(
                f"box {kind!r} at byte {at} has {length} bytes, the file {len(content) - at} from there on"
            )
        at += length


def _bmp(content: bytes) -> None:
    size = int.from_bytes(content[2:6], "little")
    if size > len(content):
        raise ValueError(f"expected {size} bytes, got {len(content)}")


def _jpeg2000(content: bytes) -> None:
    start = content.find(b"\xff\x4f\xff\x51")
    if start < 0 or content.find(b"\xff\xd9", start) < 0 or b"\xff\xd9" not in content.rstrip(b"\0")[-64:]:
        raise ValueError("the file ends before its end mark (EOC)")


def _ico(content: bytes) -> bytes:
    """Return the largest icon if it is a PNG, else the whole file."""
    (count,) = struct.unpack_from("<H", content, 4)
    if len(content) < 6 + 16 * count or not count:
        raise ValueError(f"the file ends at byte {len(content)}, within its list of {count} icons")
    icons = [struct.unpack_from("<BBBBHHII", content, 6 + 16 * number) for number in range(count)]
    for *_, size, offset in icons:
        if offset + size > len(content):
            raise ValueError(f"an icon of {size} bytes at byte {offset} goes on behind the end of the file")
    *_, size, offset = max(icons, key=lambda icon: ((icon[0] or 256) * (icon[1] or 256), icon[5]))
    icon = content[offset : offset + size]
    if icon.startswith(PNG):
        return _png(icon)
    width, height = struct.unpack_from("<ii", icon, 4)
    if max(width, abs(height)) > ICON_PIXELS:
        raise ValueError(f"expected an icon of at most {ICON_PIXELS} pixels a side, got {width} x {height}")
    return content


def _tiff_directory(content: bytes) -> None:
    """Check that the directory of the first image is in the file, and the tags that pixels need."""
    order = "<" if content[:1] == b"I" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        entries = [struct.unpack_from(f"{order}HHII", content, start + 2 + 12 * number) for number in range(count)]
    except struct.error:
        raise ValueError(f"the file ends at byte {len(content)}, before or in the list of its tags") from None
    if not entries:
        raise ValueError("expected tags, got none")
    for tag, kind, length, offset in entries:
        size = length * TIFF_TYPES.get(kind, 1)
        if tag in TIFF_NEEDED and size > 4 and offset + size > len(content):
            raise ValueError(f"the file ends at byte {len(content)}, before the values of tag {tag}")


def _tiff(content: bytes, tags: Mapping[int, Any]) -> None:
    starts, sizes = tags.get(273) or tags.get(324), tags.get(279) or tags.get(325)
    if not isinstance(starts, tuple) or not isinstance(sizes, tuple):
        return
    compression = tags.get(259, 1)
    for start, size in zip(starts, sizes, strict=False):
        if start + size > len(content):
            raise ValueError(f"a strip of {size} bytes at byte {start} goes on behind the end of the file")
        strip = content[start : start + size]
        if compression in TIFF_DEFLATE:
            _inflate([strip], None, f"the strip at byte {start}")
        elif compression in TIFF_WITHOUT_ZEROS:
            check_no_lost_block(strip, start)
