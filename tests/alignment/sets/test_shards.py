"""Shards: what is written is read, and damage is noticed."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import EmbeddingSetError, VectorError
from alignment.sets.cards import Dtype
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import IDENTITY, Rows
from alignment.sets.shards import read_shard, shard_rows, table_of, write_shard
from tests.support.errors import raises
from tests.support.fakes import fake_rows, fake_set
from tests.support.sets import assert_same, files, rows, some


@pytest.mark.slow
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


def test_extremes_are_kept_of_texts_alone(tmp_path: Path) -> None:
    """Finding those of vectors takes two fifths of the time of writing, and nobody asks for them."""
    write_shard(tmp_path / "image-000000.parquet", some("image", 3), "float16")
    group = pq.read_metadata(tmp_path / "image-000000.parquet").row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    assert {column.path_in_schema.split(".")[0]: column.is_stats_set for column in columns} == {
        **dict.fromkeys(IDENTITY, True),
        "vector": False,
    }


def test_float32_is_kept_to_the_last_bit_and_float16_is_rounded_once(tmp_path: Path) -> None:
    vectors = np.array([[1 / 3, -2 / 3, 1e-4, 1000.3]], np.float32)
    for dtype, expected in (("float32", vectors), ("float16", vectors.astype(np.float16).astype(np.float32))):
        write_shard(tmp_path / "image-000000.parquet", fake_rows("image", vectors), dtype)  # type: ignore[arg-type]
        np.testing.assert_array_equal(read_shard(tmp_path / "image-000000.parquet", "image").vectors, expected)


@pytest.mark.parametrize("value", [1e5, -7e4])
def test_a_vector_that_overflows_half_precision_is_refused_by_key(value: float, tmp_path: Path) -> None:
    X = np.ones((3, 2))
    X[1, 0] = value
    with raises(VectorError, "'k1'", "float16", "float32"):
        write_shard(tmp_path / "image-000000.parquet", fake_rows("image", X, prefix="k"), "float16")
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_shard_is_noticed(tmp_path: Path) -> None:
    [shard] = fake_set(tmp_path / "s", some("image", 50)).shards("image")
    content = shard.read_bytes()
    for length in (0, 3, 10, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:length])
        for reading in (lambda: EmbeddingSet.open(tmp_path / "s"), lambda: read_shard(shard, "image")):
            with raises(EmbeddingSetError, shard, "delete it", "modalign encode", code="shard-damaged"):
                reading()


UNREADABLE = [
    PermissionError(13, "Permission denied"),
    OSError(5, "Input/output error"),
    MemoryError(),
    pa.ArrowMemoryError("malloc of size 133184 failed"),
    pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
    OSError("ZSTD decompression failed: Allocation error : not enough memory"),
]


@pytest.mark.parametrize("error", UNREADABLE, ids=repr)
def test_a_shard_that_cannot_be_read_just_now_is_not_called_damaged(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever follows advice to delete it would lose sound rows."""
    [shard] = fake_set(tmp_path / "s", some("image", 5)).shards("image")

    def fail(*_: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(pq.ParquetFile, "read", fail)
    with pytest.raises(EmbeddingSetError) as caught:
        read_shard(shard, "image")
    assert (caught.value.code, "delete" in str(caught.value)) == ("shard-unreadable", False)
    monkeypatch.setattr(pq.ParquetFile, "__init__", fail)
    with pytest.raises(EmbeddingSetError) as caught:
        shard_rows(shard, 4)
    assert (caught.value.code, "delete" in str(caught.value)) == ("shard-unreadable", False)


def test_a_directory_in_the_place_of_a_shard_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "image-000000.parquet").mkdir()
    with raises(EmbeddingSetError, tmp_path, code="shard-unreadable"):
        read_shard(tmp_path / "image-000000.parquet", "image")


NO_THREADS = """
import os, resource, sys
import pyarrow.compute
from pathlib import Path
from alignment.sets.shards import read_shard
if os.geteuid() == 0:
    os.setuid(65534)  # no limit holds for root
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
print(len(read_shard(Path(sys.argv[1]), "image")))
"""


def test_a_shard_is_read_where_no_thread_can_be_started() -> None:
    with TemporaryDirectory() as directory:  # pytest's own are closed to other users
        Path(directory).chmod(0o755)
        [shard] = fake_set(Path(directory) / "s", some("image", 50)).shards("image")
        for path in (shard.parent, shard):
            path.chmod(0o755)
        command = [sys.executable, "-c", NO_THREADS, str(shard)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "50\n"), done.stderr


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
    with raises(EmbeddingSetError, path, "content_sha256, group, vector"):
        read_shard(path, "image")


def arrow(rows: Rows, **changes: list[Any]) -> pa.Table:
    """The rows as a shard, with other values in the columns `changes`."""
    table = table_of(rows, "float32")
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
        with raises(EmbeddingSetError, shard, column, "null"):
            reading()


def test_every_column_with_a_null_is_named(tmp_path: Path) -> None:
    path = tmp_path / "image-000000.parquet"
    nothing: list[Any] = [None, None]
    pq.write_table(arrow(some("image", 2), group=nothing, payload=nothing), path)
    with raises(EmbeddingSetError, path, "group, payload", "null"):
        read_shard(path, "image")


@pytest.mark.parametrize("dim", [3, 5])
def test_a_shard_of_another_dimension_than_the_card_says(dim: int, tmp_path: Path) -> None:
    opened = fake_set(tmp_path / "s", some("image", 3), some("image", 2, 1, "more"))
    shard = opened.shards("image")[1]
    vectors = np.random.default_rng(0).standard_normal((2, dim))
    write_shard(shard, fake_rows("image", vectors, prefix="more"), "float32")
    with raises(EmbeddingSetError, shard, 4, dim):
        EmbeddingSet.open(tmp_path / "s")
    with raises(EmbeddingSetError, shard, 4, dim):
        shard_rows(shard, 4)
    assert shard_rows(shard, dim) == 2


def test_vectors_of_varying_length_are_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "image-000000.parquet"
    columns = {name: ["a", "b"] for name in IDENTITY}
    pq.write_table(pa.table({**columns, "vector": [[1.0], [1.0, 2.0]]}), path)
    with raises(EmbeddingSetError, path):
        read_shard(path, "image")
