"""Images decoded to upright 8-bit RGB, with bounds on bytes, pixels and aspect ratio."""

import io
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from connector.rejects import Reason

# Larger files are no photographs. Larger images decompress to more than 300 MB.
MAX_BYTES = 256 << 20
MAX_PIXELS = 100_000_000
# Encoders scale the shorter side to their input size: a very long image would fill the memory.
MAX_ASPECT = 256
ROWS_AT_ONCE = 64

# Pillow opens more formats, among them PostScript, which it hands to an interpreter that runs it.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

_BOMB_WARNING = threading.Lock()


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


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            reason = Reason.IMAGE_MISSING if not path.exists() else Reason.IMAGE_NOT_A_FILE
            raise ImageRejectedError(reason, f"expected an image file at {path}")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ImageRejectedError(Reason.IMAGE_TOO_LARGE, f"{size} bytes, expected at most {MAX_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise ImageRejectedError(Reason.IMAGE_UNREADABLE, str(error)) from error


def decode(content: bytes) -> Image.Image:
    """Decode an image to 8-bit RGB: the first frame, turned upright, transparency over white, 16 bits scaled to 8.

    Raises:
        ImageRejectedError: the content is no image, truncated, too large or too narrow.
    """
    try:
        image = _open(content)
        if image.width * image.height > MAX_PIXELS:
            raise ImageRejectedError(
                Reason.IMAGE_TOO_LARGE, f"{image.width} x {image.height} pixels, expected at most {MAX_PIXELS}"
            )
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ImageRejectedError(
                Reason.IMAGE_TOO_ELONGATED,
                f"{image.width} x {image.height} pixels, expected an aspect ratio of at most {MAX_ASPECT} to 1",
            )
        image.load()
        return upright_rgb(image)
    except ImageRejectedError:
        raise
    except UnidentifiedImageError as error:
        raise ImageRejectedError(Reason.IMAGE_UNIDENTIFIED, "the content is in no known image format") from error
    except Image.DecompressionBombError as error:
        raise ImageRejectedError(Reason.IMAGE_TOO_LARGE, str(error)) from error
    except Exception as error:  # Pillow's decoders raise any exception on a broken file
        raise ImageRejectedError(Reason.IMAGE_BROKEN, f"{type(error).__name__}: {error}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image in memory as `decode` does with a file."""
    return _rgb(ImageOps.exif_transpose(image))


def _open(content: bytes) -> Image.Image:
    # Pillow warns below the size at which it raises; our bound lies between the two. Warning filters are global to
    # the process, hence the lock. Only headers are read here.
    with _BOMB_WARNING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.init()
        return Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, "white")
        canvas.alpha_composite(layer)
        return canvas.convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey to 8 bits; Pillow itself would clip them to white."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageRejectedError(Reason.IMAGE_BROKEN, "expected finite pixels, got NaN or infinity")
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS_AT_ONCE):  # a float64 copy of a whole large image would be too big
        rows = slice(start, start + ROWS_AT_ONCE)
        scaled[rows] = ((values[rows].astype(np.float64) - low) / (high - low or 1.0) * 255.0).round()
    return Image.fromarray(scaled)
