"""Pixels of any mode as 8-bit RGB: as declared by the file, transparency over white, a strip of rows at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

ROWS_AT_ONCE, PIXELS_AT_ONCE = 64, 1 << 18  # the more of both: a small picture is one strip
UINT16_MAX, UINT32_MAX = 65_535, 4_294_967_295
# Tags of TIFF.
NEW_SUBFILE_TYPE, BITS, COMPRESSION, PHOTOMETRIC, PLANES, COLOUR_MAP = 254, 258, 259, 262, 284, 320
SAMPLE_FORMAT, SUBSAMPLING, DNG_VERSION = 339, 530, 50_706
# Their values.
REDUCED, UNCOMPRESSED, WHITE_IS_ZERO, YCBCR, CFA, SEPARATE, UNSIGNED, SIGNED = 1, 1, 0, 6, 32_803, 2, 1, 2


def to_rgb(image: Image.Image, factor: int = 1) -> Image.Image:
    """Convert a decoded image to 8-bit RGB, and take the mean of every `factor` x `factor` pixels.

    Greys of more than 8 bits are divided by the largest value of their declared depth. Floats from 0 to 1 are shares;
    other floats, and integers with negative values, are stretched from their lowest to their highest value.

    Raises:
        ValueError: pixels that are NaN or infinite.
        NotImplementedError: a colour space that cannot be converted.
    """
    _mend_palette(image)
    convert = _converter(image)
    if factor == 1 and convert is _as_it_is:
        return image
    rows = factor * max(1, max(ROWS_AT_ONCE, PIXELS_AT_ONCE // image.width) // factor)
    made = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, rows):
        strip = convert(image.crop((0, top, image.width, min(top + rows, image.height))))
        made.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return made


def _mend_palette(image: Image.Image) -> None:
    """Set the colours of a palette of 8 bits, which some writers of TIFF put where 16 are meant."""
    colours = np.array(tiff_tags(image).get(COLOUR_MAP, ()))
    if len(colours) and image.mode in ("P", "PA") and colours.max() < 256:
        image.putpalette(colours.reshape(3, -1).T.astype(np.uint8).tobytes())


def check_colours(image: Image.Image) -> None:
    """Check that the colours of an open image, whose pixels need not be loaded, can be told from its tags.

    Raises:
        NotImplementedError: they cannot, or the image is the preview of a camera's raw file.
    """
    tags = tiff_tags(image)
    if DNG_VERSION in tags or tags.get(PHOTOMETRIC) == CFA or tags.get(NEW_SUBFILE_TYPE, 0) == REDUCED:
        raise NotImplementedError("the file holds a camera's raw data, or a preview of an image that is not read")
    if tags.get(PLANES) == SEPARATE and max(tags.get(BITS, (1,))) > 8:
        raise NotImplementedError("colours of more than 8 bits in separate planes cannot be read")
    plain_ycbcr = tags.get(PHOTOMETRIC) == YCBCR and tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED
    if plain_ycbcr and tags.get(SUBSAMPLING, (2, 2)) != (1, 1):
        raise NotImplementedError("subsampled YCbCr without compression cannot be read")
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and image.mode not in ("1", "L", "I", "F", "I;16", "I;16B", "I;16L"):
        raise NotImplementedError(f"white is zero in mode {image.mode}, which is read for greys only")


def tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF; none of another format."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return tags


_Convert = Callable[[Image.Image], Image.Image]


def _converter(image: Image.Image) -> _Convert:
    """Return what converts a strip of `image` to RGB."""
    tags = tiff_tags(image)
    sample = _first(tags.get(SAMPLE_FORMAT, UNSIGNED))
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or (image.mode == "L" and sample == SIGNED):
        return _greys(image, tags, sample)
    if image.mode == "LAB":
        return _from_lab
    if image.mode in ("1", "L") and "transparency" in image.info:
        return _keyed_grey(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return _as_it_is
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _over_white
    return _plain


def _as_it_is(strip: Image.Image) -> Image.Image:
    return strip


def _plain(strip: Image.Image) -> Image.Image:
    return strip.convert("RGB")


def _over_white(strip: Image.Image) -> Image.Image:
    if strip.mode == "La":
        strip = strip.convert("LA")
    layer = strip.convert("RGBA")
    canvas = Image.new("RGB", layer.size, "white")
    canvas.paste(layer, mask=layer)  # what `alpha_composite` gives on an opaque canvas, in a third of its time
    return canvas


def _from_lab(strip: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(strip, _lab_to_srgb())
    assert converted is not None  # it is None in place only
    return converted


@cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _keyed_grey(image: Image.Image) -> _Convert:
    """Greys of 8 bits or fewer, one of which is transparent. Pillow scales the greys of a PNG, but not that one."""
    key, depth = image.info["transparency"], image.info.get("depth", 1 if image.mode == "1" else 8)
    scaled = key * 255 // (2**depth - 1) if image.format == "PNG" else key

    def convert(strip: Image.Image) -> Image.Image:
        greys = np.array(strip.convert("L"))
        greys[greys == scaled] = 255
        return Image.fromarray(greys).convert("RGB")

    return convert


def _greys(image: Image.Image, tags: Mapping[int, Any], sample: int) -> _Convert:
    """Greys of 16 and 32 bits, signed ones of 8, and floats."""
    kind = np.uint32 if image.mode == "I" and tags and sample == UNSIGNED else np.int8 if image.mode == "L" else None
    scale = _scale(image, tags, sample, kind)
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    key = image.info.get("transparency")

    def convert(strip: Image.Image) -> Image.Image:
        values = _values(strip, kind)
        greys = scale.apply(values)
        if inverted:
            greys = 255 - greys
        if key is not None:
            greys[values == key] = 255
        return Image.fromarray(greys).convert("RGB")

    return convert


@dataclass(frozen=True, slots=True)
class _Scale:
    """The values that become black and white."""

    low: float
    high: float

    def apply(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        shares = (values.astype(np.float64) - self.low) / (self.high - self.low or 1.0)
        return np.asarray((shares * 255.0).round().clip(0, 255), np.uint8)


class PixelsNotFiniteError(ValueError):
    """Pixels that cannot be divided by the largest one."""


def _scale(image: Image.Image, tags: Mapping[int, Any], sample: int, kind: type[np.generic] | None) -> _Scale:
    bits = _first(tags.get(BITS, 16 if image.mode.startswith("I;16") else 32))
    if image.mode.startswith("I;16"):
        return _Scale(0, 2**bits - 1)
    if kind is np.uint32:
        return _Scale(0, UINT32_MAX)
    low, high = _range(image, kind)
    if not np.isfinite([low, high]).all():
        raise PixelsNotFiniteError("expected finite pixels, got NaN or infinity")
    if image.mode == "F":
        return _Scale(0, 1) if low >= 0 and high <= 1 else _Scale(low, high)
    # Pillow has 16-bit greys of some formats in 32-bit pixels.
    largest = 2 ** (bits - 1) - 1 if sample == SIGNED and bits < 32 else UINT16_MAX
    return _Scale(0, largest) if low >= 0 and high <= largest else _Scale(low, high)


def _range(image: Image.Image, kind: type[np.generic] | None) -> tuple[float, float]:
    """Return the lowest and the highest value; NaN if one is."""
    lows, highs = [], []
    for top in range(0, image.height, ROWS_AT_ONCE):
        values = _values(image.crop((0, top, image.width, min(top + ROWS_AT_ONCE, image.height))), kind)
        lows.append(values.min())
        highs.append(values.max())
    return float(np.min(lows)), float(np.max(highs))


def _values(strip: Image.Image, kind: type[np.generic] | None) -> npt.NDArray[Any]:
    values = np.asarray(strip)
    return values if kind is None else values.view(kind)


def _first(tag: Any) -> int:
    return int(tag[0] if isinstance(tag, tuple) else tag)


def transposed(image: Image.Image, orientation: int) -> Image.Image:
    """Turn and mirror an image as its EXIF orientation, 1 to 8, says; any other leaves it alone."""
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)
