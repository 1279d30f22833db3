"""Deterministic encoders that need no download, and corpora whose images and captions can be aligned.

`fake_pairs` paints the left and the right half of small PNGs and says how much of which colour stands where, one
word a unit. Both fake encoders are linear in those units, so a linear alignment between them exists.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from alignment.modality import Modality
from alignment.sets.cards import Dtype, EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from connector.encoding.encoders import Encoder
from connector.encoding.loading import GROUP
from connector.errors import EncoderError

IMAGE_DIM, TEXT_DIM = 12, 10
# A text that holds this is embedded as NaN, and a black image as zeros: vectors that must be refused.
NAN_WORD = "notanumber"

WORDS = ("red", "green", "blue", "crimson", "lime", "navy")  # three channels of the left half, then of the right
MOST_UNITS = 5  # of one colour in one half
FILLERS = ("", "photo", "scene", "drawing", "sketch")


class FakeImageEncoder(Encoder):
    """`fake-image:NAME`: mean colours on a 2 x 2 grid, turned by an orthogonal matrix that NAME decides."""

    scheme = "fake-image"
    modalities = ("image",)

    def __init__(self, name: str = "small", device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        super().__init__(name, device)
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
        self._matrix = np.linalg.qr(rng.standard_normal((IMAGE_DIM, IMAGE_DIM)))[0].astype(np.float32)
        self.fingerprint = hashlib.sha256(f"image {name}".encode()).hexdigest()
        self.dim = IMAGE_DIM

    def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
        assert isinstance(content, Image.Image)
        assert content.mode == "RGB"
        grid = np.asarray(content.resize((2, 2), Image.Resampling.BOX), np.float32) / 255
        return torch.from_numpy(grid.reshape(-1) @ self._matrix)

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        return torch.stack(list(prepared))


class FakeTextEncoder(Encoder):
    """`fake-text:NAME`: the sum of a pseudo-random vector a character trigram; NAME salts the hash."""

    scheme = "fake-text"
    modalities = ("text",)

    def __init__(self, name: str = "small", device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        super().__init__(name, device)
        self.fingerprint = hashlib.sha256(f"text {name}".encode()).hexdigest()
        self.dim = TEXT_DIM

    def prepare(self, modality: Modality, content: Image.Image | str) -> Any:
        assert isinstance(content, str)
        padded = [f"^{word}$" for word in content.lower().split() or [""]]
        grams = [word[i : i + 3] for word in padded for i in range(max(1, len(word) - 2))]
        vector = np.sum([self._vector(gram) for gram in grams], axis=0, dtype=np.float64)
        return torch.from_numpy(vector if NAN_WORD not in content else vector * np.nan)

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        return torch.stack(list(prepared))

    def _vector(self, gram: str) -> npt.NDArray[np.float64]:
        digest = hashlib.sha256(f"{self.name} {gram}".encode()).digest()[: 2 * TEXT_DIM]
        return np.frombuffer(digest, "<u2").astype(np.float64) / 2**15 - 1.0


def fake_entry_points(*, group: str) -> list[EntryPoint]:
    """Stand in for `importlib.metadata.entry_points`: the fakes, and nothing else."""
    kinds = (FakeImageEncoder, FakeTextEncoder)
    return [EntryPoint(k.scheme, f"{k.__module__}:{k.__name__}", GROUP) for k in kinds if group == GROUP]


@dataclass(frozen=True)
class Pair:
    """An image on disk with its captions, as a row of a manifest."""

    key: str
    image: Path
    captions: list[str]
    group: str

    def row(self, directory: Path) -> dict[str, Any]:
        """The manifest row, with the image relative to `directory`."""
        image = self.image.relative_to(directory).as_posix()
        return {"key": self.key, "image": image, "caption": self.captions, "group": self.group}


def fake_pairs(directory: Path, n: int, seed: int = 0, *, captions: int = 1) -> list[Pair]:
    """Write `n` PNGs (8 x 8, no two alike) under `directory`/images, and describe each `captions` times."""
    rng = np.random.default_rng(seed)
    (directory / "images").mkdir(parents=True, exist_ok=True)
    pairs: list[Pair] = []
    seen: set[tuple[int, ...]] = set()
    while len(pairs) < n:
        units = rng.integers(0, MOST_UNITS + 1, size=len(WORDS))
        # Multiples of one another would differ in length alone, which a cosine does not see.
        direction = tuple((units // max(1, int(np.gcd.reduce(units)))).tolist())
        if not units.any() or direction in seen:
            continue
        seen.add(direction)
        key = f"s{seed}-{len(pairs):05d}"
        path = directory / "images" / f"{key}.png"
        pixels = np.empty((8, 8, 3), np.uint8)
        pixels[:, :4], pixels[:, 4:] = units[:3] * 51, units[3:] * 51
        Image.fromarray(pixels).save(path)
        words = np.repeat(WORDS, units)
        texts = [" ".join([*rng.permutation(words), FILLERS[i % len(FILLERS)]]).strip() for i in range(captions)]
        pairs.append(Pair(key, path, texts, key))
    return pairs


def write_manifest(path: Path, pairs: Iterable[Pair], *extra: Mapping[str, Any]) -> Path:
    """Write `pairs` and any `extra` rows as the JSONL manifest `path`, which stands above the images."""
    rows = [*(pair.row(path.parent) for pair in pairs), *extra]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fake_rows(
    modality: Modality,
    vectors: npt.NDArray[np.floating],
    *,
    groups: Sequence[str] | None = None,
    prefix: str = "",
) -> Rows:
    """Rows around `vectors` (n, d), keyed `PREFIX0`, `PREFIX1`, ...; each its own group if no `groups` are given."""
    keys = [f"{prefix}{i}" for i in range(len(vectors))]
    sha = [hashlib.sha256(f"{modality} {key}".encode()).hexdigest() for key in keys]
    payloads = [json.dumps({"number": i}) for i in range(len(keys))]
    return Rows(modality, keys, list(groups or keys), sha, payloads, vectors.astype(np.float32))


def fake_set(path: Path, *parts: Rows, dtype: Dtype = "float32", model: str = "fake") -> EmbeddingSet:
    """Write a complete embedding set of `parts`, one shard each, encoded by `MODEL-image` and `MODEL-text`."""
    cards = {
        part.modality: EncoderCard(
            f"{model}-{part.modality}:1",
            hashlib.sha256(f"{model} {part.modality}".encode()).hexdigest(),
            part.vectors.shape[1],
        )
        for part in parts
    }
    with SetWriter(path, corpus="fake", encoders=cards, dtype=dtype) as writer:
        for part in parts:
            writer.append(part)
        writer.finish()
    return EmbeddingSet.open(path)


@contextmanager
def loads_no_encoder() -> Iterator[None]:
    """Assert that no fake encoder is loaded in the block."""
    loaded: list[str] = []

    def load(self: Encoder, name: str, device: torch.device) -> None:
        loaded.append(name)
        raise EncoderError(f"{name} was loaded")

    with pytest.MonkeyPatch.context() as patched:
        for encoder in (FakeImageEncoder, FakeTextEncoder):
            patched.setattr(encoder, "__init__", load)
        yield
    assert loaded == []
