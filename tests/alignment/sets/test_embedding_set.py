import hashlib
import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignment.errors import EmbeddingSetError, VectorError
from alignment.modality import MODALITIES, Modality
from alignment.sets.cards import CARD, Dtype, EncoderCard, SetCard
from alignment.sets.embedding_set import SAMPLED_SHARDS, EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import IDENTITY, Rows
from alignment.sets.shards import read_shard, shard_paths, shard_rows, write_shard
from alignment.sets.writer import SetWriter
from tests.support.fakes import fake_rows, fake_set

IMAGE = EncoderCard("fake-image:1", "a" * 64, 4)
TEXT = EncoderCard("fake-text:1", "b" * 64, 3)
CARDS: dict[Modality, EncoderCard] = {"image": IMAGE, "text": TEXT}


def some(modality: Modality, n: int, seed: int = 0, prefix: str = "") -> Rows:
    dim = CARDS[modality].dim
    return fake_rows(modality, np.random.default_rng(seed).standard_normal((n, dim)), prefix=prefix)


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


# Rows and shards

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    n, d = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    keys, groups, hashes, payloads = (draw(st.lists(TEXTS, min_size=n, max_size=n)) for _ in range(4))
    vectors = draw(hnp.arrays(np.float32, (n, d), elements=st.floats(width=16)))
    return Rows(draw(st.sampled_from(MODALITIES)), keys, groups, hashes, payloads, vectors)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@given(data=st.data())
def test_a_shard_reads_back_what_was_written(
    dtype: Dtype, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Vectors here fit into half precision exactly."""
    written = data.draw(rows().filter(lambda r: np.isfinite(r.vectors).all()))
    path = tmp_path_factory.mktemp("shard") / "image-000000.parquet"
    write_shard(path, written, dtype)
    assert_same(read_shard(path, written.modality), written)
    assert shard_rows(path, written.vectors.shape[1]) == len(written)
    assert files(path.parent) == [path.name]


def test_float32_is_kept_to_the_last_bit_and_float16_is_rounded_once(tmp_path: Path) -> None:
    vectors = np.array([[1 / 3, -2 / 3, 1e-4, 1000.3]], np.float32)
    for dtype, expected in (("float32", vectors), ("float16", vectors.astype(np.float16).astype(np.float32))):
        write_shard(tmp_path / "image-000000.parquet", fake_rows("image", vectors), dtype)  # type: ignore[arg-type]
        np.testing.assert_array_equal(read_shard(tmp_path / "image-000000.parquet", "image").vectors, expected)


@pytest.mark.parametrize("value", [1e5, -7e4])
def test_a_vector_that_overflows_half_precision_is_refused_by_key(value: float, tmp_path: Path) -> None:
    X = np.ones((3, 2))
    X[1, 0] = value
    with pytest.raises(VectorError, match=r"'k1'.*float16.*float32"):
        write_shard(tmp_path / "image-000000.parquet", fake_rows("image", X, prefix="k"), "float16")
    assert list(tmp_path.iterdir()) == []


def test_rows_are_taken_by_number_in_the_order_asked_for() -> None:
    taken = some("image", 5).take([3, 0, 3])
    assert taken.keys == ["3", "0", "3"]
    np.testing.assert_array_equal(taken.vectors, some("image", 5).vectors[[3, 0, 3]])
    assert len(some("image", 5).take([])) == 0


@given(rows(), st.data())
def test_splitting_and_concatenating_gives_the_rows_back(whole: Rows, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(whole)))
    assert_same(Rows.concatenate([whole.take(range(cut)), whole.take(range(cut, len(whole)))]), whole)


def test_a_digest_tells_rows_apart() -> None:
    base = some("image", 3)
    changes = [
        base,
        replace(base, modality="text"),
        replace(base, keys=["x", *base.keys[1:]]),
        replace(base, groups=["x", *base.groups[1:]]),
        replace(base, content_sha256=["x", *base.content_sha256[1:]]),
        replace(base, payloads=["{}", *base.payloads[1:]]),
        replace(base, vectors=base.vectors + np.float32(1e-3)),
        base.take([0, 2, 1]),
    ]
    assert len({change.digest() for change in changes}) == len(changes)
    assert base.digest() == some("image", 3).digest()


# Sets


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
    with pytest.raises(EmbeddingSetError, match="holds no text rows"):
        opened.load("text")
    assert list(opened.batches("text", 5)) == []


def test_an_empty_set_can_be_complete(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        out.finish()
    assert EmbeddingSet.open(tmp_path / "s").card.counts == {"image": 0, "text": 0}


def test_a_set_is_incomplete_until_it_is_finished(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        out.append(some("image", 2))
    with pytest.raises(EmbeddingSetError, match=r"incomplete.*run the same `modalign encode` again"):
        EmbeddingSet.open(tmp_path / "s")


def test_appending_makes_a_complete_set_incomplete_first(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 2))
    with writer(tmp_path / "s", encoders={}) as out:
        out.append(some("image", 2, 1, "more"))
        assert not SetCard.read(tmp_path / "s").complete
        assert SetCard.read(tmp_path / "s").fingerprint == ""


def test_finishing_again_without_a_change_touches_no_file(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        out.append(some("image", 2))
        out.append(some("text", 2))
        out.finish()
    before = snapshot(tmp_path / "s")
    with writer(tmp_path / "s") as out:
        out.finish()
        assert out.card == SetCard.read(tmp_path / "s")
    assert snapshot(tmp_path / "s") == before


def test_opening_for_writing_alone_touches_no_file(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 2))
    before = snapshot(tmp_path / "s")
    with writer(tmp_path / "s", encoders={}):
        pass
    assert snapshot(tmp_path / "s") == before


def test_shards_are_numbered_on_even_where_one_has_gone(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        names = [out.append(some("image", 1, i, str(i))) for i in range(3)]
        assert [p.name for p in names] == [f"image-00000{i}.parquet" for i in range(3)]
        out.drop(names[1], "image", {0})
        assert out.append(some("image", 1, 9, "n")).name == "image-000003.parquet"
        assert out.append(some("text", 1)).name == "text-000000.parquet"
    assert shard_paths(tmp_path / "s", "image") == [names[0], names[2], tmp_path / "s" / "image-000003.parquet"]


def test_dropped_rows_are_gone_and_the_others_stay(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        shard = out.append(some("image", 5))
        out.drop(shard, "image", {0, 3})
        out.finish()
    assert_same(EmbeddingSet.open(tmp_path / "s").load("image"), some("image", 5).take([1, 2, 4]))


def test_dropping_every_row_removes_the_shard(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        shard = out.append(some("image", 2))
        out.drop(shard, "image", {0, 1})
        out.finish()
    assert not shard.exists()
    assert EmbeddingSet.open(tmp_path / "s").card.counts["image"] == 0


def test_rewriting_half_precision_loses_nothing_more(tmp_path: Path) -> None:
    with writer(tmp_path / "s", dtype="float16") as out:
        shard = out.append(some("image", 5))
        once = read_shard(shard, "image")
        out.drop(shard, "image", {2})
    assert_same(read_shard(shard, "image"), once.take([0, 1, 3, 4]))


def test_identities_are_the_rows_without_their_vectors(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        shard = out.append(some("image", 2))
        [(path, table)] = out.identities("image")
        assert list(out.identities("text")) == []
    assert path == shard
    assert table.column_names == IDENTITY
    assert table.column("key").to_pylist() == ["0", "1"]


# Fingerprints


def fingerprint(path: Path, *parts: Rows, **changes: Any) -> str:
    with writer(path, **changes) as out:
        for part in parts:
            out.append(part)
        out.finish()
    return EmbeddingSet.open(path).card.fingerprint


def test_a_fingerprint_does_not_depend_on_history(tmp_path: Path) -> None:
    whole, texts = some("image", 6), some("text", 3)
    expected = fingerprint(tmp_path / "a", whole, texts)
    assert len(expected) == 64
    assert fingerprint(tmp_path / "b", texts, whole.take([5, 0, 3]), whole.take([1, 4, 2])) == expected
    with writer(tmp_path / "c", corpus="elsewhere") as out:
        out.append(whole.take([0, 1, 2]))
        out.finish()
    with writer(tmp_path / "c") as out:
        shard = out.append(Rows.concatenate([whole.take([3, 4, 5]), some("image", 1, prefix="superfluous")]))
        out.drop(shard, "image", {3})
        out.append(texts)
        out.finish()
    assert EmbeddingSet.open(tmp_path / "c").card.fingerprint == expected


def test_a_fingerprint_changes_with_any_content(tmp_path: Path) -> None:
    base = some("image", 3)
    other_encoder = {**CARDS, "image": replace(IMAGE, fingerprint="c" * 64)}
    found = [
        fingerprint(tmp_path / "0", base),
        fingerprint(tmp_path / "1", base.take([0, 1])),
        fingerprint(tmp_path / "2", replace(base, keys=["x", *base.keys[1:]])),
        fingerprint(tmp_path / "3", replace(base, groups=["x", *base.groups[1:]])),
        fingerprint(tmp_path / "4", replace(base, content_sha256=["x", *base.content_sha256[1:]])),
        fingerprint(tmp_path / "5", replace(base, payloads=["{}", *base.payloads[1:]])),
        fingerprint(tmp_path / "6", replace(base, modality="text", vectors=base.vectors[:, :3])),
        fingerprint(tmp_path / "7", base, encoders=other_encoder),
        fingerprint(tmp_path / "8", base, encoders={"image": IMAGE}),
    ]
    assert len(set(found)) == len(found)


# Interruptions, damage, and other writers


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 2))
    (tmp_path / "s" / "image-000001.parquet.tmp").write_bytes(b"PAR1 half a sha")
    (tmp_path / "s" / "card.json.tmp").write_bytes(b"{")
    assert len(EmbeddingSet.open(tmp_path / "s").load("image")) == 2
    with writer(tmp_path / "s", encoders={}) as out:
        out.finish()
    assert files(tmp_path / "s") == [CARD, "image-000000.parquet"]


@pytest.mark.parametrize("leftovers", [[], ["card.json.tmp"]])
def test_a_writer_killed_before_its_first_card_can_start_again(leftovers: list[str], tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name in leftovers:
        (tmp_path / "s" / name).write_bytes(b"{")
    with writer(tmp_path / "s") as out:
        out.append(some("image", 1))
        out.finish()
    assert files(tmp_path / "s") == [CARD, "image-000000.parquet"]


def test_a_killed_process_leaves_whole_shards_only(tmp_path: Path) -> None:
    """The process is killed while it renames its second shard; the next writer goes on."""
    script = """
        import os, signal, sys
        from pathlib import Path
        from tests.alignment.sets.test_embedding_set import some, writer
        with writer(Path(sys.argv[1])) as out:
            out.append(some("image", 3))
            rename = Path.replace
            def killed(self, target):
                if "parquet" in self.name:
                    os.kill(os.getpid(), signal.SIGKILL)
                return rename(self, target)
            Path.replace = killed
            out.append(some("image", 3, 1, "more"))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "s")], check=False)
    assert done.returncode == -9
    with pytest.raises(EmbeddingSetError, match="incomplete"):
        EmbeddingSet.open(tmp_path / "s")
    with writer(tmp_path / "s") as out:
        assert [len(table) for _, table in out.identities("image")] == [3]
        out.append(some("image", 3, 1, "more"))
        out.finish()
    expected = Rows.concatenate([some("image", 3), some("image", 3, 1, "more")])
    assert_same(EmbeddingSet.open(tmp_path / "s").load("image"), expected)


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path: Path) -> None:
    with writer(tmp_path / "s") as out:
        out.append(some("image", 1))
        with pytest.raises(EmbeddingSetError, match="being written by another process"), writer(tmp_path / "s"):
            pass
    with writer(tmp_path / "s") as out:
        out.finish()


def test_another_process_is_refused_too(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from tests.alignment.sets.test_embedding_set import writer
        with writer(Path(sys.argv[1])):
            pass
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "s")]
    with writer(tmp_path / "s"):
        refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "alignment.errors." in refused.stderr
    assert "being written by another process" in refused.stderr


def test_a_writer_that_fails_to_open_releases_its_lock(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 1))
    for _ in range(2):
        with pytest.raises(EmbeddingSetError, match="stores float32, asked for float16"):
            writer(tmp_path / "s", encoders={}, dtype="float16").__enter__()
    with writer(tmp_path / "s", encoders={}):
        pass


def test_vectors_of_two_encoders_are_not_mixed(tmp_path: Path) -> None:
    with writer(tmp_path / "s"):
        pass
    other = EncoderCard("other:1", "c" * 64, 4)
    before = snapshot(tmp_path / "s")
    with pytest.raises(EmbeddingSetError) as caught:
        writer(tmp_path / "s", encoders={"image": other}).__enter__()
    assert str(IMAGE) in str(caught.value)
    assert str(other) in str(caught.value)
    assert "image vectors" in str(caught.value)
    assert snapshot(tmp_path / "s") == before


def test_the_same_spec_with_other_weights_is_another_encoder(tmp_path: Path) -> None:
    with writer(tmp_path / "s"):
        pass
    with pytest.raises(EmbeddingSetError, match=r"aaaaaaaaaaaa.*dddddddddddd"):
        writer(tmp_path / "s", encoders={"image": replace(IMAGE, fingerprint="d" * 64)}).__enter__()


def test_a_modality_can_be_added_later(tmp_path: Path) -> None:
    with writer(tmp_path / "s", encoders={"image": IMAGE}) as out:
        out.append(some("image", 1))
        out.finish()
    with writer(tmp_path / "s", encoders={"text": TEXT}) as out:
        out.append(some("text", 2))
        out.finish()
    opened = EmbeddingSet.open(tmp_path / "s")
    assert opened.card.encoders == CARDS
    assert opened.card.counts == {"image": 1, "text": 2}


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    opened = fake_set(tmp_path / "s", some("image", 2), some("image", 3, 1, "more"))
    opened.shards("image")[0].unlink()
    with pytest.raises(EmbeddingSetError, match="promises 5 image rows, the shards hold 3"):
        EmbeddingSet.open(tmp_path / "s")


def test_a_truncated_shard_is_noticed(tmp_path: Path) -> None:
    [shard] = fake_set(tmp_path / "s", some("image", 50)).shards("image")
    content = shard.read_bytes()
    for length in (0, 3, 10, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:length])
        for reading in (lambda: EmbeddingSet.open(tmp_path / "s"), lambda: read_shard(shard, "image")):
            with pytest.raises(EmbeddingSetError, match=r"image-000000.parquet cannot be read.*delete it and run"):
                reading()


@pytest.mark.parametrize("mask", [0x01, 0x55, 0x80])
def test_no_flipped_bit_gives_other_rows(mask: int, tmp_path: Path) -> None:
    """Wherever a bit flips: an error, or the same rows (the byte was no data)."""
    written = some("image", 30)
    [shard] = fake_set(tmp_path / "s", written).shards("image")
    content = shard.read_bytes()
    noticed = 0
    for position in range(0, len(content), 7):
        shard.write_bytes(content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :])
        try:
            read = read_shard(shard, "image")
        except EmbeddingSetError:
            noticed += 1
        else:
            assert_same(read, written)
    assert noticed > len(content) / 7 / 4


def test_another_parquet_file_is_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "image-000000.parquet"
    pq.write_table(pa.table({"key": ["a"], "payload": ["{}"]}), path)
    with pytest.raises(EmbeddingSetError, match="no column content_sha256, group, vector"):
        read_shard(path, "image")


def arrow(rows: Rows, **changes: list[Any]) -> pa.Table:
    """The rows as a shard, with other values in the columns `changes`."""
    table = rows.to_arrow("float32")
    for name, values in changes.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    return table


@pytest.mark.parametrize("column", [*IDENTITY, "vector"])
def test_a_null_in_a_column_is_no_shard(column: str, tmp_path: Path) -> None:
    opened = fake_set(tmp_path / "s", some("image", 3))
    [shard] = opened.shards("image")
    values = arrow(some("image", 3)).column(column).to_pylist()
    pq.write_table(arrow(some("image", 3), **{column: [values[0], None, values[2]]}), shard)
    for reading in (
        lambda: read_shard(shard, "image"),
        lambda: opened.load("image"),
        lambda: next(opened.batches("image", 1)),
    ):
        with pytest.raises(EmbeddingSetError, match=f"image-000000.parquet is no shard .*: {column} of some rows is"):
            reading()


def test_every_column_with_a_null_is_named(tmp_path: Path) -> None:
    path = tmp_path / "image-000000.parquet"
    nothing: list[Any] = [None, None]
    pq.write_table(arrow(some("image", 2), group=nothing, payload=nothing), path)
    with pytest.raises(EmbeddingSetError, match="group, payload of some rows is null"):
        read_shard(path, "image")


@pytest.mark.parametrize("dim", [3, 5])
def test_a_shard_of_another_dimension_than_the_card_says(dim: int, tmp_path: Path) -> None:
    opened = fake_set(tmp_path / "s", some("image", 3), some("image", 2, 1, "more"))
    shard = opened.shards("image")[1]
    vectors = np.random.default_rng(0).standard_normal((2, dim))
    write_shard(shard, fake_rows("image", vectors, prefix="more"), "float32")
    message = rf"image-000001\.parquet: expected vectors of dimension 4, as the card says, got {dim}; encode"
    with pytest.raises(EmbeddingSetError, match=message):
        EmbeddingSet.open(tmp_path / "s")
    with pytest.raises(EmbeddingSetError, match=message):
        shard_rows(shard, 4)
    assert shard_rows(shard, dim) == 2


def test_a_card_of_another_dimension_than_the_shards(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 3), some("text", 3))
    card = json.loads((tmp_path / "s" / CARD).read_text())
    card["encoders"]["text"]["dim"] = 4
    (tmp_path / "s" / CARD).write_text(json.dumps(card))
    with pytest.raises(EmbeddingSetError, match=r"text-000000\.parquet: expected vectors of dimension 4, .* got 3"):
        EmbeddingSet.open(tmp_path / "s")


def test_vectors_of_varying_length_are_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "image-000000.parquet"
    columns = {name: ["a", "b"] for name in IDENTITY}
    pq.write_table(pa.table({**columns, "vector": [[1.0], [1.0, 2.0]]}), path)
    with pytest.raises(EmbeddingSetError, match="vector"):
        read_shard(path, "image")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '{"format": 1}', '{"format": 1, "name": 3, "surprise": 1}', "\x00", "\ufeff{}"],
)
def test_a_damaged_card_is_named(content: str, tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 1))
    (tmp_path / "s" / CARD).write_text(content)
    for reading in (lambda: EmbeddingSet.open(tmp_path / "s"), lambda: writer(tmp_path / "s").__enter__()):
        with pytest.raises(EmbeddingSetError, match=r"card.json is damaged"):
            reading()


@pytest.mark.parametrize("field", ["encoders", "counts", "complete", "dtype"])
@pytest.mark.parametrize("value", [None, 7, "x", ["x"], {"image": "x"}])
def test_a_card_with_a_field_of_another_type_is_damaged(field: str, value: Any, tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 1))
    card = json.loads((tmp_path / "s" / CARD).read_text())
    (tmp_path / "s" / CARD).write_text(json.dumps({**card, field: value}))
    with pytest.raises(EmbeddingSetError, match="damaged"):
        EmbeddingSet.open(tmp_path / "s")


def test_a_card_of_another_format_is_refused_with_a_remedy(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 1))
    card = json.loads((tmp_path / "s" / CARD).read_text())
    (tmp_path / "s" / CARD).write_text(json.dumps({**card, "format": 2}))
    with pytest.raises(EmbeddingSetError, match=r"expected an embedding set of format 1, got format 2.*encode"):
        EmbeddingSet.open(tmp_path / "s")


def test_what_is_no_set_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"...")
    for name in ("missing", "file", "photos"):
        with pytest.raises(EmbeddingSetError, match=f"{name} is not an embedding set"):
            EmbeddingSet.open(tmp_path / name)
    for name in ("file", "photos"):
        with pytest.raises(EmbeddingSetError, match=f"{name} is not an embedding set"):
            writer(tmp_path / name).__enter__()
    assert files(tmp_path / "photos") == ["cat.png"]


def test_a_card_survives_a_round_trip(tmp_path: Path) -> None:
    card = SetCard("s", "corpus", dict(CARDS), "float16", {"image": 3}, complete=True, fingerprint="f" * 64)
    card.write(tmp_path)
    assert SetCard.read(tmp_path) == card


def test_an_encoder_card_prints_what_people_need() -> None:
    assert str(IMAGE) == "fake-image:1 (fingerprint aaaaaaaaaaaa, 4-d)"


# Hold-out


@given(st.lists(TEXTS, max_size=30), st.floats(0, 1), st.integers(0, 5))
def test_a_group_stays_on_its_side_whatever_else_there_is(groups: list[str], fraction: float, seed: int) -> None:
    hold_out = HoldOut(fraction, seed)
    alone = [bool(hold_out.held_out([group])[0]) for group in groups]
    assert hold_out.held_out(groups).tolist() == alone


def test_the_side_of_a_group_is_its_hash() -> None:
    """Written out, because a change here would move groups of existing alignments to the other side."""
    groups = [f"group {i}" for i in range(100)]
    draws = [int(hashlib.sha256(b"3\x00" + group.encode()).hexdigest()[:16], 16) / float(1 << 64) for group in groups]
    assert HoldOut(0.3, 3).held_out(groups).tolist() == [draw < 0.3 for draw in draws]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.9, 1.0])
def test_the_fraction_is_held_out(fraction: float) -> None:
    share = HoldOut(fraction).held_out([str(i) for i in range(4000)]).mean()
    assert share == pytest.approx(fraction, abs=4 * (0.25 / 4000) ** 0.5)
    if fraction in (0.0, 1.0):
        assert share == fraction


def test_a_larger_fraction_holds_out_more_of_the_same() -> None:
    groups = [str(i) for i in range(200)]
    small, large = HoldOut(0.2).held_out(groups), HoldOut(0.6).held_out(groups)
    assert (large | ~small).all()


def test_another_seed_is_another_split() -> None:
    groups = [str(i) for i in range(200)]
    assert HoldOut(0.5, 0).held_out(groups).tolist() != HoldOut(0.5, 1).held_out(groups).tolist()
