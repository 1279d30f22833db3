import errno
import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from connector.corpora import images
from connector.corpora.byte_budget import ByteBudget
from connector.corpora.image_colours import to_rgb
from connector.corpora.images import MAX_ASPECT, ImageRejectedError, decode, read_image, upright_rgb
from connector.errors import OutOfResourcesError
from connector.rejects import Reason
from connector.settings import MAX_PIXELS
from tests.support.corpora import PYTHON
from tests.support.errors import raises
from tests.support.fakes import FakeImageEncoder
from tests.support.image_files import encoded, exif, png_chunk

IMAGE_REASONS = [reason for reason in Reason if reason.startswith("image-")]


def pixel(content: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    image = decode(content)
    assert image.mode == "RGB"
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def rejected(content: bytes) -> str:
    with pytest.raises(ImageRejectedError) as caught:
        decode(content)
    assert str(caught.value)
    return caught.value.reason


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises many pixels and holds next to none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\x00" * 1000))
        + png_chunk(b"IEND", b"")
    )


# What is decoded, as a person sees it


def test_every_format_is_one_that_pillow_knows() -> None:
    Image.init()
    assert set(images.FORMATS) <= Image.OPEN.keys()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "ICO"])
def test_lossless_formats_keep_their_colours(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.new("RGB", (16, 16), (10, 200, 30))
    assert pixel(encoded(image, kind, **options)) == (10, 200, 30)
    assert decode(encoded(image, kind, **options)).size == (16, 16)


def test_a_jpeg_keeps_its_colours_nearly() -> None:
    np.testing.assert_allclose(pixel(encoded(Image.new("RGB", (16, 16), (10, 200, 30)), "JPEG")), (10, 200, 30), atol=4)


def test_rgb_is_left_alone() -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(encoded(Image.fromarray(values)))), values)


def test_a_palette_becomes_its_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert [pixel(encoded(image), x) for x in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_a_transparent_entry_of_a_palette_becomes_white(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    content = encoded(image, transparency=transparency)
    assert [pixel(content, x) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (0, 128), (127, 127, 127)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("I;16", 0, (0, 0, 0)),
        ("I;16", 32768, (128, 128, 128)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_modes_of_png(mode: str, colour: Any, expected: tuple[int, ...]) -> None:
    np.testing.assert_allclose(pixel(encoded(Image.new(mode, (3, 2), colour))), expected, atol=1)


@pytest.mark.parametrize(("mode", "colour"), [("L", 9), ("RGB", (9, 8, 7))])
def test_a_transparent_colour_becomes_white(mode: str, colour: Any) -> None:
    assert pixel(encoded(Image.new(mode, (2, 2), colour), transparency=colour)) == (255, 255, 255)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_16_bit_tiff_in_either_byte_order(byteorder: str) -> None:
    values = np.array([[0, 16384, 32768, 65535]], f"{byteorder}u2")
    found = np.asarray(decode(encoded(Image.fromarray(values), "TIFF")))[0, :, 0]
    assert found.tolist() == [0, 64, 128, 255]


def test_whole_numbers_of_32_bits_are_scaled() -> None:
    values = np.array([[0, 32768, 65535]], np.int32)
    assert np.asarray(decode(encoded(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    values = np.array([[-1000, 0, 1000]], np.int32)
    assert np.asarray(decode(encoded(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.25, 0.25, 0.25], [64, 64, 64]),
        ([-3.0, 1.0, 5.0], [0, 128, 255]),
        ([300.0, 300.0, 300.0], [0, 0, 0]),
    ],
)
def test_floats_are_shares_or_are_stretched(values: list[float], expected: list[int]) -> None:
    content = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert np.asarray(decode(content))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0.5, value]], np.float32))
    assert rejected(encoded(image, "TIFF")) == "image-broken"


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_seen_as_printed(kind: str) -> None:
    np.testing.assert_allclose(pixel(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind)), (255, 0, 0), atol=4)
    np.testing.assert_allclose(pixel(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), kind)), (0, 0, 0), atol=4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_seen(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    assert pixel(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)) == (255, 0, 0)


# The corner that is red when an image of 3 x 2 with a red top left pixel is shown as its EXIF orientation says.
@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [
        (1, (3, 2), (0, 0)),
        (2, (3, 2), (2, 0)),
        (3, (3, 2), (2, 1)),
        (4, (3, 2), (0, 1)),
        (5, (2, 3), (0, 0)),
        (6, (2, 3), (1, 0)),
        (7, (2, 3), (1, 2)),
        (8, (2, 3), (0, 2)),
    ],
)
def test_photographs_are_turned_upright(orientation: int, size: tuple[int, int], corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (3, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    tags = Image.Exif()
    tags[0x0112] = orientation
    content = encoded(image, "PNG", exif=tags)
    assert decode(content).size == size
    assert pixel(content, *corner) == (255, 0, 0)
    everything = np.asarray(decode(content)).reshape(-1, 3).tolist()
    assert everything.count([255, 0, 0]) == 1


@pytest.mark.parametrize(
    "metadata",
    [
        b"Exif\x00\x00garbage",
        b"Exif\x00\x00",
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x09",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x63\x00\x00\x00\x00\x00\x00\x00",
    ],
)
def test_a_photograph_with_broken_exif_is_still_a_photograph(metadata: bytes) -> None:
    content = encoded(Image.new("RGB", (8, 8), (10, 200, 30)), "JPEG", exif=metadata)
    np.testing.assert_allclose(pixel(content), (10, 200, 30), atol=4)


ORIENTATION = 0x0112, 3, 1, b"\6\0\0\0"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "odd",
    [
        (0x011A, 2, 3, b"72\0\0"),  # a resolution that is a text
        (0x011A, 10, 1, b"\x08\0\0\0"),  # a signed one
        (0x011A, 5, 1, b"\xff\xff\xff\xff"),  # one behind the end
        (0x0100, 9, 1, b"\xff\xff\xff\xff"),  # a negative width
        (0x010F, 99, 1, b"abcd"),  # a type that does not exist
        (0x8769, 4, 1, b"\x08\0\0\0"),  # a directory that is this one
        (0x0131, 2, 2**31, b"\x08\0\0\0"),  # a text of 2 GB
    ],
)
def test_a_photograph_is_turned_upright_whatever_stands_beside_its_orientation(
    kind: str, odd: tuple[int, int, int, bytes]
) -> None:
    entries = sorted([ORIENTATION, odd])
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    image = Image.new("RGB", (32, 16), "white")
    image.paste("red", (0, 0, 16, 16))
    content = encoded(image, kind, exif=exif(*entries), **options)
    upright = decode(content)
    assert upright.size == (16, 32)
    pixels = np.asarray(upright)
    np.testing.assert_allclose(pixels[4, 8], (255, 0, 0), atol=6)
    np.testing.assert_allclose(pixels[28, 8], (255, 255, 255), atol=6)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_upright_once(compression: str | None) -> None:
    image = Image.new("RGB", (3, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    content = encoded(image, "TIFF", tiffinfo={0x0112: 6}, compression=compression)
    assert decode(content).size == (2, 3)
    assert pixel(content, 1, 0) == (255, 0, 0)


def test_an_image_in_memory_is_turned_upright_as_a_file_is() -> None:
    image = Image.new("RGB", (3, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    opened = Image.open(io.BytesIO(encoded(image, exif=exif(ORIENTATION, (0x011A, 2, 3, b"72\0\0")))))
    assert upright_rgb(opened).getpixel((1, 0)) == (255, 0, 0)


# Large images are scaled down, and memory is bounded


def gradient(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("WEBP", {"quality": 95}),
        ("JPEG2000", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("BMP", {}),
    ],
)
def test_a_large_image_is_scaled_down_and_looks_the_same(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = gradient(600, 300)
    monkeypatch.setattr(images, "KEPT_PIXELS", 20_001)
    small = decode(encoded(image, kind, **options))
    assert 5_000 < small.width * small.height <= 20_001
    assert small.width == pytest.approx(2 * small.height, abs=2)
    seen, expected = (np.asarray(each.resize((20, 10), Image.Resampling.BOX), float) for each in (small, image))
    np.testing.assert_allclose(seen, expected, atol=4)


def test_scaling_down_takes_the_mean_of_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (130, 260, 3), dtype=np.uint8)
    monkeypatch.setattr(images, "KEPT_PIXELS", 130 * 65)
    means = values.reshape(65, 2, 130, 2, 3).mean((1, 3))
    np.testing.assert_allclose(np.asarray(decode(encoded(Image.fromarray(values)))), means, atol=0.51)


def test_an_image_that_need_not_be_scaled_down_keeps_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "KEPT_PIXELS", 100)
    assert decode(encoded(Image.new("RGB", (10, 10)))).size == (10, 10)
    assert decode(encoded(Image.new("RGB", (10, 11)))).size == (5, 6)


@pytest.mark.slow
def test_more_pixels_are_decoded_on_request() -> None:
    content = encoded(Image.new("1", (10_500, 16_000), 1), "PNG")
    assert rejected(content) == "image-too-large"
    page = decode(content, max_pixels=200_000_000)
    assert page.size == (2625, 4000)
    assert page.getpixel((2000, 3000)) == (255, 255, 255)


def test_threads_decode_within_a_budget_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads, and memory for two images at a time."""
    content = encoded(Image.new("RGB", (100, 100)))
    used: list[int] = []
    budget = ByteBudget(100_000)
    monkeypatch.setattr(images, "PIXELS", budget)
    loading, lock = [0], threading.Lock()

    def watched(image: Image.Image, factor: int) -> Image.Image:
        with lock:
            loading[0] += 1
            used.append(loading[0])
        time.sleep(0.01)
        with lock:
            loading[0] -= 1
        return to_rgb(image, factor)

    monkeypatch.setattr(images, "to_rgb", watched)
    with ThreadPoolExecutor(8) as threads:
        assert [image.size for image in threads.map(decode, [content] * 16)] == [(100, 100)] * 16
    assert max(used) == 2


@pytest.mark.slow
def test_the_peak_of_memory_does_not_grow_with_the_threads() -> None:
    """In a process of its own. Eight images of 100 MB at a time would take 800 MB."""
    script = """
import io, resource
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from connector.corpora import images
from connector.corpora.byte_budget import ByteBudget
file = io.BytesIO()
Image.new("RGBA", (5000, 5000), (255, 0, 0, 128)).save(file, "PNG", compress_level=1)
images.PIXELS = ByteBudget(130_000_000)
images.decode(file.getvalue())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(8) as threads:
    sizes = set(threads.map(lambda content: images.decode(content).size, [file.getvalue()] * 8))
assert sizes == {(2500, 2500)}, sizes
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 250


# A lack of memory is no damage


@pytest.mark.parametrize(
    "lack",
    [MemoryError(), OSError("out of memory error when reading image file"), RuntimeError("can't start new thread")],
)
def test_a_lack_of_memory_ends_the_run_instead_of_refusing_a_sound_image(
    lack: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Image.Image:
        raise lack

    monkeypatch.setattr(images, "to_rgb", fail)
    with raises(OutOfResourcesError, type(lack).__name__):
        decode(encoded(Image.new("RGB", (10, 10))))


def test_an_image_that_failed_beside_others_is_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail_once(image: Image.Image, factor: int) -> Image.Image:
        calls.append(image)
        if len(calls) == 1:
            raise OSError("broken data stream when reading image file")
        return to_rgb(image, factor)

    monkeypatch.setattr(images, "to_rgb", fail_once)
    assert decode(encoded(Image.new("RGB", (10, 10)))).size == (10, 10)
    assert len(calls) == 2


@pytest.mark.slow
def test_under_a_memory_limit_a_sound_image_is_never_called_broken() -> None:
    """In a process of its own, with room for the small images only."""
    script = """
import io, resource, sys
from PIL import Image
from connector.corpora.images import decode, ImageRejectedError
from connector.errors import OutOfResourcesError
def encoded(kind, **options):
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000), "red").save(file, kind, **options)
    return file.getvalue()
contents = [encoded("PNG"), encoded("JPEG", progressive=True), encoded("WEBP"), encoded("TIFF", compression="tiff_lzw")]
decode(contents[0])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for more in (1, 20, 60, 100):
    resource.setrlimit(resource.RLIMIT_AS, (used + (more << 20), resource.RLIM_INFINITY))
    for content in contents:
        try:
            print(decode(content).size)
        except OutOfResourcesError as error:
            print(error.code)
        except ImageRejectedError as error:
            print("REJECTED", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "REJECTED" not in done.stdout
    assert "out-of-resources" in done.stdout


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_lack_of_open_files_is_no_unreadable_image(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"x")

    def refuse(self: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with raises(OutOfResourcesError, tmp_path / "a.png"):
        read_image(tmp_path / "a.png")


# What is refused


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"\xff\n\0\0\0\0",
        b"\0\0\0\x0cJXL \r\n\x87\n",
        b"8BPS\0\1",
        b"v/1\x01",
        b"qoif",
    ],
)
def test_a_picture_of_a_format_that_is_not_read_is_called_so(content: bytes) -> None:
    assert rejected(content) in ("image-format-unsupported", "image-broken")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    for length in (len(content) // 2, len(content) * 9 // 10):
        assert rejected(content[:length]) in ("image-broken", "image-unidentified")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"no image at all",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    ],
)
def test_what_is_no_image_is_refused(content: bytes) -> None:
    assert rejected(content) == "image-unidentified"


@pytest.mark.parametrize(
    ("width", "height"),
    [(10_001, 10_000), (13_500, 13_500), (20_000, 20_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)],
)
def test_a_decompression_bomb_is_refused_before_it_goes_off(width: int, height: int) -> None:
    assert rejected(png_header(width, height)) == "image-too-large"


@pytest.mark.parametrize("upright", [False, True])
def test_a_thread_of_pixels_is_refused(upright: bool) -> None:
    """Encoders scale the shorter side to their input, and the longer one with it."""
    for width, height in ((MAX_ASPECT, 1), (2 * MAX_ASPECT, 2)):
        size = (height, width) if upright else (width, height)
        longer = (height, width + 1) if upright else (width + 1, height)
        assert decode(encoded(Image.new("RGB", size))).size == size
        assert rejected(encoded(Image.new("RGB", longer))) == "image-too-elongated"
    assert MAX_ASPECT == 256


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}])
def test_a_webp_with_too_many_pixels_is_refused_before_memory_is_taken(options: dict[str, Any]) -> None:
    content = encoded(Image.new("RGB", (300, 200)), "WEBP", **options)
    with pytest.raises(ImageRejectedError) as caught:
        decode(content, max_pixels=59_999)
    assert caught.value.reason == "image-too-large"
    assert "300 x 200" in str(caught.value)
    assert decode(content, max_pixels=60_000).size == (300, 200)


def test_a_thread_of_pixels_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageRejectedError) as caught:
        decode(png_header(50_000, 100))
    assert caught.value.reason == "image-too-elongated"
    assert "50000 x 100" in str(caught.value)


def test_an_image_within_bounds_is_decoded_though_pillow_would_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    assert decode(encoded(Image.new("RGB", (10, 10)))).size == (10, 10)
    assert Image.MAX_IMAGE_PIXELS == 60
    with pytest.raises(ImageRejectedError) as caught:
        decode(encoded(Image.new("RGB", (10, 10))), max_pixels=99)
    assert caught.value.reason == "image-too-large"
    assert "99" in str(caught.value)
    assert MAX_PIXELS == 100_000_000


PROBED = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA"]


@given(st.binary(max_size=200), st.sampled_from(PROBED), st.integers(0, 300))
@example(b"\xff9", "PPM", 3)  # Pillow then reads a number of Python's
@example(b"\xff" * 200, "TGA", 2)
def test_whatever_the_bytes_are_an_image_or_a_reason_comes_back(noise: bytes, kind: str, position: int) -> None:
    content = bytearray(encoded(Image.new("RGB", (9, 9), (1, 2, 3)), kind))
    content[position : position + len(noise)] = noise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            outcome, detail = decode(bytes(content)).mode, ""
        except ImageRejectedError as error:
            outcome, detail = error.reason, str(error)
    assert outcome == "RGB" or outcome in IMAGE_REASONS
    assert not PYTHON.search(detail), detail


def test_no_warning_is_given() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([255, 0, 0, 0, 0, 255])
    contents = [
        encoded(image, transparency=b"\xff\x00"),
        encoded(image, "GIF", transparency=1),
        encoded(Image.new("I;16", (4, 4), 3)),
        png_header(9_600, 9_600),  # above the size at which Pillow warns, below ours
        encoded(Image.new("RGB", (4, 4)), "TIFF")[:-3],
        encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"),
    ]
    with warnings.catch_warnings(record=True) as given_:
        warnings.simplefilter("always")
        for content in contents:
            try:
                decode(content)
            except ImageRejectedError as error:
                assert error.reason == "image-broken"  # noqa: PT017  the warnings are what is tested
    assert [str(warning.message) for warning in given_] == []


def test_images_are_decoded_by_several_threads_alike() -> None:
    contents = [encoded(Image.new("RGB", (32, 32), (i, 2 * i, 3 * i))) for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(pixel, contents)) == [(i, 2 * i, 3 * i) for i in range(64)]


def test_what_is_decoded_can_be_encoded() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        assert FakeImageEncoder().encode("image", [decode(encoded(Image.new(mode, (4, 4))))]).shape == (1, 12)


# Files


def refused(path: Path) -> str:
    with pytest.raises(ImageRejectedError) as caught:
        read_image(path)
    return caught.value.reason


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"anything")
    assert read_image(tmp_path / "a") == b"anything"


def test_what_is_no_readable_file_is_refused_by_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "large.png").write_bytes(b"12345")
    monkeypatch.setattr(images, "MAX_BYTES", 4)
    assert refused(tmp_path / "empty.png") == "image-empty"
    assert refused(tmp_path / "folder.png") == "image-not-a-file"
    assert refused(tmp_path / "missing.png") == "image-missing"
    assert refused(tmp_path / "dangling.png") == "image-missing"
    assert refused(tmp_path / "loop.png") in ("image-missing", "image-unreadable")
    assert refused(tmp_path / "large.png") == "image-too-large"
    assert refused(tmp_path / ("x" * 300)) in ("image-missing", "image-unreadable")
    assert refused(tmp_path / "a\x00b") in ("image-missing", "image-unreadable")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("https://x.org/a.jpg", ["https://x.org/a.jpg", "img2dataset"]),
        ("HTTP://me:secret@x.org/a.jpg?sig=secret", ["@x.org/a.jpg", "img2dataset"]),
        (f"https://x.org/a.jpg?sig={'secret' * 100}", ["https://x.org/a.jpg", "img2dataset"]),
        ("s3://shop/sub/a.jpg", ["s3://shop/sub/a.jpg"]),
        ("file:///srv/a.jpg", ["write /srv/a.jpg"]),
        ("sub\\2.png", ["sub\\2.png", "backslash"]),
        ("C:\\shop\\2.png", ["C:\\shop\\2.png", "backslash"]),
    ],
)
def test_what_is_no_path_of_this_system_is_refused_with_what_to_do(
    name: str, values: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ImageRejectedError) as caught:
        read_image(tmp_path / name)
    assert caught.value.reason == "image-missing"
    assert [value for value in values if value not in str(caught.value)] == []
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert refused(tmp_path / "a.png") == "image-unreadable"


def test_a_device_is_no_file() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("there is no /dev/zero")
    assert refused(Path("/dev/zero")) == "image-not-a-file"
