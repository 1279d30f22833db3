import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from connector.corpora.images import ImageRejectedError, decode
from tests.support.image_files import encoded, png, png_chunk


def photograph(size: int = 128) -> Image.Image:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:size, 0:size]
    smooth = np.stack([columns * 2, rows * 2, rows + columns], -1)
    return Image.fromarray((smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8))


CHECKED: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 95}),
    "progressive jpeg": ("JPEG", {"quality": 95, "progressive": True}),
    "jpeg with own tables": ("JPEG", {"quality": 95, "optimize": True}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {"quality": 95}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "avif": ("AVIF", {"quality": 95}),
    "jpeg 2000": ("JPEG2000", {}),
    "tiff with deflate": ("TIFF", {"compression": "tiff_deflate"}),
    "tiff with lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff with packbits": ("TIFF", {"compression": "packbits"}),
    "icon": ("ICO", {"sizes": [(128, 128)]}),
}
every_checked = pytest.mark.parametrize("name", CHECKED)


def file(name: str, image: Image.Image | None = None) -> bytes:
    kind, options = CHECKED[name]
    return encoded(image or photograph(), kind, **options)


def detail(content: bytes) -> str:
    with pytest.raises(ImageRejectedError) as caught:
        decode(content)
    assert caught.value.reason == "image-broken"
    return str(caught.value)


@every_checked
def test_a_whole_file_is_decoded(name: str) -> None:
    assert decode(file(name)).size == (128, 128)


@every_checked
@pytest.mark.parametrize("colour", ["black", "white", "red"])
def test_a_blank_page_is_no_damage(name: str, colour: str) -> None:
    page = Image.new("RGB", (700, 700), colour)
    page.paste(photograph(), (300, 300))
    assert decode(file(name, page)).size[0] >= 128


# In the others, zeros may be a blank area.
CHECKED_FOR_ZEROS = [name for name in CHECKED if name not in ("webp", "avif", "jpeg 2000", "progressive jpeg")]


@pytest.mark.parametrize("name", [*CHECKED_FOR_ZEROS, "jpeg 2000", "progressive jpeg"])
def test_a_file_whose_second_half_is_zeros_is_refused(name: str) -> None:
    content = file(name)
    half = len(content) // 2
    detail(content[:half] + bytes(len(content) - half))


@pytest.mark.parametrize("name", CHECKED_FOR_ZEROS)
def test_a_file_with_a_lost_block_is_refused(name: str) -> None:
    content = file(name)
    start = len(content) // 2
    detail(content[:start] + bytes(1024) + content[start + 1024 :])


@every_checked
@pytest.mark.parametrize("missing", [1, 2, 3, 5, 13, 100])
def test_a_file_that_lacks_its_last_bytes_is_refused(name: str, missing: int) -> None:
    detail(file(name)[:-missing])


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_an_uncompressed_file_that_lacks_its_last_bytes_is_refused(kind: str) -> None:
    for missing in (1, 10, 1000):
        detail(encoded(photograph(), kind)[:-missing])


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_of_the_pixels_of_a_png_is_found(place: float, change: int) -> None:
    content = bytearray(file("png"))
    start = content.index(b"IDAT") + 4
    content[start + int(place * (len(content) - 16 - start))] ^= change
    detail(bytes(content))


def test_a_png_with_fewer_rows_than_it_promises_is_refused() -> None:
    whole = png(4, 4, 8, 0, bytes(16))
    parts = [png_chunk(b"IHDR", whole[16:29]), png_chunk(b"IDAT", zlib.compress(bytes(15))), png_chunk(b"IEND", b"")]
    assert "20" in detail(whole[:8] + b"".join(parts))


# First column and step, first row and step, of each pass of an interlaced PNG.
ADAM7 = [
    ((0, 8), (0, 8)),
    ((4, 8), (0, 8)),
    ((0, 4), (4, 8)),
    ((2, 4), (0, 4)),
    ((0, 2), (2, 4)),
    ((1, 2), (0, 2)),
    ((0, 1), (1, 2)),
]


def test_interlaced_pngs_of_all_small_sizes_are_whole() -> None:
    for width in range(1, 10):
        for height in range(1, 10):
            rows = b"".join(b"\0" * 1 + b"\xff" * width for _ in range(height))
            size = 0
            for (left, right), (top, down) in ADAM7:
                columns, lines = len(range(left, width, right)), len(range(top, height, down))
                size += lines * (1 + columns) if columns else 0
            header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
            for missing in (0, 1):
                data = zlib.compress(bytes(size - missing))
                parts = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")]
                content = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
                if missing:
                    detail(content)
                else:
                    assert decode(content).size == (width, height), rows


def test_a_jpeg_whose_restart_marks_are_out_of_order_is_refused() -> None:
    content = encoded(photograph(), "JPEG", quality=95, restart_marker_rows=1)
    assert decode(content).size == (128, 128)
    second = content.index(b"\xff\xd1")
    third = content.index(b"\xff\xd2")
    detail(content[:second] + content[third:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"optimize": True}), ("JPEG", {"progressive": True}), ("WEBP", {"quality": 80}), ("WEBP", {})],
)
def test_a_blank_page_whose_data_is_zeros_is_no_damage(kind: str, options: dict[str, Any]) -> None:
    content = encoded(Image.new("RGB", (4000, 4000), "red"), kind, **options)
    assert bytes(512) in content
    np.testing.assert_allclose(np.asarray(decode(content))[0, 0], (255, 0, 0), atol=4)


def test_bytes_behind_the_end_are_no_damage() -> None:
    for name in ("png", "jpeg", "gif", "webp"):
        assert decode(file(name) + b"trailer" * 9).size == (128, 128), name


# Metadata does not refuse pixels


def with_chunks(*chunks: bytes) -> bytes:
    return png(1, 1, 8, 2, bytes([10, 200, 30]), *chunks)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000))),
        png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(20_000_000))),
        png_chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
        png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(20_000_000))),
        png_chunk(b"iCCP", b"profile\0\0no zlib"),
        png_chunk(b"tEXt", b"Comment\0x")[:-1] + b"\0",  # a wrong checksum
        png_chunk(b"eXIf", b"no exif")[:-1] + b"\0",
        png_chunk(b"acTL", bytes(3)),
        png_chunk(b"pHYs", b"x"),
        png_chunk(b"gAMA", b""),
    ],
    ids=lambda chunk: f"{chunk[4:8].decode()}-{len(chunk)}",
)
def test_a_png_with_large_or_broken_metadata_is_decoded(chunk: bytes) -> None:
    assert decode(with_chunks(chunk)).getpixel((0, 0)) == (10, 200, 30)


def test_a_jpeg_with_a_broken_colour_profile_is_decoded() -> None:
    content = encoded(Image.new("RGB", (8, 8), (10, 200, 30)), "JPEG", icc_profile=b"no profile" * 10_000)
    np.testing.assert_allclose(np.asarray(decode(content))[0, 0], (10, 200, 30), atol=4)


def test_an_animated_png_shows_its_first_frame_whatever_the_others_are() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    content = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert decode(content).getpixel((0, 0)) == (255, 0, 0)
    start = content.index(b"fdAT") + 8
    damaged = content[:start] + b"\0\0\0" + content[start + 3 :]
    assert decode(damaged).getpixel((0, 0)) == (255, 0, 0)


def test_of_an_icon_the_largest_picture_is_seen() -> None:
    file_ = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(file_, "ICO", sizes=[(16, 16), (64, 64), (32, 32)])
    assert decode(file_.getvalue()).size == (64, 64)


def test_an_icon_that_is_larger_than_it_says_is_refused_before_it_is_decoded() -> None:
    bomb = png(1, 1, 8, 0, b"\0")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = bomb[:8] + png_chunk(b"IHDR", header) + bomb[33:]
    bitmap = struct.pack("<IiiHHIIiiII", 40, 60_000, 120_000, 1, 32, 0, 0, 0, 0, 0, 0) + bytes(100)
    for icon, reason in ((bomb, "image-too-large"), (bitmap, "image-broken")):
        content = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(icon), 22) + icon
        with pytest.raises(ImageRejectedError) as caught:
            decode(content)
        assert caught.value.reason == reason
