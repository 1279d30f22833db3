"""Images decoded to upright 8-bit RGB, with bounds on bytes, pixels, aspect ratio and the memory in use at a time."""

import io
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from alignment.object_storage import RemotePath, as_remote
from connector.corpora.byte_budget import ByteBudget
from connector.corpora.image_colours import PixelsNotFiniteError, check_colours, tiff_tags, to_rgb, transposed
from connector.corpora.image_damage import PNG, check_data, check_structure, webp_size
from connector.corpora.jpeg_damage import check_decoded
from connector.errors import OutOfResourcesError
from connector.rejects import Reason
from connector.resources import raise_lack
from connector.safe_text import redacted
from connector.settings import MAX_PIXELS

MAX_BYTES = 256 << 20  # larger files are no photographs
# Encoders scale the shorter side to their input size: a very long image would fill the memory.
MAX_ASPECT = 256
FIRST_REQUEST = 4 << 20  # bytes; an image in object storage is read in one request if it has fewer
# Larger images are scaled down by a whole number as they are decoded. No encoder's input is near as large.
KEPT_PIXELS = 1 << 24
# Of files, and of pixels that are being decoded, all threads together.
FILES = ByteBudget(MAX_BYTES)
PIXELS = ByteBudget(512 << 20)
# Memory for a pixel while it is decoded: Pillow's own 4 bytes, and the buffers of the decoder.
BYTES_A_PIXEL = {"AVIF": 16, "JPEG2000": 20, "TIFF": 12, "WEBP": 20}
FEWEST_BYTES_A_PIXEL, PROGRESSIVE_BYTES_A_PIXEL, EXACT_KEY_BYTES_A_PIXEL = 5, 6, 24

# Pillow opens more formats, among them PostScript, which it hands to an interpreter that runs it.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

# The first bytes of formats that are not read, and of those whose pixels may be of a kind that is not.
RECOGNISED = {
    b"8BPS": "PSD",
    b"v/1\x01": "OpenEXR",
    b"\xff\n": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\xff\xd8\xff": "JPEG",
    PNG: "PNG",
}
JPEGS = ("JPEG", "MPO")
ORIENTATION = 0x0112

# A URL as a part of a path, in which one slash is left after the scheme. A drive of Windows is a single letter.
_URL = re.compile(r"(?:^|/)([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


class ImageRejectedError(Exception):
    """An image that cannot be used, with the reason for its reject."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


def read_image(image: Path | bytes) -> bytes:
    """Return the bytes of an image file. Bytes, as they come out of an archive, are returned as they are.

    Raises:
        ImageRejectedError: the file is missing, not regular, unreadable, empty or larger than `MAX_BYTES`.
    """
    content = image if isinstance(image, bytes) else _read_file(image)
    if not content:
        raise ImageRejectedError(Reason.IMAGE_EMPTY, f"{'the image' if isinstance(image, bytes) else image} is empty")
    return content


@contextmanager
def reading(image: Path | bytes) -> Iterator[bytes]:
    """Read an image file as `read_image` does, and count its bytes in `FILES` during the block."""
    if remote := as_remote(image):
        with _reading_object(remote) as content:
            yield content
        return
    try:
        size = 0 if isinstance(image, bytes) else image.stat().st_size
    except (OSError, ValueError):
        size = 0  # `read_image` says why
    with FILES.reserve(min(size, MAX_BYTES)):
        yield read_image(image)


@contextmanager
def _reading_object(image: RemotePath) -> Iterator[bytes]:
    """Read an image in one request, unless it is larger than most."""
    with FILES.reserve(FIRST_REQUEST):
        content = _read_object(image, FIRST_REQUEST)
        if len(content) < FIRST_REQUEST:
            yield content
            return
    with FILES.reserve(MAX_BYTES):
        yield _read_object(image, MAX_BYTES + 1)


def _read_object(image: RemotePath, most: int) -> bytes:
    """Return the first `most` bytes of an image in object storage, or all of them if they are fewer."""
    try:
        content = image.beginning(most)
    except FileNotFoundError as error:
        why = (
            _why_missing(image)
            if _URL.search(image.key.as_posix())
            else f"expected an image at {image}: {error.strerror}"
        )
        raise ImageRejectedError(Reason.IMAGE_MISSING, why) from error
    except OSError as error:
        raise ImageRejectedError(Reason.IMAGE_UNREADABLE, f"{image}: {error.strerror or error}") from error
    if not content:
        raise ImageRejectedError(Reason.IMAGE_EMPTY, f"{image} is empty")
    if len(content) > MAX_BYTES:
        raise ImageRejectedError(Reason.IMAGE_TOO_LARGE, f"expected at most {MAX_BYTES} bytes")
    return content


def _read_file(path: Path) -> bytes:
    if remote := as_remote(path):
        return _read_object(remote, MAX_BYTES + 1)
    try:
        if not path.is_file():
            if not path.exists():
                raise ImageRejectedError(Reason.IMAGE_MISSING, _why_missing(path))
            raise ImageRejectedError(Reason.IMAGE_NOT_A_FILE, f"expected an image file at {path}")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ImageRejectedError(Reason.IMAGE_TOO_LARGE, f"{size} bytes, expected at most {MAX_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise_lack(error, f"reading {path}")
        if _URL.search(str(path)):  # one that is longer than any path
            raise ImageRejectedError(Reason.IMAGE_MISSING, _why_missing(path)) from error
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ImageRejectedError(Reason.IMAGE_UNREADABLE, f"{path}: {why}") from error


def _why_missing(path: Path | RemotePath) -> str:
    """Say that there is no file at `path`, and what to do where it is no path of this system."""
    if match := _URL.search(path.key.as_posix() if isinstance(path, RemotePath) else str(path)):
        scheme, rest = match[1].lower(), match[2]
        if scheme == "file":
            return f"expected a path, got the URL file:///{rest}: write /{rest}"
        return (
            f"expected a path, got the URL {redacted(f'{scheme}://{rest}')}, which modalign does not download: "
            "download the pictures first, such as with img2dataset, whose folders `modalign encode` reads"
        )
    if "\\" in str(path) and os.sep == "/":
        return f"expected an image file at {path}; here a backslash divides no path: write / in the place of each"
    return f"expected an image file at {path}"


def decode(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to 8-bit RGB: the first frame, turned upright, transparency over white, deep greys scaled.

    An image of more than `KEPT_PIXELS` is scaled down by the smallest whole number that brings it below.

    Raises:
        ImageRejectedError: the content is no image, damaged, too large, too narrow, or of a kind that is not read.
        OutOfResourcesError: there is not enough memory to decode it.
    """
    try:
        return _decode(content, max_pixels)
    except (ImageRejectedError, OutOfResourcesError):
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(content) from error
    except NotImplementedError as error:
        raise ImageRejectedError(Reason.IMAGE_FORMAT_UNSUPPORTED, str(error)) from error
    except Exception as error:  # Pillow's decoders raise any exception on a broken file
        raise_lack(error, "decoding an image")
        raise ImageRejectedError(Reason.IMAGE_BROKEN, _why_broken(error)) from error


def _why_broken(error: Exception) -> str:
    """Say why a picture cannot be decoded: what Pillow says to people, and not how its code stumbled."""
    says = str(error) if isinstance(error, (OSError, SyntaxError, PixelsNotFiniteError)) else ""
    return f"the picture cannot be decoded{f': {says}' if says else ''}"


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image in memory as `decode` does with a file."""
    with _UNBOUND:
        image.load()
        return transposed(to_rgb(image), _orientation(image))


def _decode(content: bytes, max_pixels: int) -> Image.Image:
    try:
        content = check_structure(content)
    except (IndexError, struct.error) as error:
        raise ImageRejectedError(Reason.IMAGE_BROKEN, "the file ends within its header") from error
    except ValueError as error:
        raise ImageRejectedError(Reason.IMAGE_BROKEN, str(error)) from error
    with _UNBOUND:
        try:
            return _attempt(content, max_pixels, alone=False)
        except (ImageRejectedError, UnidentifiedImageError, NotImplementedError):
            raise
        except Exception:  # noqa: BLE001, S110  a decoder that lacks memory calls the file broken
            pass
        return _attempt(content, max_pixels, alone=True)


def _attempt(content: bytes, max_pixels: int, *, alone: bool) -> Image.Image:
    """Decode once. Alone, no other thread is decoding, and there must be memory for it."""
    with ExitStack() as reserved:
        # Pillow takes memory for a WebP when it opens it.
        if size := webp_size(content):
            _check_size(*size, max_pixels)
            reserved.enter_context(_memory(size[0] * size[1] * BYTES_A_PIXEL["WEBP"], alone))
        # Closed before the memory is given back: an image refers to itself, and would stay until a garbage collection.
        image = _open(content)
        reserved.callback(image.close)
        _check_size(*image.size, max_pixels)
        check_colours(image)
        try:
            check_data(content, tiff_tags(image))
        except ValueError as error:
            raise ImageRejectedError(Reason.IMAGE_BROKEN, str(error)) from error
        pixels = image.width * image.height
        factor = _scale_down(image, content)
        if not size:
            reserved.enter_context(_memory(_cost(image, content, pixels), alone))
            reserved.callback(image.close)  # before this memory, which was reserved after the file was opened
        image.load()
        if image.format in JPEGS:
            _check_decoded(content, image)
        if image.format == "TGA" and not content[17] & 0x0F:  # its fourth channel is no alpha
            image.putalpha(255)
        rgb = to_rgb(_without_key(image, content) if _has_exact_key(image, content) else image, factor)
        upright = transposed(rgb, _orientation(image))
        return upright.copy() if upright is image else upright


def _check_decoded(content: bytes, image: Image.Image) -> None:
    try:
        check_decoded(content, image)
    except ValueError as error:
        raise ImageRejectedError(Reason.IMAGE_BROKEN, str(error)) from error


@contextmanager
def _memory(size: int, alone: bool) -> Iterator[None]:
    """Reserve memory for `size` bytes; alone, for as long as no other thread has any, and raise if there is none."""
    with PIXELS.reserve(max(size, PIXELS.size) if alone else size):
        if alone:
            np.empty(size, np.uint8)
        yield


def _check_size(width: int, height: int, max_pixels: int) -> None:
    size = f"{width} x {height} pixels"
    if min(width, height) < 1:
        raise ImageRejectedError(Reason.IMAGE_BROKEN, f"{size}, expected at least one")
    if width * height > max_pixels:
        detail = f"{size}, expected at most {max_pixels}; allow more with --max-pixels"
        raise ImageRejectedError(Reason.IMAGE_TOO_LARGE, detail)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageRejectedError(
            Reason.IMAGE_TOO_ELONGATED, f"{size}, expected an aspect ratio of at most {MAX_ASPECT} to 1"
        )


def _scale_down(image: ImageFile.ImageFile, content: bytes) -> int:
    """Let the decoder scale down as far as it can, and return by how much to scale down what it returns."""
    factor = _factor(image.width, image.height)
    if factor > 1 and image.format in JPEGS:
        image.draft(None, (image.width // factor, image.height // factor))
        return _factor(image.width, image.height)
    if factor > 1 and image.format == "JPEG2000":
        levels = content[content.index(b"\xff\x52", content.index(b"\xff\x4f\xff\x51")) + 9]
        halvings = min(levels, factor.bit_length() - 1)
        # a setting of this format, in the place of the method
        image.reduce = halvings  # type: ignore[method-assign, assignment]
        return _factor(image.width >> halvings, image.height >> halvings)
    return factor


def _factor(width: int, height: int) -> int:
    """Return the smallest whole number that scales an image down to at most `KEPT_PIXELS`."""
    factor = 1
    while -(-width // factor) * -(-height // factor) > KEPT_PIXELS:
        factor += 1
    return factor


def _cost(image: ImageFile.ImageFile, content: bytes, pixels: int) -> int:
    """Return about how many bytes decoding an image needs at a time; the whole image has `pixels` pixels."""
    bytes_a_pixel = BYTES_A_PIXEL.get(image.format or "", FEWEST_BYTES_A_PIXEL)
    if _has_exact_key(image, content):
        bytes_a_pixel = EXACT_KEY_BYTES_A_PIXEL
    coefficients = PROGRESSIVE_BYTES_A_PIXEL * pixels if image.info.get("progressive") else 0
    return image.width * image.height * bytes_a_pixel + coefficients


def _unidentified(content: bytes) -> ImageRejectedError:
    if content[4:8] == b"ftyp":
        name = f"ISO media of brand {content[8:12].decode('ascii', 'replace')}"
    else:
        name = next((name for first, name in RECOGNISED.items() if content.startswith(first)), "")
    if name:
        detail = f"{name}, or its kind of pixels, cannot be read; convert it to an 8-bit PNG or JPEG"
        return ImageRejectedError(Reason.IMAGE_FORMAT_UNSUPPORTED, detail)
    return ImageRejectedError(Reason.IMAGE_UNIDENTIFIED, "the content is in no known image format")


def _open(content: bytes) -> ImageFile.ImageFile:
    Image.init()
    image = Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])
    if content.startswith(PNG):
        image.info["depth"] = content[24]
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image, 1 to 8. Pillow has turned a TIFF already."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001  metadata that cannot be read does not refuse the pixels
        return 1


def _has_exact_key(image: Image.Image, content: bytes) -> bool:
    """Whether one colour of 16 bits a channel is transparent, of which Pillow keeps the upper 8 bits."""
    return content.startswith(PNG) and content[24:26] == b"\x10\x02" and "transparency" in image.info


def _without_key(image: Image.Image, content: bytes) -> Image.Image:
    """Return a PNG of 16 bits a channel with white where it is transparent."""
    lower = _open(content)
    lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]  # the lower 8 bits
    pixels, key = np.array(image), np.array(image.info["transparency"])
    is_key = (pixels == key >> 8).all(-1) & (np.asarray(lower) == key & 255).all(-1)
    pixels[is_key] = 255
    return Image.fromarray(pixels)


class _Unbound:
    """Threads in which Pillow neither warns nor bounds sizes; our own bounds are checked instead.

    Warning filters and the bound are global to the process: the first thread changes them, the last restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._warnings, self._bound = warnings.catch_warnings(), Image.MAX_IMAGE_PIXELS
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                Image.MAX_IMAGE_PIXELS = None
            self._threads += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                Image.MAX_IMAGE_PIXELS = self._bound
                self._warnings.__exit__(None, None, None)


_UNBOUND = _Unbound()
# Blocks of Pillow's 16 MiB stay with the thread that freed them; larger ones go back to the system.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]
