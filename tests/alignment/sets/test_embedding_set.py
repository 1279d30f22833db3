"""Embedding sets, opened for reading."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.errors import EmbeddingSetError
from alignment.modality import MODALITIES, Modality
from alignment.sets.cards import CARD, Dtype
from alignment.sets.embedding_set import SAMPLED_SHARDS, EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.shards import read_shard, write_shard
from tests.support.errors import raises
from tests.support.fakes import fake_set
from tests.support.sets import CARDS, assert_same, files, some, writer


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_set_reads_back_what_was_written(dtype: Dtype, tmp_path: Path) -> None:
    images, more, texts = some("image", 5), some("image", 3, 1, "more"), some("text", 7)
    with writer(tmp_path / "s", dtype=dtype) as out:
        for part in (images, texts, more):
            out.append(part)
        out.finish()
    opened = EmbeddingSet.open(tmp_path / "s")
    expected = Rows.concatenate([images, more])
    expected = replace(expected, vectors=expected.vectors.astype(dtype).astype(np.float32))
    assert_same(opened.load("image"), expected)
    assert opened.card.counts == {"image": 8, "text": 7}
    assert opened.card.encoders == CARDS
    assert (opened.card.name, opened.card.corpus, opened.card.dtype) == ("s", "corpus.jsonl", dtype)
    assert EmbeddingSet.open(str(tmp_path / "s")) == opened


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_batches_walk_every_row_once_and_say_where_it_stands(size: int, tmp_path: Path) -> None:
    opened = fake_set(tmp_path / "s", some("image", 5), some("image", 3, 1, "more"))
    batches = list(opened.batches("image", size))
    assert all(len(part) <= size for _, _, part in batches)
    assert_same(Rows.concatenate([part for _, _, part in batches]), opened.load("image"))
    for name, first, part in batches:
        assert_same(part, read_shard(tmp_path / "s" / name, "image").take(range(first, first + len(part))))


@pytest.mark.parametrize(("shards", "rows", "count"), [(1, 100, 10), (1, 5, 10), (40, 3, 64), (3, 50, 8), (1, 1, 1)])
def test_a_sample_is_spread_over_the_set(shards: int, rows: int, count: int, tmp_path: Path) -> None:
    opened = fake_set(tmp_path / "s", *(some("image", rows, seed, f"{seed}-") for seed in range(shards)))
    drawn, every = opened.sample("image", count), opened.load("image").keys
    assert len(set(drawn.keys)) == len(drawn) <= count + SAMPLED_SHARDS
    assert len(drawn) >= min(count / 2, len(every))
    assert set(drawn.keys) <= set(every)
    places = [every.index(key) for key in drawn.keys]
    assert max(places, default=0) - min(places, default=0) >= len(every) / 2 or len(drawn) == 1


def test_a_modality_without_rows_is_named(tmp_path: Path) -> None:
    opened = fake_set(tmp_path / "s", some("image", 2))
    with raises(EmbeddingSetError, "text"):
        opened.load("text")
    assert list(opened.batches("text", 5)) == []


def test_an_empty_set_can_be_complete(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        out.finish()
    assert EmbeddingSet.open(tmp_path / "s").card.counts == {"image": 0, "text": 0}


def test_a_set_is_incomplete_until_it_is_finished(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        out.append(some("image", 2))
    with raises(EmbeddingSetError, tmp_path / "s", "modalign encode"):
        EmbeddingSet.open(tmp_path / "s")


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    opened = fake_set(tmp_path / "s", some("image", 2), some("image", 3, 1, "more"))
    opened.shards("image")[0].unlink()
    with raises(EmbeddingSetError, "5 image rows", 3):
        EmbeddingSet.open(tmp_path / "s")


@pytest.mark.parametrize("change", ["keys", "groups", "content_sha256", "payloads"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_rows_that_something_else_changed_are_noticed(change: str, modality: Modality, tmp_path: Path) -> None:
    made = fake_set(tmp_path / "s", some("image", 5), some("text", 5))
    [shard] = made.shards(modality)
    rows = read_shard(shard, modality)
    changed: dict[str, Any] = {change: [*getattr(rows, change)[:-1], "other"]}
    write_shard(shard, replace(rows, **changed), "float32")
    with raises(EmbeddingSetError, tmp_path / "s", made.card.fingerprint[:12], code="set-changed"):
        EmbeddingSet.open(tmp_path / "s")


def test_a_shard_of_another_set_is_noticed(tmp_path: Path) -> None:
    one, other = fake_set(tmp_path / "s", some("image", 5)), fake_set(tmp_path / "t", some("image", 5, 1, "other"))
    one.shards("image")[0].write_bytes(other.shards("image")[0].read_bytes())
    with raises(EmbeddingSetError, tmp_path / "s", code="set-changed"):
        EmbeddingSet.open(tmp_path / "s")


def test_a_card_of_another_dimension_than_the_shards(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 3), some("text", 3))
    card = json.loads((tmp_path / "s" / CARD).read_text())
    card["encoders"]["text"]["dim"] = 4
    (tmp_path / "s" / CARD).write_text(json.dumps(card))
    with raises(EmbeddingSetError, "text-000000.parquet", 4, 3):
        EmbeddingSet.open(tmp_path / "s")


def test_what_is_no_set_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"...")
    for name in ("missing", "file", "photos"):
        with raises(EmbeddingSetError, tmp_path / name):
            EmbeddingSet.open(tmp_path / name)
    for name in ("file", "photos"):
        with raises(EmbeddingSetError, tmp_path / name):
            writer(tmp_path / name).__enter__()
    assert files(tmp_path / "photos") == ["cat.png"]
