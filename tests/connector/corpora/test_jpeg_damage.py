"""JPEGs whose data ends before the image, behind an end mark, and honest ones that look like it."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from connector.corpora import images
from connector.corpora.images import ImageRejectedError, decode
from tests.support.image_files import encoded

HEIGHT, WIDTH = 320, 240
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "4:2:0": ("RGB", {}),
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "with own tables": ("RGB", {"optimize": True}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
    "with restart marks": ("RGB", {"restart_marker_blocks": 7}),
    "with a restart mark a row": ("L", {"restart_marker_rows": 1}),
}
EOI = b"\xff\xd9"
every_kind = pytest.mark.parametrize("kind", KINDS)


def photograph(kind: str, lower: int | None = None, **options: Any) -> bytes:
    """A noisy picture, its lower half of one value."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    if lower is not None:
        pixels[HEIGHT // 2 :] = lower
    mode, of_kind = KINDS[kind]
    return encoded(Image.fromarray(pixels).convert(mode), "JPEG", **{"quality": 85, **of_kind, **options})


def refused(content: bytes) -> str:
    with pytest.raises(ImageRejectedError) as caught:
        decode(content)
    assert caught.value.reason == "image-broken"
    return str(caught.value)


@every_kind
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_file_that_was_cut_and_closed_is_refused(kind: str, share: float) -> None:
    content = photograph(kind)
    assert decode(content).size == (WIDTH, HEIGHT)
    refused(content[: int(len(content) * share)].rstrip(b"\xff") + EOI)


@every_kind
def test_a_file_that_lost_a_part_of_its_middle_is_refused(kind: str) -> None:
    content = photograph(kind)
    half, lost = len(content) // 2, len(content) // 3
    refused(content[:half].rstrip(b"\xff") + content[half + lost :])


def test_a_progressive_one_that_was_cut_in_its_first_scan_is_refused() -> None:
    content = photograph("4:2:0", progressive=True)
    start = content.index(b"\xff\xda") + 14
    refused(content[: start + 60].rstrip(b"\xff") + EOI)


def test_one_that_is_scaled_down_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "KEPT_PIXELS", WIDTH * HEIGHT // 16)
    content = photograph("4:2:0")
    assert decode(content).size == (WIDTH // 4, HEIGHT // 4)
    assert f"of {HEIGHT} rows" in refused(content[: len(content) // 2].rstrip(b"\xff") + EOI)


@every_kind
@pytest.mark.parametrize("lower", [127, 128, 129])
@pytest.mark.parametrize("quality", [5, 85, 100])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_picture_that_ends_in_grey_is_no_damage(kind: str, lower: int, quality: int, progressive: bool) -> None:
    decode(photograph(kind, lower, quality=quality, progressive=progressive))


@pytest.mark.parametrize("seed", range(20))
def test_honest_pictures_of_greys_are_no_damage(seed: int) -> None:
    """Of any size, with noise of one grey more or less, which an exact decoder would show."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        height, width = rng.integers(1, 120, 2)
        pixels = np.full((height, width, 3), rng.integers(125, 132), np.uint8)
        start = rng.integers(0, height)
        pixels[:start] = rng.integers(0, 256, (start, width, 3))
        pixels[start:] += rng.integers(
            0, 1 + rng.integers(0, 2), (height - start, width, 1), dtype=np.uint8, endpoint=True
        )
        mode = str(rng.choice(["RGB", "L", "CMYK"]))
        options = {"quality": int(rng.integers(1, 101)), "optimize": bool(rng.integers(2))}
        decode(encoded(Image.fromarray(pixels).convert(mode), "JPEG", **options))
