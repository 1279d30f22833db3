"""Pixels of files made by hand, against what their formats say they mean."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from connector.corpora import image_colours
from connector.corpora.image_colours import to_rgb
from connector.corpora.images import ImageRejectedError, decode
from tests.support.image_files import encoded, png, png_chunk, tiff

orders = pytest.mark.parametrize("order", ["<", ">"])


def seen(content: bytes) -> list[list[int]]:
    pixels: list[list[int]] = np.asarray(decode(content))[0].tolist()
    return pixels


def grey(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


def grey_tiff(bits: int, photometric: int, data: bytes, width: int, order: str = "<", **more: int) -> bytes:
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 277: 1}
    return tiff(tags | {int(name[1:]): value for name, value in more.items()}, data, order)


def colour_tiff(bits: int, photometric: int, data: bytes, channels: int, order: str = "<", **more: Any) -> bytes:
    tags: dict[int, int | Sequence[int]] = {
        256: 1,
        257: 1,
        258: [bits] * channels,
        259: 1,
        262: photometric,
        277: channels,
    }
    return tiff(tags | {int(name[1:]): value for name, value in more.items()}, data, order)


def packed(bits: int, *values: int) -> bytes:
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8)


def refused(content: bytes) -> bool:
    try:
        decode(content)
    except ImageRejectedError as error:
        return error.reason == "image-format-unsupported"
    return False


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("photometric", [0, 1])
def test_greys_of_a_tiff_of_up_to_8_bits(bits: int, photometric: int) -> None:
    top = 2**bits - 1
    values = grey(0, 255) if photometric else grey(255, 0)
    assert seen(grey_tiff(bits, photometric, packed(bits, 0, top), 2)) == values


def test_greys_of_12_bits_are_not_near_black() -> None:
    assert seen(grey_tiff(12, 1, packed(12, 0, 1024, 2048, 4095), 4)) == grey(0, 64, 128, 255)


# Either the right greys, or a named reject where the decoder has no such kind.
@orders
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(
    ("bits", "kind", "sample", "values", "greys"),
    [
        (16, "u2", 1, [0, 32768, 65535], [0, 128, 255]),
        (32, "u4", 1, [0, 2**31, 2**32 - 1], [0, 128, 255]),
        (8, "i1", 2, [0, 64, 127], [0, 129, 255]),
        (16, "i2", 2, [0, 16384, 32767], [0, 128, 255]),
        (16, "i2", 2, [-100, 0, 100], [0, 128, 255]),
        (32, "f4", 3, [0, 0.5, 1], [0, 128, 255]),
        (64, "f8", 3, [0, 0.5, 1], [0, 128, 255]),
        (16, "f2", 3, [0, 0.5, 1], [0, 128, 255]),
    ],
)
def test_deep_greys_of_a_tiff_are_right_or_refused(
    order: str, photometric: int, bits: int, kind: str, sample: int, values: list[float], greys: list[int]
) -> None:
    content = grey_tiff(bits, photometric, np.array(values, order + kind).tobytes(), 3, order, t339=sample)
    if not refused(content):
        assert seen(content) == grey(*(greys if photometric else [255 - value for value in greys]))
    assert not refused(grey_tiff(16, 1, bytes(6), 3, order))


@pytest.mark.parametrize("bits", [10, 12, 14, 24])
def test_odd_depths_of_a_tiff_are_right_or_refused(bits: int) -> None:
    for photometric in (0, 1):
        content = grey_tiff(bits, photometric, packed(bits, 0, 2**bits - 1), 2)
        assert refused(content) or seen(content) == (grey(0, 255) if photometric else grey(255, 0))


@orders
def test_colours_of_a_tiff(order: str) -> None:
    def words(*values: int) -> bytes:
        return np.array(values, f"{order}u2").tobytes()

    assert seen(colour_tiff(16, 2, words(0, 32768, 65535), 3, order)) == [[0, 128, 255]]
    assert seen(colour_tiff(8, 2, bytes([64, 0, 0, 128]), 4, order, t338=1)) == [[191, 127, 127]]  # premultiplied
    assert seen(colour_tiff(8, 2, bytes([128, 0, 0, 128]), 4, order, t338=2)) == [[191, 127, 127]]
    assert seen(colour_tiff(8, 2, bytes([128, 0, 0, 0]), 4, order, t338=0)) == [[128, 0, 0]]  # no alpha
    assert seen(colour_tiff(8, 1, bytes([100, 128]), 2, order, t338=2)) == grey(177)
    assert seen(colour_tiff(8, 5, bytes([0, 255, 255, 0]), 4, order)) == [[255, 0, 0]]
    assert seen(colour_tiff(16, 5, words(0, 65535, 65535, 0), 4, order)) == [[255, 0, 0]]
    np.testing.assert_allclose(
        seen(colour_tiff(8, 6, bytes([76, 85, 255]), 3, order, t530=[1, 1])), [[254, 0, 0]], atol=1
    )


@pytest.mark.parametrize(
    ("lab", "rgb"), [((255, 0, 0), (255, 255, 255)), ((0, 0, 0), (0, 0, 0)), ((136, 81, 70), (255, 0, 0))]
)
def test_cielab_of_a_tiff(lab: tuple[int, int, int], rgb: tuple[int, int, int]) -> None:
    np.testing.assert_allclose(seen(colour_tiff(8, 8, struct.pack("Bbb", *lab), 3)), [rgb], atol=6)


@pytest.mark.parametrize("full", [255, 65535])
def test_a_palette_of_a_tiff_of_8_or_16_bits(full: int) -> None:
    colours = [0] * 768
    colours[1] = colours[256 + 2] = full
    tags: dict[int, int | Sequence[int]] = {256: 3, 257: 1, 258: 8, 259: 1, 262: 3, 277: 1, 320: colours}
    assert seen(tiff(tags, bytes([1, 2, 0]))) == [[255, 0, 0], [0, 255, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "content",
    [
        grey_tiff(8, 32803, bytes(3), 3),  # a colour filter array
        grey_tiff(8, 1, bytes(3), 3, t254=1),  # the preview of a raw file
        tiff(
            {256: 1, 257: 1, 258: [16] * 3, 259: 1, 262: 2, 277: 3, 284: 2, 273: [8, 10, 12], 279: [2, 2, 2]}, bytes(6)
        ),
        tiff({256: 2, 257: 2, 258: [8] * 3, 259: 1, 262: 6, 277: 3, 530: [2, 2]}, bytes(6)),
        colour_tiff(32, 2, bytes(12), 3, t339=[3, 3, 3]),
        colour_tiff(8, 9, bytes(3), 3),
    ],
    ids=["cfa", "preview", "16-bit planes", "subsampled", "float colours", "icclab"],
)
def test_what_a_tiff_means_otherwise_is_refused(content: bytes) -> None:
    assert refused(content)


@pytest.mark.parametrize(
    ("depth", "values", "key", "greys"),
    [
        (1, [1, 0], 1, [255, 0]),
        (2, [0, 1, 2, 3], 1, [0, 255, 170, 255]),
        (4, [0, 5, 15], 5, [0, 255, 255]),
        (8, [0, 5, 254], 5, [0, 255, 254]),
        (16, [0, 1000, 1001], 1000, [0, 255, 4]),
    ],
)
def test_a_transparent_grey_of_a_png_is_white(depth: int, values: list[int], key: int, greys: list[int]) -> None:
    content = png(len(values), 1, depth, 0, packed(depth, *values), png_chunk(b"tRNS", struct.pack(">H", key)))
    assert seen(content) == grey(*greys)


def test_a_transparent_colour_of_16_bits_is_no_other_of_the_same_upper_bits() -> None:
    values = np.array([0x1234, 0x5678, 0x9ABC, 0x1235, 0x5678, 0x9ABC, 0, 0, 0], ">u2").tobytes()
    key = png_chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    assert seen(png(3, 1, 16, 2, values, key)) == [[255, 255, 255], [0x12, 0x56, 0x9A], [0, 0, 0]]


def test_a_palette_of_a_png_with_alpha_is_over_white() -> None:
    colours = png_chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    content = png(3, 1, 8, 3, bytes([0, 1, 2]), colours, png_chunk(b"tRNS", bytes([0, 128])))
    assert seen(content) == [[255, 255, 255], [127, 255, 127], [0, 0, 255]]


@pytest.mark.parametrize(
    "content",
    [
        b"P5 3 1 4095\n" + np.array([0, 2048, 4095], ">u2").tobytes(),
        b"P5 3 1 65535\n" + np.array([0, 32768, 65535], ">u2").tobytes(),
        b"P5 3 1 100\n" + bytes([0, 50, 100]),
        b"P2 3 1 1000\n0 500 1000\n",
        b"Pf\n3 1\n-1.0\n" + np.array([0, 0.5, 1], "<f4").tobytes(),
    ],
)
def test_greys_of_a_pgm_are_shares_of_its_largest(content: bytes) -> None:
    np.testing.assert_allclose(seen(content), grey(0, 128, 255), atol=1)


@pytest.mark.parametrize("transform", [0, 2])
def test_an_inverted_cmyk_or_ycck_jpeg_has_its_colours(transform: int) -> None:
    """The stored values are 255 - CMYK. As YCCK, the first three are the YCbCr of 255 - them."""
    content = bytearray(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    content[content.index(b"Adobe") + 11] = transform
    stored = np.array([255.0, 0, 0])
    if transform:
        y, cb, cr = stored - [0, 128, 128]
        stored = 255 - np.array([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]).clip(0, 255)
    np.testing.assert_allclose(seen(bytes(content))[0], stored, atol=3)


def test_a_fourth_channel_of_a_tga_without_alpha_is_none() -> None:
    content = bytearray(encoded(Image.new("RGBA", (2, 1), (10, 20, 30, 0)), "TGA"))
    assert seen(bytes(content)) == grey(255, 255)
    content[17] &= 0xF0
    assert seen(bytes(content)) == [[10, 20, 30]] * 2


@pytest.mark.parametrize("width", [256, 1 << 16])
def test_transparency_over_white_is_alpha_compositing_for_every_value_and_alpha(width: int) -> None:
    """In one strip, and in several."""
    value, alpha = (side.reshape(-1, width) for side in np.meshgrid(np.arange(256), np.arange(256)))
    image = Image.fromarray(np.dstack([value, 255 - value, value ^ 85, alpha]).astype(np.uint8))
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(expected))


@pytest.mark.parametrize("factor", [1, 3])
def test_strips_make_the_same_pixels_as_the_whole(
    factor: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(rng.integers(0, 256, (50, 20, 4), np.uint8))
    whole = np.asarray(to_rgb(image, factor))
    monkeypatch.setattr(image_colours, "PIXELS_AT_ONCE", 100)
    monkeypatch.setattr(image_colours, "ROWS_AT_ONCE", 7)
    np.testing.assert_array_equal(np.asarray(to_rgb(image, factor)), whole)
