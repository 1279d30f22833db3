"""Fits on vectors that stay in their shards: the same results, few of them in memory, each shard read once."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from alignment.errors import FitError
from alignment.fitting import batches as batching
from alignment.fitting import closed_forms, cross_validation, folds, held_out_recall, pairs, seen_unseen, split, stored
from alignment.fitting.batches import batches
from alignment.fitting.fit import fit
from alignment.fitting.seen_unseen import SeenUnseen
from alignment.fitting.split import training_and_test
from alignment.fitting.stored import ShardParts, StoredEmbeddings, StoredVectors
from alignment.fitting.training import Training
from alignment.metrics import parse
from alignment.modality import MODALITIES
from alignment.model.alignment import Alignment
from alignment.retrieval.ranks import group_codes
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from alignment.sets.shards import read_columns
from tests.support.errors import raises
from tests.support.fakes import fake_rows, fake_set

SHARD = 30


def in_shards(rows: Rows) -> list[Rows]:
    return [rows.take(range(start, min(start + SHARD, len(rows)))) for start in range(0, len(rows), SHARD)]


def planted(path: Path, rng: np.random.Generator, groups: int = 200, captions: int = 2, *, order: str = "same") -> Any:
    """A set in small shards: images and captions of one latent vector a group, and some items without a partner."""
    Z = rng.standard_normal((groups, 5))
    X = Z @ rng.standard_normal((5, 9)) + 0.3 * rng.standard_normal((groups, 9))
    Y = np.repeat(Z, captions, axis=0) @ rng.standard_normal((5, 7)) + 0.3 * rng.standard_normal((groups * captions, 7))
    names = [f"g{number}" for number in range(groups)]
    images = fake_rows("image", X, groups=[f"alone {name}" if name == "g7" else name for name in names])
    texts = fake_rows("text", Y, groups=[name for name in names for _ in range(captions)])
    if order == "shuffled":
        texts = texts.take(rng.permutation(len(texts)).tolist())
    return fake_set(path, *in_shards(images), *in_shards(texts))


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held, and few parts at once."""
    monkeypatch.setattr(split, "HELD_BYTES", 0)
    monkeypatch.setattr(stored, "CACHED_BYTES", 5000)
    monkeypatch.setattr(pairs, "BLOCK_ROWS", 64)
    monkeypatch.setattr(stored, "ASKED_ROWS", 64)
    monkeypatch.setattr(split, "AT_ONCE", SHARD)
    monkeypatch.setattr(stored, "FILE_ROWS", 50)


def same(one: Alignment, other: Alignment) -> None:
    for found, expected in zip(one.projections.values(), other.projections.values(), strict=True):
        for name, tensor in expected.tensors().items():
            np.testing.assert_allclose(found.tensors()[name], tensor, atol=1e-6)
    assert [c["method"] for c in one.card.candidates] == [c["method"] for c in other.card.candidates]
    assert (one.card.pairs, one.card.hyperparameters) == (other.card.pairs, other.card.hyperparameters)
    for candidate, wanted in zip(one.card.candidates, other.card.candidates, strict=True):
        assert candidate["score"] == pytest.approx(wanted["score"], abs=1e-6)
    assert one.card.held_out_recall == other.card.held_out_recall
    for modality in MODALITIES:
        np.testing.assert_array_equal(one.seen[modality].contents, other.seen[modality].contents)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["same", "shuffled"])
@pytest.mark.parametrize("method", ["ridge", "rcca", "procrustes", "kcca", "asif"])
def test_a_fit_from_shards_is_that_in_memory(
    method: str, order: str, rng: np.random.Generator, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = planted(tmp_path / "s", rng, order=order)
    expected = fit([made], method=method, device="cpu")
    request.getfixturevalue("on_disk")
    same(fit([made], method=method, device="cpu"), expected)


@pytest.mark.slow
def test_metrics_that_learn_and_corrections_of_hubs_take_the_same_items(
    rng: np.random.Generator, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = planted(tmp_path / "s", rng)
    options: Any = {"metrics": [parse("dot+nnn(k=5)"), parse("mlp(hidden=2)")], "training": {"epochs": 1}}
    expected = fit([made], method="ridge", device="cpu", **options)
    request.getfixturevalue("on_disk")
    found = fit([made], method="ridge", device="cpu", **options)
    for name, weights in expected.weights.items():
        if name.startswith("nnn"):
            np.testing.assert_allclose(found.weights[name], weights, atol=1e-6)
    assert found.weights.keys() == expected.weights.keys()


@pytest.mark.parametrize("order", ["same", "shuffled"])
@pytest.mark.parametrize("method", ["ridge", "kcca"])
@pytest.mark.usefixtures("on_disk")
def test_every_shard_is_read_once_but_for_its_neighbours_edge(
    method: str, order: str, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in (
        (held_out_recall, "HELD_OUT_GROUPS"),
        (cross_validation, "VALIDATION_GROUPS"),
        (closed_forms, "PAIRS"),
    ):
        monkeypatch.setattr(module, name, 10)
    monkeypatch.setattr(folds, "PAIRS", 10)
    sampled = SeenUnseen.sampled
    monkeypatch.setattr(SeenUnseen, "sampled", lambda *some, **_most: sampled(*some, most=10))
    made = planted(tmp_path / "s", rng, order=order)
    read: Counter[tuple[Any, ...]] = Counter()
    original = ShardParts.read

    def counted(self: ShardParts, part: int) -> Any:
        read[self.dim, part] += 1
        return original(self, part)

    monkeypatch.setattr(ShardParts, "read", counted)
    fit([made], method=method, device="cpu")
    assert len(read) == len(made.shards("image")) + len(made.shards("text"))
    # The first ones are looked at for a direction before the pass.
    assert read.total() <= len(read) + 4


@pytest.mark.slow
@pytest.mark.usefixtures("on_disk")
def test_two_sets_are_one_and_their_payloads_are_never_read(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = planted(tmp_path / "whole", rng)
    images, texts = whole.load("image"), whole.load("text")
    parts = [
        fake_set(tmp_path / name, *in_shards(images.take(range(*x))), *in_shards(texts.take(range(*y))))
        for name, x, y in (("a", (0, 90), (0, 181)), ("b", (90, 200), (181, 400)))
    ]
    expected = fit([whole], method="rcca", device="cpu")
    asked: set[str] = set()

    def watched(path: Path, columns: list[str]) -> Any:
        asked.update(columns)
        return read_columns(path, columns)

    for module in ("alignment.fitting.stored", "alignment.sets.embedding_set"):
        monkeypatch.setattr(f"{module}.read_columns", watched)
    same(fit(parts, method="rcca", device="cpu"), expected)
    assert asked == {"group", "content_sha256", "vector"}


@pytest.mark.usefixtures("on_disk")
def test_a_vector_that_cannot_be_used_is_named(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = rng.standard_normal((90, 4)).astype(np.float32), rng.standard_normal((90, 3)).astype(np.float32)
    Y[[64, 66]] = 0
    texts = fake_rows("text", Y)
    made = fake_set(tmp_path / "s", *in_shards(fake_rows("image", X)), *in_shards(texts))
    with raises(FitError, "2 text vectors", texts.keys[64], "vector-zero"):
        fit([made], method="ridge", device="cpu")


@pytest.mark.usefixtures("on_disk")
def test_a_disk_without_room_for_sorted_captions_is_named(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planted(tmp_path / "s", rng, order="shuffled")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with raises(FitError, "TMPDIR", str(tmp_path / "nowhere")):
        fit([made], method="ridge", device="cpu")


def test_vectors_are_taken_in_any_order_reserved_or_not(rng: np.random.Generator, tmp_path: Path) -> None:
    X = rng.standard_normal((100, 4)).astype(np.float32)
    made = fake_set(tmp_path / "s", *in_shards(fake_rows("image", X)))
    vectors = StoredVectors(ShardParts([made], "image"))
    vectors.reserve(np.array([3, 99]))
    np.testing.assert_array_equal(vectors.take(np.array([5, 99, 0])), X[[5, 99, 0]])
    vectors.reserve(np.array([40, 3]))
    for rows in ([], [99, 3, 40, 99], rng.permutation(100).tolist()):
        np.testing.assert_array_equal(vectors.take(np.array(rows, np.int64)), X[rows])


@pytest.mark.parametrize("held", [0, 1 << 30])
def test_names_of_groups_are_told_apart_by_every_character(
    held: int, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "HELD_BYTES", held)
    names = ["a", "a\0", "ä", "Z", "z" * 300, "", "ａ", "𝔞"] * 2
    made = fake_set(
        tmp_path / "s",
        *(fake_rows(m, rng.standard_normal((len(names), 4)), groups=names) for m in MODALITIES),
    )
    hold_out = HoldOut(0.4)
    found = training_and_test([made], hold_out)
    ascending = sorted(set(names))
    fitted = {name for name, out in zip(ascending, hold_out.held_out(ascending), strict=True) if not out}
    kept = [ascending[code] for code in found.training.image.groups]
    assert kept == [name for name in names if name in fitted]


@pytest.mark.parametrize("order", ["same", "shuffled"])
@pytest.mark.usefixtures("on_disk")
def test_an_epoch_passes_over_every_group_in_random_order_and_reads_each_part_about_once(
    order: str, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "RUN_GROUPS", 15)
    monkeypatch.setattr(batching, "RUNS_MIXED", 3)
    for module in (batching, stored):
        monkeypatch.setattr(module, "CACHED_BYTES", 8000)  # seven parts or more of either kind
    data = training_and_test([planted(tmp_path / "s", rng, order=order)], HoldOut()).training
    read: Counter[tuple[Any, ...]] = Counter()
    for side in (data.image, data.text):
        assert isinstance(side, StoredEmbeddings)
        parts = side.source.parts

        def counted(part: int, dim: int = parts.dim, original: Any = parts.read) -> Any:
            read[dim, part] += 1
            return original(part)

        monkeypatch.setattr(parts, "read", counted)
    orders = []
    for _ in range(2):
        read.clear()
        rows = [(x, y) for x, y in batches(data.groups, data, Training(batch=10), rng)]
        for x, y in rows:
            np.testing.assert_array_equal(data.image.groups[x], data.text.groups[y])
            assert (data.image.take(x).shape, data.text.take(y).shape) == ((len(x), 9), (len(y), 7))
        groups = np.concatenate([data.image.groups[x] for x, _ in rows])
        assert len(set(groups)) == len(groups) >= len(data.groups) - 1
        assert read.total() <= 2.5 * len(read)
        orders.append(groups)
    for one in orders:
        assert np.abs(np.diff(one)).mean() > len(data.groups) / 20
    assert (orders[0][:20] != orders[1][:20]).any()


@pytest.mark.parametrize("method", ["linear", "residual"])
@pytest.mark.usefixtures("on_disk")
def test_a_head_learns_from_shards(method: str, rng: np.random.Generator, tmp_path: Path) -> None:
    made = planted(tmp_path / "s", rng, groups=300, captions=1)
    card = fit([made], method=method, device="cpu", folds=2, training={"epochs": 3, "batch": 64}).card
    held = round(HoldOut().held_out([f"g{number}" for number in range(300)]).sum())
    assert card.held_out_recall["cosine"]["text-to-image"]["recall@10"] > 4 * 10 / held


def test_a_group_of_many_items_is_measured_with_some_of_them(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class label is a group, and may have any number of images."""
    made = planted(tmp_path / "s", rng, groups=60, captions=12)
    lines: list[str] = []
    whole = fit([made], method="ridge", device="cpu", progress=lines.append)
    assert not [line for line in lines if "drawn evenly" in line]
    for module in (seen_unseen, cross_validation, held_out_recall):
        monkeypatch.setattr(module, "MOST_ITEMS", 100)
    some = fit([made], method="ridge", device="cpu", progress=lines.append)
    assert "of their items, at most 100 images and 100 texts are drawn evenly" in lines
    assert max(row["items"] for row in some.card.recall_estimates) == 100
    assert some.card.pairs == whole.card.pairs
    assert some.card.held_out_groups == whole.card.held_out_groups


@pytest.mark.parametrize("kind", ["distinct", "one", "few"])
def test_groups_are_numbered_by_name_in_ranges_that_hold_a_share_of_them(
    kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "SAMPLED", 3)
    drawn = {
        "distinct": [f"ключ-{number:x}" * (1 + number % 3) for number in range(4000)],
        "one": ["the same"] * 4000,
        "few": ["", "a", "a\0", "b", "日本"] * 800,
    }[kind]
    names = [drawn[place] for place in rng.permutation(4000)]
    chunks = [names[:7], [], names[7:3000], names[3000:]]
    tables: list[int] = []
    encoded = pc.sort_indices

    def watched(distinct: Any, *options: Any) -> Any:
        tables.append(len(distinct))
        return encoded(distinct, *options)

    monkeypatch.setattr(pc, "sort_indices", watched)
    hold_out = HoldOut(fraction=0.5)
    codes, is_held_out = split.number_groups(pa.chunked_array(chunks, pa.large_string()), hold_out)
    np.testing.assert_array_equal(codes, group_codes(names)[0])
    np.testing.assert_array_equal(is_held_out, hold_out.held_out(sorted(set(names))))
    assert sum(tables) == len(set(names))
    assert max(tables) <= max(1, 2 * len(set(names)) / split.RANGES)
