"""Images as a person sees them, decoded within bounds."""

import io
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from connector.rejects import Reason

# A file beyond this is no photograph, and a picture beyond this decompresses to more than 300 MB.
MAX_BYTES = 256 << 20
MAX_PIXELS = 100_000_000
# Encoders scale the shorter side to their input, which makes a thread of pixels longer than any memory.
MAX_ASPECT = 256
ROWS_AT_ONCE = 64

# What a photograph or a drawing comes in. Pillow opens more, and hands PostScript to a program that runs it.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

_BOMB_WARNING = threading.Lock()


class ImageRejectedError(Exception):
    """An image that cannot be used. `reason` is a short name that can be counted."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


def read_image(image: Path | bytes) -> bytes:
    """Read an image file; one out of an archive has been read already.

    Raises:
        ImageRejectedError: missing, no regular file, unreadable, empty or larger than `MAX_BYTES`.
    """
    content = image if isinstance(image, bytes) else _read_file(image)
    if not content:
        raise ImageRejectedError(Reason.IMAGE_EMPTY, f"{'it' if isinstance(image, bytes) else image} has no content")
    return content


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            reason = Reason.IMAGE_MISSING if not path.exists() else Reason.IMAGE_NOT_A_FILE
            raise ImageRejectedError(reason, f"expected an image file at {path}")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ImageRejectedError(Reason.IMAGE_TOO_LARGE, f"{size} bytes, at most {MAX_BYTES} are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise ImageRejectedError(Reason.IMAGE_UNREADABLE, str(error)) from error


def decode(content: bytes) -> Image.Image:
    """Decode an image to 8-bit RGB: the first frame, turned upright, transparency over white, 16 bits scaled to 8.

    Raises:
        ImageRejectedError: not an image, truncated, or a decompression bomb.
    """
    try:
        image = _open(content)
        if image.width * image.height > MAX_PIXELS:
            raise ImageRejectedError(
                Reason.IMAGE_TOO_LARGE, f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are decoded"
            )
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ImageRejectedError(
                Reason.IMAGE_TOO_ELONGATED,
                f"{image.width} x {image.height} pixels, at most {MAX_ASPECT} to 1 is encoded",
            )
        image.load()
        return upright_rgb(image)
    except ImageRejectedError:
        raise
    except UnidentifiedImageError as error:
        raise ImageRejectedError(Reason.IMAGE_UNIDENTIFIED, "the content is in no known image format") from error
    except Image.DecompressionBombError as error:
        raise ImageRejectedError(Reason.IMAGE_TOO_LARGE, str(error)) from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        raise ImageRejectedError(Reason.IMAGE_BROKEN, f"{type(error).__name__}: {error}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Bring a picture in memory to what its file would be decoded to."""
    return _rgb(ImageOps.exif_transpose(image))


def _open(content: bytes) -> Image.Image:
    # Pillow warns below the size at which it refuses; our own bound stands between the two. Filters are global,
    # hence the lock. Only headers are read here.
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
    """Scale 16-bit, 32-bit and float grey to 8 bits; Pillow's own conversion would clip them to white."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageRejectedError(Reason.IMAGE_BROKEN, "pixels that are not finite")
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS_AT_ONCE):  # eight bytes a pixel are too many for all of a large picture
        rows = slice(start, start + ROWS_AT_ONCE)
        scaled[rows] = ((values[rows].astype(np.float64) - low) / (high - low or 1.0) * 255.0).round()
    return Image.fromarray(scaled)
