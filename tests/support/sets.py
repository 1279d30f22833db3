"""Small embedding sets, their writer, and what is compared of them."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignment.modality import MODALITIES, Modality
from alignment.sets.cards import EncoderCard
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from tests.support.fakes import fake_rows

IMAGE = EncoderCard("fake-image:1", "a" * 64, 4)
TEXT = EncoderCard("fake-text:1", "b" * 64, 3)
CARDS: dict[Modality, EncoderCard] = {"image": IMAGE, "text": TEXT}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def some(modality: Modality, n: int, seed: int = 0, prefix: str = "") -> Rows:
    dim = CARDS[modality].dim
    return fake_rows(modality, np.random.default_rng(seed).standard_normal((n, dim)), prefix=prefix)


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    n, d = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    keys, groups, hashes, payloads = (draw(st.lists(TEXTS, min_size=n, max_size=n)) for _ in range(4))
    vectors = draw(hnp.arrays(np.float32, (n, d), elements=st.floats(width=16)))
    return Rows(draw(st.sampled_from(MODALITIES)), keys, groups, hashes, payloads, vectors)


def writer(path: Path, **changes: Any) -> SetWriter:
    return SetWriter(path, **{"corpus": "corpus.jsonl", "encoders": CARDS, **changes})


def assert_same(one: Rows, other: Rows) -> None:
    assert one.modality == other.modality
    assert one.keys == other.keys
    assert one.groups == other.groups
    assert one.content_sha256 == other.content_sha256
    assert one.payloads == other.payloads
    assert one.vectors.dtype == other.vectors.dtype == np.float32
    np.testing.assert_array_equal(one.vectors, other.vectors)


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def snapshot(path: Path) -> dict[str, tuple[int, int, bytes]]:
    return {f.name: (f.stat().st_mtime_ns, f.stat().st_ino, f.read_bytes()) for f in path.iterdir()}
